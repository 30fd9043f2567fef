"""VideoCrafter2's UNet as a stock diffusers `UNet3DConditionModel`, exactly, and back.

Every tensor maps one to one. The only thing the stock class lacks is the frame-rate MLP, whose output is added to the
time embedding: for a fixed frame rate it is a constant and folds into `time_embedding.linear_2.bias`; otherwise it
stays a module behind `time_embedding` (see `guidedcd.models.guidance_inputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor
from torch.nn import functional as F

from guidedcd.models.checkpoints.architecture import check_fps
from guidedcd.models.checkpoints.loading import assign, fill_renamed, skeleton
from guidedcd.models.checkpoints.lvdm_unet import FPS_KEYS, rename_unet, unet_arguments, unet_config
from guidedcd.models.checkpoints.reading import View
from guidedcd.models.guidance_inputs import FpsEmbedding, GuidanceProjection


def with_extras(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's arguments, with the conditioning inputs that the checkpoint contains."""
    arguments = unet_config(config)
    arguments["fps_cond"] = FPS_KEYS[0] in state
    for name in ("time_cond_proj", "motion_cond_proj"):
        key = f"{name}.weight"
        arguments[f"{name}_dim"] = state[key].shape[1] if key in state else None
    return arguments


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
    copy: bool = True,
) -> UNet3DConditionModel:
    """A stock UNet with the weights of an lvdm state dict (keys without prefix), in eval mode.

    The keys define the conditioning inputs: `time_embedding.cond_proj` is a `GuidanceProjection`
    when the state has `time_cond_proj`.

    Args:
        config: lvdm's constructor arguments, or a config that contains them.
        state: From lvdm key to tensor; items are read one at a time.
        fps: Frame rate to fold into the weights, in frames per second; None keeps the frame-rate MLP as a module,
            so that `guidedcd.models.guidance_inputs.set_fps` can set it per sample and it can be trained.
        dtype: Of the parameters; folding is computed in float64 and rounded once.
        device: Where they are put.
        copy: False leaves tensors that need no conversion in the file; nothing may change them then.

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
    folded = fps if config["fps_cond"] else None
    mlp = {} if folded is None else {key: state[key] for key in FPS_KEYS}
    remaining = state if folded is None else View(state, hidden=tuple(mlp))
    fill_renamed(
        unet,
        {key: name for key, name in rename.items() if key not in mlp},
        remaining,
        what="videocrafter2 UNet",
        dtype=dtype,
        device=device,
        copy=copy,
    )
    if folded is not None:
        bias = state["time_embed.2.bias"].double() + fps_vector(mlp, folded)
        assign(unet, "time_embedding.linear_2.bias", bias.to(device=device, dtype=dtype))
    return unet.eval()


def lvdm_name(config: Mapping[str, Any]) -> dict[str, str]:
    """From every diffusers name to its lvdm key, the inverse of `rename_unet`; for gradients under official names."""
    return {name: key for key, name in rename_unet(config).items()}


def lvdm_state(
    config: Mapping[str, Any],
    unet: UNet3DConditionModel,
    *,
    fps: int | None = None,
    fps_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The UNet's weights under their lvdm keys, shapes and all; the inverse of `load_unet`.

    Args:
        config: lvdm's constructor arguments; the conditioning inputs are those of `unet`.
        unet: A network as `load_unet` gives it, trained or not.
        fps: Frame rate that was folded into the weights; None when the MLP is a module of `unet`.
        fps_weights: The frame-rate MLP that was folded (keys `FPS_KEYS`): its constant is subtracted again. Without
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
