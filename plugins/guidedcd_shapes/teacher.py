"""The embedded teacher: stock classes of diffusers and transformers in a small size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPTextModel

from guidedcd.data.clips import Prompt
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd_shapes import ShapesTeacherConfig, attention, models, world
from guidedcd_shapes.prompts import split_prompts
from guidedcd_shapes.vocabulary import WorldTokenizer, save_tokenizer

FPS = 8.0
SPLITS = {"full": "motion", "no-motion": "no-motion"}
"""The split of an evaluation by the kind of prompts that the recipe measured on."""


def weights(teacher: str, path: str, names: Sequence[str]) -> tuple[Path, list[nn.Module]]:
    """The folder of a teacher's option `path`, and the models of these names in it.

    Raises:
        GuidedCDError: The folder lacks a file.
    """
    folder = models.WEIGHTS if path == "embedded" else Path(path).expanduser()
    missing = [name for name in names if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        raise GuidedCDError(
            f"teacher '{teacher}': {folder} lacks {', '.join(f'{name}.safetensors' for name in missing)}; "
            "use 'embedded', or train them with python -m guidedcd_shapes.recipe --out FOLDER."
        )
    return folder, [models.load(name, folder) for name in names]


def geometry() -> Geometry:
    """The size of the world's videos and of their latents."""
    return Geometry(
        frames=world.FRAMES,
        height=world.SIZE,
        width=world.SIZE,
        fps=FPS,
        channels=models.LATENT[0],
        compression=world.SIZE // models.LATENT[-1],
    )


class WorldText(nn.Module):
    """Captions to the last hidden state of the text encoder, which also encodes the padding after a caption."""

    model: CLIPTextModel

    def __init__(self, model: CLIPTextModel, tokenizer: WorldTokenizer) -> None:
        """Take a `CLIPTextModel` and its tokenizer."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, 128, 96)}."""
        ids = self.tokenizer(captions).to(next(self.model.parameters()).device)
        return {"prompt_embeds": self.model(input_ids=ids).last_hidden_state}

    def save_tokenizer(self, folder: Path) -> str:
        """Write the tokenizer's files for transformers into `folder`, and return the name of its class."""
        return save_tokenizer(folder, self.model.config.max_position_embeddings)


class Measured:
    """A teacher of this world: its prompts, and the scores that the recipe measured."""

    base_model = "guidedcd-shapes"
    """Name of the teacher in the model card of a student."""
    folder: Path
    """The folder of its weights and of meta.json."""
    stage: str
    """The stage of the recipe that measured it."""
    solver: str
    """The solver whose scores its card has."""

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """The first `count` prompts of "motion", "no-motion" or "validation", with their true scenes."""
        return split_prompts(split, count)

    def training_prompts(self, count: int) -> list[Prompt]:
        """The first `count` prompts to train on without clips."""
        return split_prompts("training", count)

    def card(self) -> list[dict[str, Any]]:
        """The recipe's scores with the most steps and the best guidance; [] if it was not measured."""
        try:
            measured: Mapping[str, Any] = models.meta(self.folder)["stages"][self.stage]["steps"]
        except (OSError, KeyError, GuidedCDError):
            return []
        pattern = re.compile(rf"(full|no-motion) {self.solver} (\d+) steps g ([\d.]+)")
        settings = {key: (m[1], int(m[2]), float(m[3])) for key in measured if (m := pattern.fullmatch(key))}
        most = max((steps for _, steps, _ in settings.values()), default=0)
        full = {g: measured[key] for key, (kind, steps, g) in settings.items() if (kind, steps) == ("full", most)}
        if not full:
            return []
        best = max(full, key=lambda g: full[g].get("all", 0.0))
        scores = {
            SPLITS[kind]: {name: value for name, value in measured[key].items() if value is not None}
            for key, (kind, steps, g) in settings.items()
            if (steps, g) == (most, best)
        }
        about = {"steps": most, "evaluations": 2 * most, "omega": best - 1, "solver": self.solver}
        return [{"label": f"teacher, {most} steps", **about, "scores": scores}]


class ShapesTeacher(Measured, LatentTeacher):
    """The teacher `shapes`, in float32 on the CPU, with its own prompts and model card."""

    stage, solver = "evaluation", "ddim"

    def __init__(self, config: ShapesTeacherConfig) -> None:
        """Read the weights.

        Raises:
            GuidedCDError: The folder lacks a file.
        """
        folder, (vae, text, network) = weights("shapes", config.path, ("vae", "text", "unet"))
        super().__init__(
            network=attention.speed_up(network, world.FRAMES, convolutions=False),
            vae=vae,
            text=WorldText(text, WorldTokenizer(models.CONTEXT["text"])),
            schedule=NoiseSchedule(models.alphas_cumprod(folder), "v"),
            geometry=geometry(),
        )
        self.folder = folder
