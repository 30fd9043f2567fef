"""Detection of published checkpoint formats by their keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

FORMATS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "a VideoCrafter2 model.ckpt",
        ("model.diffusion_model.init_attn.", "first_stage_model.", "cond_stage_model.model."),
        "--teacher videocrafter2:FILE",
    ),
    (
        "an image or other latent-diffusion checkpoint (no temporal layers)",
        ("model.diffusion_model.", "first_stage_model."),
        "no loader here; convert it with diffusers",
    ),
    (
        "a T2V-Turbo-v2 student (unet_mg.pt, unet_no_mg.pt)",
        ("time_cond_proj.", "input_blocks.", "init_attn."),
        "--student FILE",
    ),
    ("a bare VideoCrafter2 UNet", ("init_attn.", "input_blocks.", "time_embed."), "--teacher videocrafter2:FILE"),
    (
        "a diffusers AnimateDiff UNet",
        ("down_blocks.0.motion_modules.", "conv_in.", "time_embedding."),
        "--teacher animatediff:FOLDER",
    ),
    (
        "a diffusers video UNet",
        ("down_blocks.0.temp_convs.", "transformer_in.", "time_embedding."),
        "--teacher unet3d:FOLDER",
    ),
    ("a diffusers AutoencoderKL", ("decoder.up_blocks.", "encoder.down_blocks."), "the folder above it"),
    ("InternVideo2 stage 2", ("vision_encoder.", "text_encoder.", "vision_proj."), "--reward internv2:FILE"),
    ("ViCLIP", ("vision_encoder.", "text_encoder.", "temp"), "no loader here; --reward internv2:FILE scores videos"),
    ("ImageReward", ("blip.visual_encoder.", "mlp.layers."), "no loader here; --reward pickscore:FILE is alike"),
    (
        "an open_clip model (HPSv2.1 or CLIP)",
        ("visual.transformer.", "transformer.resblocks.", "logit_scale"),
        "--reward hps:FILE or --reward clip:FILE",
    ),
    (
        "a transformers CLIP model (PickScore)",
        ("vision_model.encoder.", "text_model.encoder.", "logit_scale"),
        "--reward pickscore:FILE",
    ),
    (
        "a PEFT adapter",
        ("base_model.model.",),
        "load it with peft on top of its base model",
    ),
)
"""Description, key prefixes that must all occur, and the option that reads the file; the first match counts."""


def sniff(keys: Iterable[str]) -> tuple[str, str] | None:
    """The description of a checkpoint with these keys and the option that reads it; None if it is unknown."""
    keys = list(keys)
    for wrapper in ("module.", "state_dict.", "model."):
        stripped = [key.removeprefix(wrapper) for key in keys]
        for candidate in (keys, stripped):
            for description, prefixes, where in FORMATS:
                if all(any(key.startswith(prefix) for key in candidate) for prefix in prefixes):
                    return description, where
    return None


def listed(keys: Sequence[str], count: int = 3) -> str:
    """The first few keys and the number of the others."""
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more


def wrong_keys(what: str, missing: Sequence[str], unexpected: Sequence[str], keys: Collection[str]) -> str:
    """An error message of one line about a checkpoint whose keys `what` cannot read."""
    problems = []
    if missing:
        problems.append(f"missing {listed(missing)}")
    if unexpected:
        problems.append(f"unexpected {listed(unexpected)}")
    detected = sniff(keys)
    if detected is None:
        hint = "the file has another architecture or format"
    elif what.split()[0] in detected[1] or (what.endswith("UNet") and detected[1].startswith("--student")):
        option = "--arch config.json" if what.startswith("videocrafter2") else "the option arch"
        hint = f"this is the right format in another size: give the architecture it was made with ({option})"
    else:
        hint = f"this looks like {detected[0]}: use {detected[1]}"
    return f"{what}: the keys do not match: {'; '.join([*problems, hint])}"
