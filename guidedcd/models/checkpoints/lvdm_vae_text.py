"""Arguments and weight names of the latent-diffusion autoencoder and open_clip's text tower, for stock classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guidedcd.errors import GuidedCDError


def vae_arguments(ddconfig: Mapping[str, Any], embed_dim: int, scale: float) -> dict[str, Any]:
    """Constructor arguments of `AutoencoderKL` from those of the latent-diffusion autoencoder.

    Raises:
        GuidedCDError: The config has a layer that the stock class lacks.
    """
    for name, supported in {"attn_resolutions": [], "double_z": True, "z_channels": embed_dim}.items():
        if ddconfig.get(name, supported) != supported:
            raise GuidedCDError(f"the autoencoder has {name} = {ddconfig[name]!r}; only {supported!r} can be read")
    widths = tuple(ddconfig["ch"] * mult for mult in ddconfig["ch_mult"])
    return {
        "in_channels": ddconfig.get("in_channels", 3),
        "out_channels": ddconfig.get("out_ch", 3),
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": ddconfig["num_res_blocks"],
        "latent_channels": embed_dim,
        "norm_num_groups": 32,
        "sample_size": ddconfig.get("resolution", 512),
        "scaling_factor": scale,
    }


def rename_vae(ddconfig: Mapping[str, Any]) -> dict[str, str]:
    """The diffusers name of every key of the latent-diffusion autoencoder."""
    count, mults = ddconfig["num_res_blocks"], list(ddconfig["ch_mult"])
    last = len(mults) - 1
    names: dict[str, str] = {}

    def both(source: str, target: str) -> None:
        names.update({f"{source}.{leaf}": f"{target}.{leaf}" for leaf in ("weight", "bias")})

    def resnet(source: str, target: str, widens: bool) -> None:
        for layer in ("norm1", "conv1", "norm2", "conv2"):
            both(f"{source}.{layer}", f"{target}.{layer}")
        if widens:
            both(f"{source}.nin_shortcut", f"{target}.conv_shortcut")

    def middle(half: str) -> None:
        resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", False)
        for old, new in {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}.items():
            both(f"{half}.mid.attn_1.{old}", f"{half}.mid_block.attentions.0.{new}")
        resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", False)

    both("encoder.conv_in", "encoder.conv_in")
    width = 1
    for level, mult in enumerate(mults):
        for j in range(count):
            resnet(f"encoder.down.{level}.block.{j}", f"encoder.down_blocks.{level}.resnets.{j}", width != mult)
            width = mult
        if level < last:
            both(f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv")
    middle("encoder")
    middle("decoder")
    both("decoder.conv_in", "decoder.conv_in")
    for level in reversed(range(len(mults))):  # the original counts the decoder's levels from the finest
        up = f"decoder.up_blocks.{last - level}"
        for j in range(count + 1):
            resnet(f"decoder.up.{level}.block.{j}", f"{up}.resnets.{j}", width != mults[level])
            width = mults[level]
        if level:
            both(f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv")
    for half in ("encoder", "decoder"):
        both(f"{half}.norm_out", f"{half}.conv_norm_out")
        both(f"{half}.conv_out", f"{half}.conv_out")
    both("quant_conv", "quant_conv")
    both("post_quant_conv", "post_quant_conv")
    return names


def text_arguments(text_cfg: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """Arguments of `CLIPTextConfig` from an open_clip text config; `layer` is "penultimate" or "last"."""
    for name, supported in {"hf_model_name": None, "embed_cls": False}.items():
        if text_cfg.get(name, supported) != supported:
            raise GuidedCDError(f"the text tower has {name} = {text_cfg[name]!r}; only {supported!r} can be read")
    if layer not in {"penultimate", "last"}:
        raise GuidedCDError(f"the text tower is read at layer {layer!r}; only 'penultimate' and 'last' are known")
    vocabulary = text_cfg.get("vocab_size", 49408)
    return {
        "vocab_size": vocabulary,
        "hidden_size": text_cfg["width"],
        "intermediate_size": int(text_cfg.get("mlp_ratio", 4.0) * text_cfg["width"]),
        "num_hidden_layers": text_cfg["layers"] - (layer == "penultimate"),
        "num_attention_heads": text_cfg["heads"],
        "max_position_embeddings": text_cfg.get("context_length", 77),
        "hidden_act": "quick_gelu" if text_cfg.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def rename_text(text_cfg: Mapping[str, Any], layer: str, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """The transformers name of every key of open_clip's text tower; several names for a fused weight.

    Args:
        text_cfg: open_clip's text config.
        layer: The output that is used, "penultimate" or "last".
        prefix: "text_model." for the transformers versions that have it.

    Returns:
        The table, and the keys that are not used: the blocks after `layer`, the projection, the temperature.
    """
    leaves = ("weight", "bias")
    names: dict[str, Any] = {
        "positional_embedding": f"{prefix}embeddings.position_embedding.weight",
        "token_embedding.weight": f"{prefix}embeddings.token_embedding.weight",
    }
    unused = ["text_projection", "logit_scale"]
    used = text_cfg["layers"] - (layer == "penultimate")
    layers = {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for i in range(text_cfg["layers"]):
        source, target = f"transformer.resblocks.{i}", f"{prefix}encoder.layers.{i}"
        block: dict[str, Any] = {}
        for leaf in leaves:
            block[f"{source}.attn.in_proj_{leaf}"] = tuple(f"{target}.self_attn.{x}_proj.{leaf}" for x in "qkv")
            block |= {f"{source}.{old}.{leaf}": f"{target}.{new}.{leaf}" for old, new in layers.items()}
        if i < used:
            names |= block
        else:
            unused += block
    names |= {f"ln_final.{leaf}": f"{prefix}final_layer_norm.{leaf}" for leaf in leaves}
    return names, unused
