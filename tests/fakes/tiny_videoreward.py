"""A VideoReward checkpoint in the layout of the released one, with a tiny random Qwen2-VL and an own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from guidedcd_videoreward.chat import PREFIX, REWARDS, SUFFIX, template
from guidedcd_videoreward.model import FULL, VideoRewardModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

SIZES = {
    **FULL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": {
        **FULL["vision_config"],
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
    },
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 3, 6
SETTINGS = {
    "data_config": {
        "max_frame_pixels": 4704,
        "fps": 2.0,
        "eval_dim": ["VQ", "MQ", "TA"],
        "prompt_template_type": "detailed_special",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 0.3,
        "VQ_std": 2.0,
        "MQ_mean": -0.2,
        "MQ_std": 0.5,
        "TA_mean": 0.1,
        "TA_std": 1.5,
    },
}


def write_release(folder: Path, outputs: int = 1) -> dict[str, str | int]:
    """Write the checkpoint below `folder`, and return the options of the reward that load it."""
    checkpoint = folder / "release" / "checkpoint-7"
    (checkpoint / "tokenizer").mkdir(parents=True)
    (folder / "release" / "model_config.json").write_text(json.dumps(SETTINGS))
    (folder / "config.json").write_text(json.dumps(SIZES))
    tokenizer = _tokenizer()
    tokenizer.save(str(checkpoint / "tokenizer" / "tokenizer.json"))
    torch.save(random_state(tokenizer.get_vocab_size(), outputs), checkpoint / "model.pth")
    return {"path": str(folder / "release"), "arch": str(folder / "config.json"), "min_pixels": 3136}


def random_state(vocabulary: int, outputs: int = 1) -> dict[str, Tensor]:
    """Random weights under the names of the released file: adapters beside their weights, and a language head."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in VideoRewardModel(SIZES, vocabulary, outputs).state_dict().items():
        scale = 0.3 / max(value.shape[-1], 1) ** 0.5 if value.dim() > 1 else 0.1
        weight = torch.randn(value.shape, generator=generator) * scale * 3
        weight = weight + 1 if "norm" in name and name.endswith("weight") else weight
        old = "base_model.model." + name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        module = old.rpartition(".")[0]
        if module.rpartition(".")[2] in TARGETS:
            old = f"{module}.base_layer.{name.rpartition('.')[2]}"
            if value.dim() == 2:
                rows, columns = value.shape
                state[f"{module}.lora_A.default.weight"] = torch.randn(RANK, columns, generator=generator) * 0.2
                state[f"{module}.lora_B.default.weight"] = torch.randn(rows, RANK, generator=generator) * 0.2
        state[old] = weight
    state["base_model.model.lm_head.weight"] = state["base_model.model.model.embed_tokens.weight"].clone()
    return state


def _tokenizer() -> Tokenizer:
    """Byte-level BPE of the template's words, with Qwen2's normalisation and the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PREFIX + template() + SUFFIX], trainer)
    tokenizer.add_special_tokens([*SPECIAL, *REWARDS])
    return tokenizer
