"""A whole trained run in no time: tiny random networks behind a plugin, and a run folder around them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from guidedcd.plugins.configs import DatasetConfig, EnergyConfig, MetricConfig

PLUGIN = '''
import attrs
from guidedcd import DatasetConfig, EnergyConfig, MetricConfig, TeacherConfig, hookimpl

@attrs.frozen(kw_only=True)
class TinyTeacherConfig(TeacherConfig):
    """Options: none."""

@hookimpl
def register_teachers(register):
    register("tiny", "tiny_run:teacher", config=TinyTeacherConfig)

@hookimpl
def register_datasets(register):
    register("tiny", "tiny_run:teacher", config=DatasetConfig)

@hookimpl
def register_energies(register):
    register("calm", "tiny_run:teacher", config=EnergyConfig)

@hookimpl
def register_metrics(register):
    register("brightness", "tiny_run:Brightness", config=MetricConfig)

    @attrs.frozen(kw_only=True)
    class ContrastConfig(MetricConfig):
        gain: float = 1.0
        """Factor."""

    register("contrast", "tiny_run:Contrast", config=ContrastConfig)
    register("impostor", "tiny_run:Brightness", config=MetricConfig)
'''
"""What pip would install: a teacher, a dataset, an energy and a metric of `tests/fakes/tiny_run.py`."""


class Brightness:
    """A metric: mean brightness; `red` applies to prompts with that word only; `oracle` needs scenes."""

    headline = "brightness"
    titles = {"brightness": "mean brightness", "red": "redness of red things"}  # noqa: RUF012 - a constant
    better = {"brightness": "higher"}  # noqa: RUF012

    def __init__(self, config: object) -> None:
        """Take the config."""

    def __call__(self, videos: torch.Tensor, prompts: list) -> dict[str, torch.Tensor]:
        """Scores (B,)."""
        is_red = torch.tensor(["red" in prompt.text for prompt in prompts])
        redness = videos[:, :, 0].mean((1, 2, 3)).cpu()
        return {
            "brightness": videos.mean((1, 2, 3, 4)).cpu(),
            "red": torch.where(is_red, redness, torch.full_like(redness, float("nan"))),
        }


class Contrast:
    """A metric: the standard deviation of a video's pixels times `gain`."""

    better = {"contrast": "higher"}  # noqa: RUF012

    def __init__(self, config: object) -> None:
        """Take the config."""
        self.config = config

    def __call__(self, videos: torch.Tensor, prompts: list) -> dict[str, torch.Tensor]:
        """Scores (B,)."""
        return {"contrast": self.config.gain * videos.flatten(1).std(dim=1).cpu()}


def teacher(config: object = None) -> object:
    """Random networks, always the same, for videos of 4 frames of 16x16."""
    from guidedcd.data.geometry import Geometry
    from guidedcd.diffusion.schedule import NoiseSchedule
    from guidedcd.models.teachers.latent import LatentTeacher
    from guidedcd.testing.tiny_networks import tiny_unet, tiny_vae

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny_unet(block_out_channels=(4, 8), cross_attention_dim=8, attention_head_dim=2)
        vae = tiny_vae(block_out_channels=(4, 8), sample_size=16, scaling_factor=1.0)
        table = torch.randn(97, 8)

    def text(captions: list[str]) -> dict[str, torch.Tensor]:
        rows = [[sum(map(ord, word)) % 97 for word in caption.split()[:5]] for caption in captions]
        return {"prompt_embeds": torch.stack([table[row + [0] * (5 - len(row))] for row in rows])}

    return LatentTeacher(
        network=network,
        vae=vae,
        text=text,
        schedule=NoiseSchedule.scaled_linear(),
        geometry=Geometry(frames=4, height=16, width=16, fps=8, channels=4, compression=2),
    )


def run_folder(folder: Path, *, energies: dict | None = None, evaluate: dict | None = None, **run: object) -> Path:
    """A finished run: `run.json` and a student whose guidance inputs are not zero."""
    from guidedcd.config import sections
    from guidedcd.config.kinds import Chosen
    from guidedcd.config.run import Run
    from guidedcd.files import write_json
    from guidedcd.models.student import Student

    energies = energies or {}
    described = Run(
        teacher=Chosen("tiny", _config("teacher", "tiny")),
        data=(Chosen("tiny", DatasetConfig()),),
        energies={name: EnergyConfig(**options) for name, options in energies.items()},
        metrics={"brightness": MetricConfig()},
        evaluate=sections.EvaluateConfig(
            **{"prompts": 3, "steps": 2, "videos": 1, "teacher_steps": 3, **(evaluate or {})}
        ),
        device="cpu",
        **run,
    )
    folder.mkdir(parents=True)
    write_json(folder / "run.json", described.to_dict())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = Student(teacher(), described.student, tuple(energies))
        for parameter in student.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    student.save(folder / "student")
    return folder


def _config(kind: str, name: str) -> object:
    from guidedcd.plugins.registry import load_plugins

    return load_plugins().get(kind, name).config()


def log(folder: Path, steps: int = 20) -> None:
    """A training log with two rewards, one of them not scored at every step."""
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 1 / step - 0.2, "cd_loss": 1 / step, "grad_norm": 2 / step, "lr": 1e-4}
        line |= {"seconds": step * 0.5, "samples_per_second": 8.0, "reward/hps": 0.2 + step / 100, "routed/hps": 0.75}
        line |= {"share/pta": 0.3} if step % 2 else {}
        line |= {"routed/clip": 0.5 * (step % 2)} | ({"reward/clip": 0.3} if step % 2 else {})
        lines.append(json.dumps(line))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
