"""Writing the parts of a diffusers folder: models, text encoder, scheduler, index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, ModelMixin
    from transformers import CLIPTextModel


def check_free(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        GuidedCDError: `out` is a file or a folder with files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GuidedCDError(f"{out} exists already. Choose another folder, or delete it.")


def save_model(model: ModelMixin, folder: Path) -> None:
    """Write the configuration and the weights of a diffusers model."""
    from diffusers.utils import logging

    bars_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, safe_serialization=True)
    finally:
        if bars_enabled:
            logging.enable_progress_bar()
    make_readable(folder)


def save_text(model: CLIPTextModel, folder: Path) -> None:
    """Write a text encoder under the parameter names that every version of transformers reads."""
    folder.mkdir()
    model.config.architectures = ["CLIPTextModel"]
    model.config.save_pretrained(folder)
    prefix = "text_model."
    state = {prefix + key.removeprefix(prefix): value.contiguous() for key, value in model.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    make_readable(folder)


def write_index(
    folder: Path,
    pipeline: str | list[str],
    *,
    tokenizer: str | None,
    unet: str = "UNet3DConditionModel",
    vae: str = "AutoencoderKL",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `model_index.json`, from which diffusers loads the parts of a folder.

    Args:
        folder: The diffusers folder.
        pipeline: Class name of the pipeline in diffusers, or [module, class name] of one in the folder.
        tokenizer: Class name in transformers; None for a folder without a tokenizer.
        unet: Class name in diffusers.
        vae: Class name in diffusers.
        settings: Further arguments of the pipeline, JSON values by name.
    """
    import diffusers

    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer] if tokenizer else [None, None],
        "unet": ["diffusers", unet],
        "vae": ["diffusers", vae],
    }
    write_json(folder / "model_index.json", index | dict(settings or {}))


def ddim_scheduler(timesteps: int, prediction_type: str, **betas: Any) -> DDIMScheduler:
    """A DDIM scheduler that samples as VideoCrafter's script does, without its scaling of the clean latents.

    Args:
        timesteps: Length of the training schedule.
        prediction_type: "epsilon" or "v_prediction".
        betas: The noise levels, as arguments of the scheduler.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=timesteps,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
        **betas,
    )


def make_readable(folder: Path) -> None:
    """Set the permissions of the files in `folder` to those of any new file; safetensors makes files private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
