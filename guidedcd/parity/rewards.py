"""Reference numbers of reward models: pixels, token ids, features, scores and gradients.

A folder is recognised by its config.json: an image-text model ("kind"), a video-text model ("vision" and "bert") or
pixel preparation ("crops"); or by a tokens.json. Weights come from weights.safetensors, else from checkpoint.pt. Golden
files contain inputs and outputs side by side under "case.name"; only the names listed as inputs are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from safetensors import safe_open
from torch import Tensor

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.loading import open_weights
from guidedcd.parity import Results, Tolerance, going_on
from guidedcd.rewards import pixels
from guidedcd.rewards.tokenizers import ClipTokens

CASES = "cases.safetensors"
POSITIONS = "pos_embed_interp.safetensors"
TOKENS = "tokens.json"


def compute(folder: Path) -> Results:
    """Everything that the inputs in `folder` define, by file name."""
    results: Results = {}
    if (folder / TOKENS).is_file():
        with going_on(folder / TOKENS):
            results[TOKENS] = _tokens(json.loads((folder / TOKENS).read_text(encoding="utf-8")))
    if (folder / POSITIONS).is_file():
        with going_on(folder / POSITIONS):
            results[POSITIONS] = _positions(folder / POSITIONS)
    if (folder / CASES).is_file():
        with going_on(folder / CASES):
            config = _config(folder)
            if config.get("kind") in ("hpsv2", "clip"):
                results[CASES] = _image_text(folder, config)
            elif "vision" in config and "bert" in config:
                results[CASES] = _video_text(folder, config)
            elif "crops" in config:
                results[CASES] = _preparation(folder, config)
    return results


def tolerance(file: str, key: str) -> Tolerance | None:
    """The tolerance of one value, from the tables that accompany the reference numbers."""
    name = key.rpartition(".")[2]
    if name in ("tokens", "input_ids", "attention_mask", "images", "video") or file.endswith(TOKENS):
        return Tolerance(0.0, 0.0)
    if name.startswith("grad_"):
        return Tolerance(1e-4, 1e-7)
    if name.endswith("_raw") or name.endswith(("_tokens", "_pooled")):
        return Tolerance(1e-4, 1e-5)
    if name == "score_x_logit_scale":
        return Tolerance(0.0, 5e-5)
    if name == "score" or name.endswith("_features"):
        return Tolerance(0.0, 5e-6)
    return Tolerance(0.0, 1e-5)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config if isinstance(config, dict) else {}


def _weights(folder: Path) -> Mapping[str, Tensor]:
    names = [name for name in ("weights.safetensors", "checkpoint.pt") if (folder / name).is_file()]
    return open_weights(folder / names[0], folder.name)


def _inputs(path: Path, names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """By case, the tensors whose name after the last dot is one of `names`; no others are read."""
    cases: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            case, _, name = key.rpartition(".")
            if name in names:
                cases.setdefault(case, {})[name] = file.get_tensor(key)
    return cases


def _image_text(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from guidedcd.rewards.image_text import load_clip

    sizes = {**config["model_cfg"], "quick_gelu": config.get("quick_gelu", False)}
    model = load_clip(sizes, _weights(folder), config["kind"])
    prepare = {"hpsv2": pixels.hps, "clip": pixels.clip}[config["kind"]]
    size, antialias = config.get("image_size") or model.visual.image_size[0], config.get("antialias", True)
    results: dict[str, Tensor] = {}
    for case, inputs in _inputs(folder / CASES, ("images", "tokens")).items():
        with going_on(folder / CASES / case):
            captions = config.get("captions", {}).get(case)
            tokens = ClipTokens(model.context_length)(captions)[0] if captions else inputs["tokens"]
            values = _score_images(model, inputs["images"], tokens, lambda images: prepare(images, size, antialias))
            results.update({f"{case}.{name}": value.detach() for name, value in values.items()})
    return results


def _score_images(model: Any, images: Tensor, tokens: Tensor, prepare: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    prepared = prepare(images)
    image_raw = model.encode_image(prepared)
    with torch.no_grad():
        text_raw = model.encode_text(tokens)
    image, text = nnf.normalize(image_raw, dim=-1), nnf.normalize(text_raw, dim=-1)
    score = (image * text.repeat(len(image) // len(text), 1)).sum(-1)  # captions tiled, as in the reference
    (grad,) = torch.autograd.grad(score.mean(), images)
    return {
        "images": images,
        "tokens": tokens,
        "pixel_values": prepared,
        "image_features_raw": image_raw,
        "image_features": image,
        "text_features_raw": text_raw,
        "text_features": text,
        "score": score,
        "score_x_logit_scale": score * model.logit_scale.exp(),
        "grad_images": grad,
    }


def _video_text(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from guidedcd_internv2.reward import load_internvideo2

    gelu = "tanh" if "tanh" in str(config["vision"].get("act", "")) else "erf"
    model = load_internvideo2(config, _weights(folder), gelu=gelu)
    size, antialias = config["vision"]["img_size"], config.get("antialias", True)
    results: dict[str, Tensor] = {}
    for case, inputs in _inputs(folder / CASES, ("video", "input_ids", "attention_mask")).items():
        with going_on(folder / CASES / case):
            values = inputs | _score_video(
                model, **inputs, prepare=lambda video: pixels.internvideo2(video, size, antialias)
            )
            results.update({f"{case}.{name}": value.detach() for name, value in values.items()})
    return results


def _score_video(
    model: Any, video: Tensor, input_ids: Tensor, attention_mask: Tensor, prepare: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    tower, video = model.vision_encoder, video.clone().requires_grad_()
    prepared = prepare(video)
    tokens = tower.tokens(prepared)
    pooled = tower.clip_projector(tokens)
    projected = model.vision_proj(pooled)
    features = projected / projected.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        text_tokens = model.text_encoder(input_ids, attention_mask)
        text = model.encode_text(input_ids, attention_mask)
    score = (features * text).sum(-1)
    (grad,) = torch.autograd.grad(score.mean(), video)
    return {
        "pixel_values": prepared,
        "vision_tokens": tokens,
        "vision_pooled": pooled,
        "video_features": features,
        "text_tokens": text_tokens,
        "text_pooled": text_tokens[:, 0],
        "text_features": text,
        "score": score,
        "grad_video": grad,
        "pos_embed_used": tower.positions(video.shape[1]),
    }


def _positions(path: Path) -> dict[str, Tensor]:
    from guidedcd_internv2.vision import interpolate_positions

    results: dict[str, Tensor] = {}
    for case, inputs in _inputs(path, ("in",)).items():
        match = re.fullmatch(r"t(\d+)to(\d+)_g(\d+)to(\d+)", case)
        if match is None:
            raise GuidedCDError(f"The case '{case}' does not have the form t4to8_g7to14.")
        t, t_new, g, g_new = map(int, match.groups())
        results[f"{case}.in"] = inputs["in"]
        results[f"{case}.out"] = interpolate_positions(inputs["in"], (t, t_new), (g, g_new))
    return results


def _preparation(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every preparation of every image, or only those listed under "shapes" where the config has that list."""
    with safe_open(folder / CASES, "pt") as file:
        inputs = {key: file.get_tensor(key) for key in file.keys() if key.startswith(("input.", "input_u8."))}  # noqa: SIM118
    shapes, results = config.get("shapes", {}), dict(inputs)
    for key, value in inputs.items():
        kind, _, image = key.partition(".")
        size = shapes.get(f"clip.{image}", [224 if image == "real" else config["S"]])[-1]
        values = _from_bytes(value, image, size) if kind == "input_u8" else _from_floats(value, image, size, config)
        results.update({name: pixel for name, pixel in values.items() if not shapes or name in shapes})
    return results


