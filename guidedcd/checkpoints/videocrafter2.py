"""VideoCrafter2's UNet (lvdm keys) as a stock diffusers `UNet3DConditionModel`, exactly, and back.

Every tensor maps one to one. The only thing the stock class lacks is the frame-rate MLP, whose output is added to the
time embedding: for a fixed frame rate it is a constant and folds into `time_embedding.linear_2.bias`; otherwise it stays
a module behind `time_embedding` (see `guidedcd.conditioning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from guidedcd.checkpoints.placing import assign, place, skeleton
from guidedcd.conditioning import FpsEmbedding, GuidanceProjection
from guidedcd.errors import GuidedCDError

PUBLISHED: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "transformer_depth": 1,
    "context_dim": 1024,
    "use_linear": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "temporal_length": 16,
    "addition_attention": True,
    "fps_cond": True,
}
"""Constructor arguments of the published UNet, names as in lvdm."""

FPS_KEYS = tuple(f"fps_embedding.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias"))
"""The frame-rate MLP."""

_FIXED = {
    "use_relative_position": False,
    "use_causal_attention": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "tempspatial_aware": False,
    "use_image_attention": False,
    "conv_resample": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "addition_attention": True,
    "transformer_depth": 1,
    "temporal_transformer_depth": 1,
    "dims": 2,
}


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The UNet's constructor arguments inside any of the shapes in which a config is written down."""
    for key in ("model", "params", "unet_config", "unet_params"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return unet_config(inner)
    if "model_channels" not in config:
        raise GuidedCDError("the architecture file has no model_channels: it must hold lvdm's UNetModel arguments")
    return dict(config)


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of `UNet3DConditionModel` from those of lvdm's `UNetModel`.

    Raises:
        GuidedCDError: The config asks for a layer that the stock class does not have.
    """
    config = unet_config(config)
    for name, wanted in _FIXED.items():
        if config.get(name, wanted) != wanted:
            raise GuidedCDError(f"the architecture has {name} = {config[name]!r}; only {wanted!r} can be read")
    head = config.get("num_head_channels", -1)
    channels = [config["model_channels"] * mult for mult in config["channel_mult"]]
    if config["channel_mult"][0] != 1:
        raise GuidedCDError(f"channel_mult must begin with 1: {list(config['channel_mult'])}")
    if head < 1 or any(width % head for width in channels):
        raise GuidedCDError(f"num_head_channels = {head} must divide the block widths {channels}")
    if any(width % 32 for width in channels):
        raise GuidedCDError(f"the block widths {channels} must be multiples of 32")
    attended = [2**level in config["attention_resolutions"] for level in range(len(channels))]
    return {
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "block_out_channels": tuple(channels),
        "layers_per_block": config["num_res_blocks"],
        "cross_attention_dim": config["context_dim"],
        "attention_head_dim": head,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "down_block_types": tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attended),
        "up_block_types": tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attended)),
    }


def _leaves(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


_ATTENTION = [f"to_{part}.weight" for part in "qkv"] + _leaves("to_out.0")
_TRANSFORMER = [
    *_leaves("norm", "proj_in"),
    *(f"transformer_blocks.0.{attn}.{leaf}" for attn in ("attn1", "attn2") for leaf in _ATTENTION),
    *(f"transformer_blocks.0.{leaf}" for leaf in _leaves("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3")),
    *_leaves("proj_out"),
]
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}


def rename_unet(config: Mapping[str, Any]) -> dict[str, str]:
    """From every lvdm key of the config's UNet to the diffusers name, frame rate and guidance inputs included."""
    config = unet_config(config)
    count, mults = config["num_res_blocks"], list(config["channel_mult"])
    attended = [2**level in config["attention_resolutions"] for level in range(len(mults))]
    names: dict[str, str] = {}

    def both(ours: str, theirs: str, leaves: tuple[str, ...] | list[str] = ("weight", "bias")) -> None:
        names.update({f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in leaves})

    def resnet(ours: str, block: str, j: int, widens: bool) -> None:
        for old, new in _RESNET.items():
            both(f"{ours}.{old}", f"{block}.resnets.{j}.{new}")
        if widens:
            both(f"{ours}.skip_connection", f"{block}.resnets.{j}.conv_shortcut")
        for k in range(1, 5):
            for i in (0, 2 if k == 1 else 3):
                both(f"{ours}.temopral_conv.conv{k}.{i}", f"{block}.temp_convs.{j}.conv{k}.{i}")

    def attention(ours: str, first: int, block: str, j: int) -> None:
        both(f"{ours}.{first}", f"{block}.attentions.{j}", _TRANSFORMER)
        both(f"{ours}.{first + 1}", f"{block}.temp_attentions.{j}", _TRANSFORMER)

    both("time_embed.0", "time_embedding.linear_1")
    both("time_embed.2", "time_embedding.linear_2")
    if config.get("fps_cond", True):
        both("fps_embedding.0", "time_embedding.post_act.linear_1")
        both("fps_embedding.2", "time_embedding.post_act.linear_2")
    if config.get("time_cond_proj_dim"):
        both("time_cond_proj", "time_embedding.cond_proj.time_cond_proj", ["weight"])
    if config.get("motion_cond_proj_dim"):
        both("motion_cond_proj", "time_embedding.cond_proj.motion_cond_proj", ["weight"])
        both("combine_proj", "time_embedding.cond_proj.combine_proj", ["weight"])
    both("input_blocks.0.0", "conv_in")

    skips, width = [1], 1  # widths of the skip connections and of the current layer, in units of model_channels
    for level, mult in enumerate(mults):
        block = f"down_blocks.{level}"
        for j in range(count):
            ours = f"input_blocks.{1 + level * (count + 1) + j}"
            resnet(f"{ours}.0", block, j, width != mult)
            if attended[level]:
                attention(ours, 1, block, j)
            width = mult
            skips.append(width)
        if level < len(mults) - 1:
            both(f"input_blocks.{(level + 1) * (count + 1)}.0.op", f"{block}.downsamplers.0.conv")
            skips.append(width)
    both("init_attn.0", "transformer_in", _TRANSFORMER)

    resnet("middle_block.0", "mid_block", 0, False)
    attention("middle_block", 1, "mid_block", 0)
    resnet("middle_block.3", "mid_block", 1, False)

    for up, level in enumerate(reversed(range(len(mults)))):
        block = f"up_blocks.{up}"
        for j in range(count + 1):
            ours = f"output_blocks.{up * (count + 1) + j}"
            resnet(f"{ours}.0", block, j, width + skips.pop() != mults[level])
            if attended[level]:
                attention(ours, 1, block, j)
            width = mults[level]
        if level:
            both(f"{ours}.{3 if attended[level] else 1}.conv", f"{block}.upsamplers.0.conv")
    both("out.0", "conv_norm_out")
    both("out.2", "conv_out")
    return names


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
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int) or fps < 1):
        raise GuidedCDError(f"fps must be a whole number of frames per second, at least 1: {fps!r}")
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
    hidden = _Without(state, kept) if folded else state
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
    """From every diffusers name to its lvdm key, the inverse of `rename_unet`; names gradients as the official code does."""
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


class _Without(Mapping):
    """A mapping with some keys hidden, without reading its values."""

    def __init__(self, whole: Mapping[str, Tensor], hidden: Mapping[str, Tensor]) -> None:
        self._whole, self._keys = whole, [key for key in whole if key not in hidden]

    def __getitem__(self, key: str) -> Tensor:
        return self._whole[key]

    def __iter__(self):
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
