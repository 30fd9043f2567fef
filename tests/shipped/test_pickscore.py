"""PickScore: the same network as CLIP in transformers' layout, held against CLIP's published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from guidedcd_pickscore import PickScoreConfig
from guidedcd_pickscore.reward import FULL, PickScore
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from guidedcd import GuidedCDError
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd.plugins.registry import Component
from guidedcd.rewards.tokenizers import ClipTokens, TransformersClipTokens
from guidedcd.testing import checks_of

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict under transformers' names."""
    out = {"logit_scale": state["logit_scale"]}
    for tower, target in (("visual.", "vision_model."), ("", "text_model.")):
        prefix = f"{tower}transformer.resblocks."
        for key, value in state.items():
            if not key.startswith(prefix):
                continue
            number, _, rest = key.removeprefix(prefix).partition(".")
            layer = f"{target}encoder.layers.{number}."
            if rest.startswith("attn.in_proj_"):
                for name, part in zip("qkv", value.chunk(3), strict=True):
                    out[f"{layer}self_attn.{name}_proj.{rest.removeprefix('attn.in_proj_')}"] = part.contiguous()
            else:
                old, _, leaf = rest.rpartition(".")
                out[f"{layer}{BLOCK[old]}.{leaf}"] = value
    for leaf in ("weight", "bias"):
        out[f"vision_model.pre_layrnorm.{leaf}"] = state[f"visual.ln_pre.{leaf}"]
        out[f"vision_model.post_layernorm.{leaf}"] = state[f"visual.ln_post.{leaf}"]
        out[f"text_model.final_layer_norm.{leaf}"] = state[f"ln_final.{leaf}"]
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    return out | {
        f"{vision}class_embedding": state["visual.class_embedding"],
        f"{vision}patch_embedding.weight": state["visual.conv1.weight"],
        f"{vision}position_embedding.weight": state["visual.positional_embedding"],
        f"{text}token_embedding.weight": state["token_embedding.weight"],
        f"{text}position_embedding.weight": state["positional_embedding"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }


@pytest.fixture(scope="module")
def options(shared, tmp_path_factory) -> dict[str, str]:
    """Path and sizes of the published tiny CLIP in transformers' layout, with the old position_ids buffer."""
    source, folder = shared("rewards", "clip_tiny_strings"), tmp_path_factory.mktemp("pickscore")
    sizes = json.loads((source / "config.json").read_text())["model_cfg"]
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    common = {"hidden_act": "gelu"}
    config = {
        "projection_dim": sizes["embed_dim"],
        "vision_config": common
        | {
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_config": common
        | {
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
        },
    }
    state = converted(load_file(source / "weights.safetensors"))
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, folder / "model.safetensors")
    (folder / "arch.json").write_text(json.dumps(config))
    return {"path": str(folder / "model.safetensors"), "arch": str(folder / "arch.json")}


def test_scores_are_those_of_the_same_clip(options, shared):
    """With converted weights, features, scores and gradients are CLIP's published ones, within their tolerances."""
    reward, golden = (
        PickScore(PickScoreConfig(**options)),
        load_file(shared("rewards", "clip_tiny_strings", "cases.safetensors")),
    )
    for case in ("landscape", "portrait_up"):
        images, tokens = golden[f"{case}.images"].requires_grad_(), golden[f"{case}.tokens"]
        text = reward.text_features(tokens, (torch.arange(77) <= tokens.argmax(-1, keepdim=True)).long())
        scores = reward.scores(images[:, None], text)
        (grad,) = torch.autograd.grad(scores.mean(), images)
        assert (text - golden[f"{case}.text_features"]).abs().max() < 5e-6
        assert (scores - golden[f"{case}.score"]).abs().max() < 5e-6
        expected = golden[f"{case}.grad_images"]
        assert (grad - expected).abs().max() < 1e-4 * expected.abs().max()


def test_captions_follow_transformers_rules():
    """Token ids are open_clip's for plain captions, but HTML entities are not resolved; padding is the end token."""
    tokens, clip_tokens = TransformersClipTokens(), ClipTokens()
    plain, odd = "A cat riding a bicycle, 4K", "gulls &amp; cats"
    ids, mask = tokens([plain])
    assert torch.equal(ids * mask, clip_tokens([plain])[0])
    assert (ids[mask == 0] == 49407).all()
    assert tokens.count(plain) == clip_tokens.count(plain)
    assert tokens.count(odd) > clip_tokens.count(odd)


def test_gradient_checkpointing_and_cropping(options):
    """Recomputed activations give the same gradient; cropping keeps the aspect ratio and scores otherwise."""
    video = torch.rand(2, 2, 3, 30, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    captions = ["a cat", "two dogs"]
    grads = []
    for checkpointing in (False, True):
        reward = PickScore(PickScoreConfig(**options, gradient_checkpointing=checkpointing))
        grads.append(torch.autograd.grad(reward(video, captions).sum(), video)[0])
    torch.testing.assert_close(*grads)
    cropped = PickScore(PickScoreConfig(**options, resize="crop"))
    assert not torch.allclose(cropped(video, captions), reward(video, captions))


def test_full_size_has_the_published_keys(shared):
    """At full size the network has exactly the 910 keys and shapes of the released PickScore."""
    path = Path(shared("rewards")).parents[1] / "facts" / "manifests" / "pickscore_hf_clip_h_manifest.json"
    if not path.is_file():
        pytest.skip("the manifests of full-size checkpoints are not here")
    state = skeleton(lambda: CLIPModel(CLIPConfig(**FULL))).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == json.loads(path.read_text())["keys"]


def test_an_open_clip_file_is_recognised(options, shared):
    """The wrong layout is refused with what the file looks like."""
    wrong = str(shared("rewards", "clip_tiny_strings", "weights.safetensors"))
    with pytest.raises(GuidedCDError, match="looks like an open_clip model"):
        PickScore(PickScoreConfig(path=wrong, arch=options["arch"]))


def test_the_conformance_kit_passes(options):
    """It passes every conformance check of rewards."""
    component = Component(
        "reward", "pickscore", "guidedcd_pickscore.reward:PickScore", PickScoreConfig, "guidedcd/test"
    )
    for check in checks_of(component, config=PickScoreConfig(**options)):
        check()
