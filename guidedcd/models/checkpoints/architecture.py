"""The architecture of a latent-diffusion video checkpoint, from its published config or from a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from guidedcd.documents import parse_json, read_text
from guidedcd.errors import GuidedCDError, refusal, suggest
from guidedcd.models.checkpoints.lvdm_unet import PUBLISHED, unet_arguments, unet_config
from guidedcd.models.checkpoints.lvdm_vae_text import text_arguments, vae_arguments

DDCONFIG: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 512,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
"""The published autoencoder."""

TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}
"""The text tower of open_clip's ViT-H-14."""

UNET_NAMES = frozenset(
    {
        *PUBLISHED,
        *("dropout", "conv_resample", "dims", "use_scale_shift_norm", "resblock_updown", "num_heads"),
        *("temporal_transformer_depth", "use_checkpoint", "use_fp16", "tempspatial_aware", "use_image_attention"),
        *("image_cross_attention", "image_cross_attention_scale_learnable", "fs_condition", "default_fs", "legacy"),
        *("time_cond_proj_dim", "motion_cond_proj_dim", "norm_num_groups", "image_size", "num_classes"),
        *("num_heads_upsample", "use_spatial_transformer", "kernel_size_t", "padding_t", "use_temporal_transformer"),
    }
)
"""Arguments of the original UNet, in any of its versions."""
DDCONFIG_NAMES = frozenset({*DDCONFIG, "attn_type", "use_linear_attn", "resamp_with_conv", "tanh_out", "give_pre_end"})
TEXT_NAMES = frozenset(
    {
        *TEXT,
        *("mlp_ratio", "quick_gelu", "hf_model_name", "hf_tokenizer_name", "embed_cls", "pad_id", "pool_type"),
        *("ls_init_value", "no_causal_mask", "final_ln_after_pool", "proj_bias", "proj_type", "output_tokens"),
        *("act_kwargs", "norm_kwargs", "tokenizer_kwargs", "correct_cls_mask", "tokenizer_mode"),
    }
)


@attrs.frozen(kw_only=True)
class Architecture:
    """Sizes of the three networks and the constants between them; the defaults are VideoCrafter2 as published."""

    unet: dict[str, Any] = attrs.field(factory=lambda: dict(PUBLISHED))
    """Constructor arguments of lvdm's UNetModel."""
    ddconfig: dict[str, Any] = attrs.field(factory=lambda: dict(DDCONFIG))
    """Constructor arguments of the autoencoder's halves."""
    embed_dim: int = 4
    """Latent channels."""
    text: dict[str, Any] = attrs.field(factory=lambda: dict(TEXT))
    """open_clip's text config."""
    layer: str = "penultimate"
    """The block whose output is the text embedding, "penultimate" or "last"."""
    scale: float = 0.18215
    """The factor of the autoencoder's latents."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000

    @property
    def multiple(self) -> int:
        """Height and width in pixels must be multiples of this, for the halvings of autoencoder and UNet."""
        return 2 ** (len(self.ddconfig["ch_mult"]) - 1 + len(self.unet["channel_mult"]) - 1)

    @property
    def compression(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.ddconfig["ch_mult"]) - 1)

    @classmethod
    def read(cls, path: str | Path | None) -> Architecture:
        """Read a JSON or YAML file in the published config's structure; None is VideoCrafter2 as published.

        Raises:
            GuidedCDError: The file cannot be read or is incomplete.
        """
        if path is None:
            return cls()
        path = Path(path).expanduser()
        text = read_text(path, missing=f"the architecture file {path} does not exist. Give --arch another file.")
        try:
            if path.suffix in {".yaml", ".yml"}:
                import yaml

                config = yaml.safe_load(text)
            else:
                config = parse_json(text, f"the architecture file {path}")
        except RecursionError:
            raise GuidedCDError(f"the architecture file {path} is nested too deeply.") from None
        except GuidedCDError:
            raise
        except Exception as error:  # yaml's own errors are no ValueErrors
            raise GuidedCDError(f"the architecture file {path} is no YAML: {str(error).splitlines()[0]}.") from None
        if not isinstance(config, Mapping):
            raise GuidedCDError(f"the architecture file {path} must contain an object with the networks' sizes.")
        try:
            architecture = cls.from_config(config)
            architecture.check_names()
            unet_arguments(architecture.unet)
            vae_arguments(architecture.ddconfig, architecture.embed_dim, architecture.scale)
            text_arguments(architecture.text, architecture.layer)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise GuidedCDError(f"the architecture file {path} describes no such network: {text}") from error
        except GuidedCDError as error:
            raise GuidedCDError(f"the architecture file {path}: {error}") from error
        return architecture

    def check_names(self) -> None:
        """Refuse arguments that the original networks do not have, which would otherwise be ignored.

        Raises:
            GuidedCDError: There is one; the message suggests the nearest name.
        """
        networks = (
            ("the UNet", self.unet, UNET_NAMES),
            ("the autoencoder", self.ddconfig, DDCONFIG_NAMES),
            ("the text tower", self.text, TEXT_NAMES),
        )
        for network, arguments, names in networks:
            for name in arguments:
                if name not in names:
                    raise GuidedCDError(f"{network} has no argument '{name}'.{suggest(name, names)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Build it from a config in the published structure, or from the UNet's arguments alone.

        A text tower that open_clip does not have stands as its own config under `open_clip_arch`.
        """
        arguments: dict[str, Any] = {"unet": unet_config(config)}
        model = config.get("model", {})
        params = model.get("params", {}) if isinstance(model, Mapping) else {}
        first = params.get("first_stage_config", {}).get("params", {})
        if "ddconfig" in first:
            arguments |= {"ddconfig": {**DDCONFIG, **first["ddconfig"]}, "embed_dim": first.get("embed_dim", 4)}
        condition = params.get("cond_stage_config", {}).get("params", {})
        arguments["layer"] = condition.get("layer", "penultimate")
        clip = config.get("open_clip_arch")
        if clip is None and condition.get("arch", "ViT-H-14") != "ViT-H-14":
            clip = _open_clip(condition["arch"])
        if clip is not None:
            arguments["text"] = {**TEXT, "quick_gelu": clip.get("quick_gelu", False), **clip["text_cfg"]}
        names = {
            "scale_factor": "scale",
            "linear_start": "beta_start",
            "linear_end": "beta_end",
            "timesteps": "timesteps",
        }
        return cls(**arguments, **{new: params[old] for old, new in names.items() if old in params})

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Refuse a video size that the networks cannot take.

        Raises:
            GuidedCDError: A number is out of range; the message states the range.
        """
        if frames < 1:
            raise GuidedCDError(f"frames must be at least 1: {frames}")
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise GuidedCDError(f"height and width must be multiples of {self.multiple}: {height}x{width}")


def check_fps(fps: Any) -> int:
    """Return the frame rate as a whole number of frames per second, 1 to 1000.

    Raises:
        GuidedCDError: It is something else.
    """
    number = not isinstance(fps, bool) and isinstance(fps, (int, float))
    if not number or not float(fps).is_integer() or not 1 <= fps <= 1000:
        raise GuidedCDError(refusal("fps", fps, "a whole number from 1 to 1000"))
    return int(fps)


def _open_clip(arch: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(arch)
    if config is None:
        raise GuidedCDError(
            f"open_clip has no architecture '{arch}'; put its text_cfg into the architecture file as open_clip_arch"
        )
    return config
