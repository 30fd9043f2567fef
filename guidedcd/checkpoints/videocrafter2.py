"""VideoCrafter2's checkpoint as stock diffusers and transformers modules, exactly, and its UNet back again.

Every tensor maps one to one. The only thing the stock UNet lacks is the frame-rate MLP, whose output is added to the
time embedding: for a fixed frame rate it is a constant and folds into `time_embedding.linear_2.bias`; otherwise it
stays a module behind `time_embedding` (see `guidedcd.conditioning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from guidedcd.checkpoints.architecture import Architecture, check_fps
from guidedcd.checkpoints.files import View, exists, open_state
from guidedcd.checkpoints.formats import wrong_keys
from guidedcd.checkpoints.names import (
    FPS_KEYS,
    PUBLISHED,
    rename_text,
    rename_unet,
    rename_vae,
    text_arguments,
    unet_arguments,
    unet_config,
    vae_arguments,
)
from guidedcd.checkpoints.placing import assign, place, skeleton
from guidedcd.conditioning import FpsEmbedding, GuidanceProjection
from guidedcd.errors import GuidedCDError
from guidedcd.schedule import NoiseSchedule

__all__ = [
    "FPS_KEYS",
    "PUBLISHED",
    "VideoCrafter2",
    "fps_vector",
    "load",
    "load_text",
    "load_unet",
    "load_vae",
    "lvdm_name",
    "lvdm_state",
    "rename_unet",
    "unet_arguments",
    "unet_config",
]

PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."}
"""Key prefixes of the three networks."""

BUFFERS = frozenset(
    {
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
        *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
        *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
        *("scale_arr", "logvar"),
    }
)
"""Tables of the schedule, which are recomputed."""

WHERE = (
    "VideoCrafter publishes it on the Hugging Face hub; download it with "
    "`hf download VideoCrafter/VideoCrafter2 model.ckpt --local-dir .` and give its path"
)


def with_extras(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's arguments, with the conditioning inputs that the checkpoint really has."""
    found = unet_config(config)
    found["fps_cond"] = FPS_KEYS[0] in state
    for name in ("time_cond_proj", "motion_cond_proj"):
        key = f"{name}.weight"
        found[f"{name}_dim"] = state[key].shape[1] if key in state else None
    return found


def fps_vector(state: Mapping[str, Tensor], fps: int) -> Tensor:
    """The frame-rate MLP's output (width,) for one frame rate, in float64."""
    weights = {key: state[key].double() for key in FPS_KEYS}
    channels = weights["fps_embedding.0.weight"].shape[1]
    sinusoid = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.tensor([fps])).double()
    hidden = F.linear(sinusoid, weights["fps_embedding.0.weight"], weights["fps_embedding.0.bias"])
    return F.linear(F.silu(hidden), weights["fps_embedding.2.weight"], weights["fps_embedding.2.bias"])[0]


