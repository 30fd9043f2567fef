"""VideoCrafter2's checkpoint as stock diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.detection import wrong_keys
from guidedcd.models.checkpoints.loading import fill_renamed, skeleton
from guidedcd.models.checkpoints.lvdm_unet import FPS_KEYS, PUBLISHED, rename_unet, unet_arguments, unet_config
from guidedcd.models.checkpoints.lvdm_vae_text import rename_text, rename_vae, text_arguments, vae_arguments
from guidedcd.models.checkpoints.reading import View, exists, open_state
from guidedcd.models.checkpoints.unet import fps_vector, load_unet, lvdm_name, lvdm_state, with_extras

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
    "with_extras",
]

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."}
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


def load_vae(
    arch: Architecture,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    copy: bool = True,
) -> AutoencoderKL:
    """A stock autoencoder with the weights of a latent-diffusion one (keys without prefix), in eval mode."""
    vae = skeleton(lambda: AutoencoderKL(**vae_arguments(arch.ddconfig, arch.embed_dim, arch.scale)))
    fill_renamed(
        vae, rename_vae(arch.ddconfig), state, what="videocrafter2 autoencoder", dtype=dtype, device=device, copy=copy
    )
    return vae.eval()


def load_text(
    arch: Architecture,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    copy: bool = True,
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
    what = "videocrafter2 text tower"
    fill_renamed(model, rename, state, what=what, unused=unused, dtype=dtype, device=device, copy=copy)
    return model.eval()


@attrs.frozen(kw_only=True, eq=False)
class VideoCrafter2:
    """The networks and the schedule of a checkpoint."""

    arch: Architecture
    unet: UNet3DConditionModel
    vae: AutoencoderKL
    text: nn.Module
    """A `CLIPTextModel`; `guidedcd.models.checkpoints.open_clip_tokens` has its tokens."""
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
        arch: The architecture; None is VideoCrafter2 as published.
        dtype: Of all parameters.
        device: Of all parameters.
        student: Another state dict for the UNet (keys without prefix) to load in place of the file's own.

    Raises:
        GuidedCDError: The file is missing, damaged, or something else.
    """
    arch = arch or Architecture()
    state = open_state(exists(path, "VideoCrafter2's model.ckpt", WHERE))
    views = split(state)
    weights = views["unet"] if student is None else student
    unet = load_unet(arch.unet, weights, fps=fps, dtype=dtype, device=device)
    vae = load_vae(arch, views["vae"], dtype=dtype, device=device)
    text = load_text(arch, views["text"], dtype=dtype, device=device)
    return VideoCrafter2(arch=arch, unet=unet, vae=vae, text=text, schedule=schedule(arch, state))


def split(state: Mapping[str, Tensor]) -> dict[str, View]:
    """The three networks of a whole checkpoint.

    Raises:
        GuidedCDError: A network is missing, or there are keys that belong to none.
    """
    views = {name: View(state, prefix) for name, prefix in PREFIXES.items()}
    missing = [prefix + "*" for name, prefix in PREFIXES.items() if not views[name]]
    stray = [key for key in state if key not in BUFFERS and not key.startswith(tuple(PREFIXES.values()))]
    if missing or stray:
        raise GuidedCDError(wrong_keys("videocrafter2", missing, stray, state))
    return views


def schedule(arch: Architecture, state: Mapping[str, Tensor]) -> NoiseSchedule:
    """The noise schedule of the architecture, checked against the table in the file if there is one."""
    noise_schedule = NoiseSchedule.scaled_linear(arch.timesteps, arch.beta_start, arch.beta_end)
    if "alphas_cumprod" in state:
        stored = state["alphas_cumprod"].float()
        expected = noise_schedule.alphas_cumprod
        if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-3):
            raise GuidedCDError(
                "videocrafter2: the file's alphas_cumprod is not the schedule of the architecture "
                f"(linear_start {arch.beta_start}, linear_end {arch.beta_end}, {arch.timesteps} timesteps); "
                "give the architecture that the file was made with (--arch config.json)"
            )
    return noise_schedule
