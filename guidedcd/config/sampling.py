"""Options of `guidedcd sample`, as flags and in Python. No torch."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs.validators import ge, in_, optional

from guidedcd.config.sections import GuidanceRule, GuiderConfig
from guidedcd.config.validators import LARGEST_BATCH, MOST_PROMPTS, is_seed
from guidedcd.devices import DTYPES, FAST
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import _between


@documented
@attrs.frozen(kw_only=True)
class SampleConfig:
    """Which videos a student makes, and how they are written."""

    steps: int | None = attrs.field(default=None, validator=optional(_between(1, 200)))
    """Sampling steps, one network call each; by default as in the run's evaluation."""
    omega: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """Guidance strength of the student; by default as in the run's evaluation. diffusers has omega + 1."""
    scale: float | dict[str, float] | None = None
    """Strength of the student's energy, within the range of its training; NAME=NUMBER where it has several."""
    frames: int | None = attrs.field(default=None, validator=optional(_between(1, 10_000)))
    """Frames per video; by default, as for height and width, the teacher's."""
    height: int | None = attrs.field(default=None, validator=optional(_between(1, 100_000)))
    """Height in pixels."""
    width: int | None = attrs.field(default=None, validator=optional(_between(1, 100_000)))
    """Width in pixels."""
    seed: int = attrs.field(default=0, validator=is_seed)
    """Seed of the first prompt; the seed of each further prompt is higher by one."""
    per_prompt: int = attrs.field(default=1, validator=_between(1, MOST_PROMPTS))
    """Videos of each prompt, from different seeds."""
    batch: int | None = attrs.field(default=None, validator=optional(_between(1, LARGEST_BATCH)))
    """Videos per forward pass; by default as many as fit."""
    gif: bool = False
    """Also write a gif of each video."""
    enlarge: int | None = attrs.field(default=None, validator=optional(_between(1, 64)))
    """Repeat every pixel this often in both directions; by default small videos are shown at about 256 pixels."""
    vbench_names: bool = False
    """Name files "PROMPT-N.mp4", at true size, as VBench reads them."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """Data type in which the networks compute."""
    fast: str = attrs.field(default="auto", validator=in_(FAST))
    """Faster paths through the networks: layers (fused), graphs, blocks (compiled), blocks-graphs (both); auto is
    layers on GPUs, else no."""

    @property
    def size(self) -> dict[str, int]:
        """The frames, height and width that differ from the teacher's."""
        sizes = {"frames": self.frames, "height": self.height, "width": self.width}
        return {name: size for name, size in sizes.items() if size is not None}


@documented
@attrs.frozen(kw_only=True)
class PublishedConfig:
    """A student that others published, in place of a run."""

    student: Path | None = None
    """File of the published student: T2V-Turbo's unet_mg.pt, unet_no_mg.pt or unet_lora.pt."""
    teacher: str | None = None
    """The teacher that samples, such as videocrafter2:model.ckpt; with --student, its base model."""
    arch: Path | None = None
    """JSON or YAML file with the teacher's architecture, for a student of another size."""
    fps: int | None = None
    """Frames per second, an input of the student; by default the teacher's."""
    fraction: float | None = attrs.field(default=None, validator=optional(_between(0, 1)))
    """Noisiest fraction of the timesteps at which the energy's strength is an input of the student; by default 0.5."""


@attrs.frozen(kw_only=True)
class GuidedConfig(GuidanceRule, GuiderConfig):
    """How energies guide a teacher's own samples, in place of a student."""

    reference: Path | None = None
    """Video that the energies compare with; brought to the teacher's size and frame rate."""
    reference_prompt: str | None = None
    """Caption of the reference; by default the prompt in its metadata, else the prompt of each video."""
    solver: str = attrs.field(default="auto", validator=in_(("auto", "ddim", "dpm++", "own")))
    """The teacher's solver: ddim, dpm++, or own for the sampler of the model's own pipeline. auto is own for teachers
    that have one, and otherwise ddim. Energies need ddim."""

    def checked_reference(self) -> Path:
        """The file of the reference.

        Raises:
            GuidedCDError: There is none.
        """
        if self.reference is None or not self.reference.is_file():
            raise GuidedCDError(f"there is no reference video {self.reference}.")
        return self.reference
