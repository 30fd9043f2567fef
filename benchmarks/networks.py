"""Networks of VideoCrafter2's and the rewards' published sizes with random weights, and inputs for them.

Every layer has non-zero weights, also where training begins at zero. Time and memory do not depend on the values.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import harness  # noqa: F401  first: it finds guidedcd where that is not installed
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.checkpoints.architecture import DDCONFIG
from guidedcd.models.checkpoints.lvdm_unet import PUBLISHED, unet_arguments
from guidedcd.models.checkpoints.lvdm_vae_text import vae_arguments
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.rewards.frozen import FrozenReward
from guidedcd.testing.tiny_teacher import WIDTH, tiny_teacher

FULL_SIZE = Geometry(frames=16, height=320, width=512, fps=8)
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_INTERNVIDEO2 = {
    "embed_dim": 16,
    "vision": {
        "img_size": 28,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "attn_pool_num_heads": 2,
        "clip_embed_dim": 16,
    },
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "fusion_layer": 1,
    },
}
TINY_QWEN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
TINY_QWEN_VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}
TOKENS = 77
FRAMES = {"hps": 2, "clip": 2, "internv2": 4}
"""Frames that T2V-Turbo-v2 gives to each reward."""


@functools.cache
def geometry(tiny: bool) -> Geometry:
    """Size of the videos: 16 frames of 320x512, or a tiny one."""
    return tiny_teacher().geometry if tiny else FULL_SIZE


def text_width(tiny: bool) -> int:
    """Width of the prompt embeddings."""
    return WIDTH if tiny else PUBLISHED["context_dim"]


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, frozen; the variance of activations stays about one through the network."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    norms = {id(p) for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()}
    with torch.no_grad():
        for name, p in network.named_parameters():
            std = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            values = torch.randn(p.shape, generator=generator, device=p.device, dtype=torch.float32) * std
            p.copy_(values + 1 if id(p) in norms and name.endswith("weight") else values)
    return network.requires_grad_(False).eval()


def empty_unet(tiny: bool = False) -> UNet3DConditionModel:
    """The denoiser on the meta device, without memory."""
    with torch.device("meta"):
        return UNet3DConditionModel.from_config(tiny_teacher().network.config if tiny else unet_arguments(PUBLISHED))


def unet(device: str | torch.device, dtype: torch.dtype, tiny: bool = False) -> UNet3DConditionModel:
    """The denoiser: 1.41 B parameters."""
    return fill(nn.Module.to(empty_unet(tiny), dtype).to_empty(device=device))


def vae(device: str | torch.device, dtype: torch.dtype, tiny: bool = False) -> AutoencoderKL:
    """The autoencoder: 84 M parameters, 8 pixels for each latent."""
    with torch.device("meta"):
        network = AutoencoderKL.from_config(tiny_teacher().vae.config if tiny else vae_arguments(DDCONFIG, 4, 0.18215))
    return fill(nn.Module.to(network, dtype).to_empty(device=device), seed=1)


def hashed_captions(width: int, captions: list[str]) -> dict[str, Tensor]:
    """A text encoder without weights: prompt_embeds (B, 77, width) drawn from the length of each caption."""
    generators = (torch.Generator().manual_seed(len(caption)) for caption in captions)
    return {"prompt_embeds": torch.stack([torch.randn(TOKENS, width, generator=one) for one in generators])}


def teacher(device: str | torch.device, dtype: torch.dtype, tiny: bool = False) -> LatentTeacher:
    """VideoCrafter2's denoiser and autoencoder with a text encoder without weights."""
    width = text_width(tiny)
    model = LatentTeacher(
        network=unet(device, dtype, tiny),
        vae=vae(device, dtype, tiny),
        text=lambda captions: hashed_captions(width, captions),
        schedule=NoiseSchedule.scaled_linear(),
        geometry=geometry(tiny),
    )
    model._digest = "random"  # nothing here reads the fingerprint, and hashing 6 GB takes as long as everything else
    return model.to(device)


