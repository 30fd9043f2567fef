"""Arguments and weight names of lvdm's UNet for the stock diffusers class, and back; without tensors.

Every function takes the published constructor arguments, so that any size of the same architecture can be read.
The table lists the keys in the order of the original state dict, which T2V-Turbo v1's file relies on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

_NEEDED = ("model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "context_dim")
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
    """The UNet's constructor arguments from a config in any published structure.

    Raises:
        GuidedCDError: The config contains none.
    """
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
        GuidedCDError: The config has a layer that the stock class lacks.
    """
    config = unet_config(config)
    missing = [name for name in _NEEDED if config.get(name) is None]
    if missing:
        raise GuidedCDError(f"the UNet's arguments lack {', '.join(missing)}")
    for name, supported in _FIXED.items():
        if config.get(name, supported) != supported:
            raise GuidedCDError(f"the architecture has {name} = {config[name]!r}; only {supported!r} can be read")
    head = config.get("num_head_channels", -1)
    channels = [config["model_channels"] * mult for mult in config["channel_mult"]]
    if config["channel_mult"][0] != 1:
        raise GuidedCDError(f"channel_mult must begin with 1: {list(config['channel_mult'])}")
    if head < 1 or any(width % head for width in channels):
        raise GuidedCDError(f"num_head_channels = {head} must divide the block widths {channels}")
    groups = config.get("norm_num_groups", 32)  # the original code supports 32 only; our own exports may differ
    if any(width % groups for width in channels):
        raise GuidedCDError(f"the block widths {channels} must be multiples of {groups}")
    attended = [2**level in config["attention_resolutions"] for level in range(len(channels))]
    return {
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "block_out_channels": tuple(channels),
        "layers_per_block": config["num_res_blocks"],
        "cross_attention_dim": config["context_dim"],
        "attention_head_dim": head,
        "norm_num_groups": groups,
        "norm_eps": 1e-5,
        "down_block_types": tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attended),
        "up_block_types": tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attended)),
    }


def lvdm_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """lvdm's constructor arguments of a `UNet3DConditionModel` with these; the inverse of `unet_arguments`.

    Raises:
        GuidedCDError: lvdm's UNet cannot have that shape.
    """
    widths, down, up = (list(arguments[k]) for k in ("block_out_channels", "down_block_types", "up_block_types"))
    head = arguments["attention_head_dim"]
    same = [kind.replace("Down", "Up") for kind in reversed(down)] == up
    if any(width % widths[0] for width in widths) or not same or not isinstance(head, int):
        raise GuidedCDError("this network is not symmetric as VideoCrafter2's is, so it has no T2V-Turbo layout")
    config = {
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": arguments["layers_per_block"],
        "attention_resolutions": [2**level for level, kind in enumerate(down) if kind.startswith("CrossAttn")],
        "num_head_channels": head,
        "context_dim": arguments["cross_attention_dim"],
        "norm_num_groups": arguments["norm_num_groups"],
    }
    derived = unet_arguments(config)
    for name, value in derived.items():
        actual = arguments.get(name, value)
        if (list(actual) if isinstance(actual, (list, tuple)) else actual) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise GuidedCDError(f"this network has {name} = {actual}; T2V-Turbo's layout has no place for that")
    return {**PUBLISHED, **config}


def _leaves(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


_ATTENTION = [f"to_{letter}.weight" for letter in "qkv"] + _leaves("to_out.0")
_TRANSFORMER = [
    *_leaves("norm", "proj_in"),
    *(f"transformer_blocks.0.attn1.{leaf}" for leaf in _ATTENTION),
    *(f"transformer_blocks.0.{leaf}" for leaf in _leaves("ff.net.0.proj", "ff.net.2")),
    *(f"transformer_blocks.0.attn2.{leaf}" for leaf in _ATTENTION),
    *(f"transformer_blocks.0.{leaf}" for leaf in _leaves("norm1", "norm2", "norm3")),
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
    """The diffusers name of every lvdm key of the config's UNet, frame rate and guidance inputs included."""
    config = unet_config(config)
    count, mults = config["num_res_blocks"], list(config["channel_mult"])
    attended = [2**level in config["attention_resolutions"] for level in range(len(mults))]
    names: dict[str, str] = {}

    def both(source: str, target: str, leaves: tuple[str, ...] | list[str] = ("weight", "bias")) -> None:
        names.update({f"{source}.{leaf}": f"{target}.{leaf}" for leaf in leaves})

    def resnet(source: str, block: str, j: int, widens: bool) -> None:
        for old, new in _RESNET.items():
            both(f"{source}.{old}", f"{block}.resnets.{j}.{new}")
        if widens:
            both(f"{source}.skip_connection", f"{block}.resnets.{j}.conv_shortcut")
        for k in range(1, 5):
            for i in (0, 2 if k == 1 else 3):
                both(f"{source}.temopral_conv.conv{k}.{i}", f"{block}.temp_convs.{j}.conv{k}.{i}")

    def attention(source: str, first: int, block: str, j: int) -> None:
        both(f"{source}.{first}", f"{block}.attentions.{j}", _TRANSFORMER)
        both(f"{source}.{first + 1}", f"{block}.temp_attentions.{j}", _TRANSFORMER)

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
            source = f"input_blocks.{1 + level * (count + 1) + j}"
            resnet(f"{source}.0", block, j, width != mult)
            if attended[level]:
                attention(source, 1, block, j)
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
            source = f"output_blocks.{up * (count + 1) + j}"
            resnet(f"{source}.0", block, j, width + skips.pop() != mults[level])
            if attended[level]:
                attention(source, 1, block, j)
            width = mults[level]
        if level:
            both(f"{source}.{3 if attended[level] else 1}.conv", f"{block}.upsamplers.0.conv")
    both("out.0", "conv_norm_out")
    both("out.2", "conv_out")
    return names