def _from_floats(images: Tensor, image: str, size: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    # Images named "quirk..." record that the reference neither pads nor crops when one side already fits.
    quirk = image.startswith("quirk")
    values: dict[str, Tensor] = {}
    for antialias, suffix in ((True, ""), (False, "_noaa")):
        values[f"hpsv2{suffix}.{image}"] = pixels.hps(images, size, antialias, always_pad=not quirk)
        values[f"clip{suffix}.{image}"] = pixels.clip(images, size, antialias)
        values[f"imagereward{suffix}.{image}"] = pixels.image_reward(images, size, antialias)
    if quirk:
        values[f"viclip_iv2.{image}"] = pixels.internvideo2(images, size, always_crop=False)
    for name, crop in config["crops"].items():
        if name.rpartition(".")[0] == image:
            offsets = (crop["top"], crop["left"])
            values[f"viclip_iv2.{name}"] = pixels.internvideo2(images, size, offsets=offsets)
    return values


def _from_bytes(image_u8: Tensor, image: str, size: int) -> dict[str, Tensor]:
    """open_clip's own evaluation transform of a PIL image, and this package's of the same bytes, for comparison."""
    from open_clip import image_transform
    from PIL import Image

    picture = Image.fromarray(image_u8.permute(1, 2, 0).numpy())
    return {
        f"openclip_pil_val.{image}": image_transform(size, is_train=False)(picture),
        f"clip_from_u8.{image}": pixels.clip(image_u8[None].float() / 255, size)[0],
    }


def _tokens(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Ids and counts of the captions in golden["rows"], by each of the CLIP tokenizers."""
    from guidedcd.parity.tokenizers import ViClip
    from guidedcd.rewards.tokenizers import TransformersClipTokens

    length = golden.get("context_length", 77)
    clip, transformers = ClipTokens(length), TransformersClipTokens(length)
    short, long = ViClip(32), ViClip(length)
    rows = []
    for caption in (row["caption"] for row in golden["rows"]):
        ids, count = clip([caption])[0][0].tolist(), clip.count(caption)
        padded_ids, mask = transformers([caption])
        rows.append(
            {
                "caption": caption,
                "open_clip_ids": ids,
                "n_tokens_untruncated_with_sot_eot": count,
                f"truncated_at_{length}": count > length,
                "hpsv2_same": True,  # the reward `hps` uses this same tokenizer
                "viclip32_ids": short(caption),
                f"viclip_same_at_{length}": long(caption) == ids,
                "hf_clip_same": (padded_ids * mask)[0].tolist() == ids,
            }
        )
    description = {key: value for key, value in golden.items() if key != "rows"}
    return {**description, "context_length": length, **clip.special, "rows": rows}