def reward(name: str, device: str | torch.device, tiny: bool = False, checkpointed: bool = False) -> Any:
    """A reward of the published size in bfloat16 (tiny: float32) that remembers the features of captions as always.

    Args:
        name: hps, clip, internv2 or videoreward.
        device: Where its weights are.
        tiny: A network of a few thousand weights.
        checkpointed: Its blocks are recomputed in the backward pass.
    """
    if name == "internv2":
        return _internvideo2(device, tiny, checkpointed)
    if name == "videoreward":
        return _videoreward(device, tiny, checkpointed)
    import open_clip
    from guidedcd_clip import CLIPConfig
    from guidedcd_clip.reward import CLIPScore
    from guidedcd_hps import HPSConfig
    from guidedcd_hps.reward import HPS

    from guidedcd.rewards import pixels
    from guidedcd.rewards.image_text import build_clip, recompute_blocks
    from guidedcd.rewards.tokenizers import ClipTokens

    kind, config, prepare = {"hps": (HPS, HPSConfig, pixels.hps), "clip": (CLIPScore, CLIPConfig, pixels.clip)}[name]
    sizes = TINY_CLIP if tiny else open_clip.get_model_config("ViT-H-14")
    dtype, dtype_name = (torch.float32, "fp32") if tiny else (torch.bfloat16, "bf16")
    with torch.device(device):
        model = fill(build_clip(sizes, dtype), seed=2)
    if checkpointed:
        recompute_blocks(model.visual)
    module = kind.__new__(kind)  # __init__ would read a file
    FrozenReward.__init__(module, model, ClipTokens())
    module.config, module.prepare, module.tiled = config(dtype=dtype_name), prepare, False
    return module.to(device)


def _videoreward(device: str | torch.device, tiny: bool, checkpointed: bool) -> nn.Module:
    from guidedcd_videoreward import VideoRewardConfig
    from guidedcd_videoreward.model import FULL, set_frequencies
    from guidedcd_videoreward.reward import VideoReward

    options: dict[str, Any] = {"dtype": "fp32" if tiny else "bf16", "gradient_checkpointing": checkpointed}
    with tempfile.TemporaryDirectory() as folder:
        if tiny:
            sizes = {**FULL, **TINY_QWEN, "vision_config": {**FULL["vision_config"], **TINY_QWEN_VISION}}
            path = Path(folder, "config.json")
            path.write_text(json.dumps(sizes))
            options |= {"arch": str(path), "min_pixels": 3136, "max_pixels": 100_352}
        reward = VideoReward(VideoRewardConfig(**options), weights=False).to_empty(device=device)
    fill(reward.model, seed=4)
    set_frequencies(reward.model)
    return reward.to(device)


def _internvideo2(device: str | torch.device, tiny: bool, checkpointed: bool) -> FrozenReward:
    from guidedcd_internv2 import InternV2Config
    from guidedcd_internv2.model import InternVideo2, complete
    from guidedcd_internv2.reward import InternV2
    from guidedcd_shapes.tokens import WorldTokens

    dtype, dtype_name = (torch.float32, "fp32") if tiny else (torch.bfloat16, "bf16")
    with torch.device(device):
        model = fill(InternVideo2(TINY_INTERNVIDEO2 if tiny else None).to(dtype), seed=3)
    model.gradient_checkpointing(checkpointed)
    module = InternV2.__new__(InternV2)  # __init__ would read a file
    FrozenReward.__init__(module, model, WorldTokens(complete(None)["max_txt_l"]))
    module.config = InternV2Config(dtype=dtype_name)
    return module.to(device)


def inputs(
    batch: int, device: str | torch.device, dtype: torch.dtype, tiny: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, F, H, W), timesteps (B,) and prompt embeddings (B, 77, D); the first rows are always the same."""
    latents, embeddings = [], []
    for row in range(batch):
        generator = torch.Generator().manual_seed(100 + row)
        latents.append(torch.randn(geometry(tiny).latent_shape, generator=generator))
        embeddings.append(torch.randn(TOKENS, text_width(tiny), generator=generator))
    t = torch.tensor([(499 + 200 * row) % 1000 for row in range(batch)], device=device)
    return torch.stack(latents).to(device, dtype), t, torch.stack(embeddings).to(device, dtype)
