"""The embedded teacher: stock classes of diffusers and transformers in a small size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd_shapes import ShapesTeacherConfig, attention, models, world
from guidedcd_shapes.vocabulary import WorldTokenizer

FPS = 8.0


class WorldText(nn.Module):
    """Captions to the text encoder's last hidden state; the padding after a caption repeats its content."""

    def __init__(self, model: nn.Module, tokenizer: WorldTokenizer) -> None:
        """Take a `CLIPTextModel` and its tokenizer."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, 128, 96)}."""
        ids = self.tokenizer(captions).to(next(self.model.parameters()).device)
        return {"prompt_embeds": self.model(input_ids=ids).last_hidden_state}


def load(config: ShapesTeacherConfig) -> LatentTeacher:
    """The teacher, in float32 on the CPU.

    Raises:
        GuidedCDError: The folder lacks a file.
    """
    folder = models.WEIGHTS if config.path == "embedded" else Path(config.path).expanduser()
    missing = [name for name in ("vae", "text", "unet") if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        raise GuidedCDError(
            f"teacher 'shapes': {folder} lacks {', '.join(f'{name}.safetensors' for name in missing)}; use 'embedded', "
            "or make them with python -m guidedcd_shapes.recipe --out FOLDER."
        )
    vae, text, network = (models.load(name, folder) for name in ("vae", "text", "unet"))
    return LatentTeacher(
        network=attention.speed_up(network, world.FRAMES, convolutions=False),
        vae=vae,
        text=WorldText(text, WorldTokenizer(models.CONTEXT["text"])),
        schedule=NoiseSchedule(models.alphas_cumprod(folder), "v"),
        geometry=Geometry(
            frames=world.FRAMES,
            height=world.SIZE,
            width=world.SIZE,
            fps=FPS,
            channels=models.LATENT[0],
            compression=world.SIZE // models.LATENT[-1],
        ),
    )