def load_unet(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    fps: int | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> UNet3DConditionModel:
    """A stock UNet with the weights of an lvdm state dict (keys without prefix), in eval mode.

    Which of the conditioning inputs exist is read from the keys: `time_embedding.cond_proj` is a `GuidanceProjection`
    when the state has `time_cond_proj`.

    Args:
        config: lvdm's constructor arguments, or a config that contains them.
        state: From lvdm key to tensor; items are read one at a time.
        fps: Frame rate to fold into the weights, in frames per second; None keeps the frame-rate MLP as a module,
            so that `guidedcd.conditioning.set_fps` can set it per sample and it can be trained.
        dtype: Of the parameters; folding is computed in float64 and rounded once.
        device: Where they are put.

    Raises:
        GuidedCDError: A key or a shape does not match.
    """
    config = with_extras(config, state)
    fps = None if fps is None else check_fps(fps)
    arguments, rename = unet_arguments(config), rename_unet(config)
    channels, width = arguments["block_out_channels"][0], 4 * arguments["block_out_channels"][0]

    def build() -> UNet3DConditionModel:
        unet = UNet3DConditionModel(**arguments)
        if config["fps_cond"] and fps is None:
            unet.time_embedding.post_act = FpsEmbedding(channels, width)
        if config["time_cond_proj_dim"]:
            unet.time_embedding.cond_proj = GuidanceProjection(
                channels, config["time_cond_proj_dim"], config["motion_cond_proj_dim"] or 0
            )
        return unet

    unet = skeleton(build)
    folded = config["fps_cond"] and fps is not None
    kept = {key: state[key] for key in FPS_KEYS} if folded else {}
    hidden = View(state, hidden=tuple(kept)) if folded else state
    place(
        unet,
        {key: name for key, name in rename.items() if key not in kept},
        hidden,
        what="videocrafter2 UNet",
        dtype=dtype,
        device=device,
    )
    if folded:
        bias = state["time_embed.2.bias"].double() + fps_vector(kept, fps)
        assign(unet, "time_embedding.linear_2.bias", bias.to(device=device, dtype=dtype))
    return unet.eval()


def lvdm_name(config: Mapping[str, Any]) -> dict[str, str]:
    """From every diffusers name to its lvdm key, the inverse of `rename_unet`; for gradients under official names."""
    return {name: key for key, name in rename_unet(config).items()}


def lvdm_state(
    config: Mapping[str, Any],
    unet: nn.Module,
    *,
    fps: int | None = None,
    fps_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The UNet's weights under their lvdm keys, shapes and all; the inverse of `load_unet`.

    Args:
        config: lvdm's constructor arguments; the conditioning inputs are those of `unet`.
        unet: A network as `load_unet` gives it, trained or not.
        fps: Frame rate that was folded into the weights; None when the MLP is a module of `unet`.
        fps_weights: The frame-rate MLP that was folded (keys `FPS_KEYS`): its constant is taken out again. Without
            it the exported MLP is zero and the constant stays in the time embedding, which is the same for this `fps`
            and, unlike the original, for every other.
    """
    params = unet.state_dict()
    config = {**unet_config(config), "fps_cond": True}
    projection = unet.time_embedding.cond_proj
    config["time_cond_proj_dim"] = getattr(projection, "omega_width", None)
    config["motion_cond_proj_dim"] = getattr(projection, "lambda_width", None)
    state = {}
    for key, name in rename_unet(config).items():
        if name not in params:
            continue
        value = params[name].detach()
        conv = key.startswith("init_attn.") or not config.get("use_linear", True)
        if conv and key.endswith(("proj_in.weight", "proj_out.weight")):
            ones = 1 if key.startswith("init_attn.") or _temporal(key) else 2
            value = value.reshape(*value.shape, *[1] * ones)
        state[key] = value
    if unet.time_embedding.post_act is None:
        bias = state["time_embed.2.bias"]
        if fps_weights is None or fps is None:
            width, channels = state["time_embed.0.weight"].shape
            shapes = ((width, channels), (width,), (width, width), (width,))
            fps_weights = {key: bias.new_zeros(shape) for key, shape in zip(FPS_KEYS, shapes, strict=True)}
        else:
            constant = fps_vector(fps_weights, fps).to(bias.device)
            state["time_embed.2.bias"] = (bias.double() - constant).to(bias.dtype)
        state |= {key: fps_weights[key].to(bias) for key in FPS_KEYS}
    return {key: state[key].contiguous() for key in rename_unet(config)}


def _temporal(key: str) -> bool:
    """Whether an lvdm key lies in a temporal transformer, which follows the spatial one."""
    parts = key.split(".")
    return parts[1 if parts[0] == "middle_block" else 2] == "2"


def load_vae(
    arch: Architecture,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AutoencoderKL:
    """A stock autoencoder with the weights of a latent-diffusion one (keys without prefix), in eval mode."""
    vae = skeleton(lambda: AutoencoderKL(**vae_arguments(arch.ddconfig, arch.embed_dim, arch.scale)))
    place(vae, rename_vae(arch.ddconfig), state, what="videocrafter2 autoencoder", dtype=dtype, device=device)
    return vae.eval()


def load_text(
    arch: Architecture,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A stock `CLIPTextModel` with the weights of open_clip's text tower (keys without prefix), in eval mode.

    Its `last_hidden_state` is the penultimate block's output after the final norm, when called with token ids only.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**text_arguments(arch.text, arch.layer), attn_implementation="sdpa")
    model = skeleton(lambda: CLIPTextModel(config))
    prefix = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    rename, unused = rename_text(arch.text, arch.layer, prefix)
    unused = [*unused, "attn_mask"]
    place(model, rename, state, what="videocrafter2 text tower", dtype=dtype, device=device, unused=unused)
    return model.eval()


@attrs.frozen(kw_only=True, eq=False)
class VideoCrafter2:
    """The parts of a checkpoint."""

    arch: Architecture
    unet: UNet3DConditionModel
    vae: AutoencoderKL
    text: nn.Module
    """A `CLIPTextModel`; `guidedcd.checkpoints.tokens` has its tokens."""
    schedule: NoiseSchedule


def load(
    path: str | Path,
    *,
    fps: int | None,
    arch: Architecture | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    student: Mapping[str, Tensor] | None = None,
) -> VideoCrafter2:
    """Read a `model.ckpt`, one tensor at a time.

    Args:
        path: The file, as published or as safetensors with the same keys.
        fps: Frame rate to fold in; None keeps it an input, see `load_unet`.
        arch: What it was built with; None is VideoCrafter2 as published.
        dtype: Of all parameters.
        device: Where they are put.
        student: Another state dict for the UNet (keys without prefix) to load in place of the file's own.

    Raises:
        GuidedCDError: The file is missing, damaged, or something else.
    """
    arch = arch or Architecture()
    state = open_state(exists(path, "VideoCrafter2's model.ckpt", WHERE))
    views = split(state)
    kept = {"dtype": dtype, "device": device}
    unet = load_unet(arch.unet, views["unet"] if student is None else student, fps=fps, **kept)
    vae = load_vae(arch, views["vae"], **kept)
    text = load_text(arch, views["text"], **kept)
    return VideoCrafter2(arch=arch, unet=unet, vae=vae, text=text, schedule=schedule(arch, state))


def split(state: Mapping[str, Tensor]) -> dict[str, View]:
    """The three networks of a whole checkpoint.

    Raises:
        GuidedCDError: A part is missing, or there are keys that belong to none.
    """
    views = {part: View(state, prefix) for part, prefix in PARTS.items()}
    missing = [prefix + "*" for part, prefix in PARTS.items() if not views[part]]
    stray = [key for key in state if key not in BUFFERS and not key.startswith(tuple(PARTS.values()))]
    if missing or stray:
        raise GuidedCDError(wrong_keys("videocrafter2", missing, stray, state))
    return views


def schedule(arch: Architecture, state: Mapping[str, Tensor]) -> NoiseSchedule:
    """The noise schedule of the architecture, checked against the table in the file if there is one."""
    made = NoiseSchedule.scaled_linear(arch.timesteps, arch.beta_start, arch.beta_end)
    if "alphas_cumprod" in state:
        stored = state["alphas_cumprod"].float()
        if stored.shape != made.alphas_cumprod.shape or not torch.allclose(stored, made.alphas_cumprod, atol=1e-3):
            raise GuidedCDError(
                "videocrafter2: the file's alphas_cumprod is not the schedule of the architecture "
                f"(linear_start {arch.beta_start}, linear_end {arch.beta_end}, {arch.timesteps} timesteps); "
                "give the architecture that the file was made with (--arch config.json)"
            )
    return made
