"""Published checkpoint files of random weights: their keys and shapes, and the writing of them.

Shapes come from a manifest ({key: shape} as JSON) where there is one; else from this package's own tables, which show
that a file can be written and read, not that the table is right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness  # noqa: F401  first: it finds guidedcd where that is not installed
import torch
from torch import Tensor

from guidedcd.testing.tiny_networks import (
    IMAGE_TEXT_SIZES,
    LVDM_CONFIG,
    LVDM_UNET,
    TRANSFORMERS_CLIP_SIZES,
    VIDEO_TEXT_SIZES,
)

Shapes = dict[str, list[int]]

MANIFESTS = {
    "videocrafter2": "vc2_full_manifest.json",
    "student": "t2v_turbo_v2_student_manifest.json",
    "hps": "hpsv2_vit_h_14_manifest.json",
    "clip": "open_clip_vit_h_14_manifest.json",
    "internv2": "internvideo2_stage2_1b_manifest.json",
    "pickscore": "pickscore_hf_clip_h_manifest.json",
}
FILES = {
    "videocrafter2": "model.ckpt",
    "student": "unet_mg.pt",
    "hps": "HPS_v2.1_compressed.pt",
    "clip": "open_clip_model.safetensors",
    "internv2": "InternVideo2-stage2_1b-224p-f4.pt",
    "pickscore": "model.safetensors",
}
"""Names as published."""

TINY: dict[str, Any] = {
    "unet": LVDM_UNET,
    "ddconfig": LVDM_CONFIG["model"]["params"]["first_stage_config"]["params"]["ddconfig"],
    "text": LVDM_CONFIG["open_clip_arch"]["text_cfg"],
    "clip": IMAGE_TEXT_SIZES,
    "internv2": VIDEO_TEXT_SIZES,
    "pickscore": TRANSFORMERS_CLIP_SIZES,
}
"""Sizes that a laptop runs in seconds."""


def arch_file(folder: Path) -> Path:
    """The tiny VideoCrafter2's architecture in the structure of the published config."""
    path = folder / "videocrafter2.json"
    path.write_text(json.dumps(LVDM_CONFIG))
    return path


def manifest(name: str, folder: Path | None) -> Shapes | None:
    """Keys and shapes of a published file, without the schedule's tables; None where there is no manifest."""
    path = folder / MANIFESTS[name] if folder is not None else None
    if path is None or not path.is_file():
        return None
    groups = json.loads(path.read_text(encoding="utf-8"))
    if "keys" in groups:
        groups = {"keys": groups["keys"]}
    kept = [group for name, group in groups.items() if name not in ("_meta", "schedule_buffers")]
    shapes = {key: shape for group in kept for key, shape in group.items()}
    return {key: shape["shape"] if isinstance(shape, dict) else shape for key, shape in shapes.items()}


def derived(name: str, tiny: bool) -> Shapes:
    """Keys and shapes by this package's own tables, at the published size or a tiny one."""
    return {key: list(value.shape) for key, value in _meta_state(name, tiny).items()}


def _meta_state(name: str, tiny: bool) -> Mapping[str, Tensor]:
    from guidedcd.models.checkpoints.loading import skeleton

    if name in ("videocrafter2", "student"):
        return _videocrafter2(name, tiny)
    if name in ("hps", "clip"):
        import open_clip

        from guidedcd.rewards.image_text import build_clip

        sizes = TINY["clip"] if tiny else open_clip.get_model_config("ViT-H-14")
        return skeleton(lambda: build_clip(sizes)).state_dict()
    if name == "internv2":
        from guidedcd_internv2.model import InternVideo2

        return skeleton(lambda: InternVideo2(TINY["internv2"] if tiny else None)).state_dict()
    from guidedcd_pickscore.reward import FULL
    from transformers import CLIPConfig, CLIPModel

    return skeleton(lambda: CLIPModel(CLIPConfig(**(TINY["pickscore"] if tiny else FULL)))).state_dict()


def _videocrafter2(name: str, tiny: bool) -> dict[str, Tensor]:
    from diffusers import AutoencoderKL, UNet3DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from guidedcd.models.checkpoints.architecture import DDCONFIG, TEXT, Architecture
    from guidedcd.models.checkpoints.loading import skeleton
    from guidedcd.models.checkpoints.lvdm_unet import unet_arguments
    from guidedcd.models.checkpoints.lvdm_vae_text import rename_text, rename_vae, text_arguments, vae_arguments
    from guidedcd.models.checkpoints.unet import lvdm_state
    from guidedcd.models.checkpoints.videocrafter2 import PREFIXES
    from guidedcd.models.guidance_inputs import GuidanceProjection

    sizes = {"unet": TINY["unet"], "ddconfig": {**DDCONFIG, **TINY["ddconfig"]}, "text": {**TEXT, **TINY["text"]}}
    arch = Architecture(**sizes) if tiny else Architecture()
    unet = skeleton(lambda: UNet3DConditionModel(**unet_arguments(arch.unet)))
    if name == "student":
        unet.time_embedding.cond_proj = skeleton(lambda: GuidanceProjection(arch.unet["model_channels"], 256, 256))
        return lvdm_state(arch.unet, unet)
    vae = skeleton(lambda: AutoencoderKL(**vae_arguments(arch.ddconfig, arch.embed_dim, arch.scale))).state_dict()
    text = skeleton(lambda: CLIPTextModel(CLIPTextConfig(**text_arguments(arch.text, arch.layer)))).state_dict()
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    used, unused = rename_text(arch.text, arch.layer)
    parts = {
        "unet": lvdm_state(arch.unet, unet),
        "vae": {key: vae[name] for key, name in rename_vae(arch.ddconfig).items()},
        "text": {
            key: text[names] if isinstance(names, str) else torch.cat([text[name] for name in names])
            for key, names in used.items()
        }
        | {key: torch.empty(2, device="meta") for key in unused},
    }
    return {PREFIXES[part] + key: value for part, values in parts.items() for key, value in values.items()}


def random_state(shapes: Shapes, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Random weights on the CPU, drawn on `device`, under which activations neither vanish nor explode."""
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(shape[-1]).expand(shape).contiguous()
            continue
        value = torch.randn(shape, generator=generator, device=device)
        if len(shape) > 1:
            value *= 1 / math.sqrt(math.prod(shape[1:]))
        elif key.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        state[key] = value.cpu()
    return state


def write(name: str, shapes: Shapes, folder: Path, device: torch.device) -> Path:
    """Draw weights and write them as published: the container, the names, float32."""
    state = random_state(shapes, device)
    path = folder / FILES[name]
    if name == "videocrafter2":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        state["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
        state |= {"betas": betas.float(), "scale_arr": torch.ones(1400)}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
        return path
    if hasattr(torch.serialization, "set_crc32_options"):  # the sums cost as much time as the writing
        torch.serialization.set_crc32_options(False)
    wrapper = {"videocrafter2": "state_dict", "hps": "state_dict", "internv2": "module"}.get(name)
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def sizes_file(name: str, folder: Path) -> Path:
    """The tiny reward model's sizes, for the option `arch`."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(TINY["clip" if name == "hps" else name]))
    return path


def vocabulary(folder: Path, size: int) -> Path:
    """A vocab.txt of `size` invented words, letters among them: tokens without meaning at their true cost."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    words = (words + [f"##w{i}" for i in range(size)])[:size]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path
