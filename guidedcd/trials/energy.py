"""An energy tried on the teacher: the same noise sampled with and without it.

Legend: B videos, S steps, F frames, H/W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from rich.table import Table
from torch import Tensor

from guidedcd.config.kinds import Chosen
from guidedcd.config.selection import Selection
from guidedcd.config.structure import unstructure
from guidedcd.config.trials import EnergyTrialConfig
from guidedcd.console import console, counted, plain_table, print_table, progress
from guidedcd.data import media
from guidedcd.data.clips import Prompt
from guidedcd.data.contract import opened
from guidedcd.data.framing import read_framed
from guidedcd.data.panels import side_by_side
from guidedcd.energies.traits import is_reference_free, needs_video
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.evaluation.arms import build_metrics
from guidedcd.files import check_writable, path_name, write_json
from guidedcd.inference.teacher_pipeline import GuidedVideos, Guiding, TeacherPipeline
from guidedcd.locks import locked
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.preprocessing.encoding import clean_latents
from guidedcd.trials.teacher import ADVICE, omega_of, prompts_of, seeds_of, teacher_of

LINES = 13
"""At most this many steps are printed; energy.json has all."""


@attrs.frozen(kw_only=True, eq=False)
class EnergyTrial:
    """The results of a trial."""

    energy: Chosen
    prompts: Sequence[Prompt]
    reference: Tensor | None
    """(F, 3, H, W), None for an energy without one."""
    reference_prompt: str | None
    without: GuidedVideos
    """The teacher alone; the energy is evaluated, but does not act."""
    with_energy: GuidedVideos
    metrics: Mapping[str, Mapping[str, Sequence[float | None]]]
    """By metric's value, the numbers of every video under "without" and "with"."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON values."""
        name = self.energy.name
        videos = []
        for row, prompt in enumerate(self.prompts):
            plain, guided = self.without.by_step(row)[name], self.with_energy.by_step(row)[name]
            steps = {"without": plain["energy"], "with": guided["energy"], "share": guided["share"]}
            videos.append({"prompt": prompt.text, "energy": steps})
        return {
            "energy": {name: unstructure(self.energy.config)},
            "reference_prompt": self.reference_prompt,
            "timesteps": list(self.without.timesteps),
            "videos": videos,
            "metrics": self.metrics,
        }


def try_energy(
    selection: Selection,
    *,
    prompts: Sequence[str] | Path | None = None,
    out: Path | None = None,
    config: EnergyTrialConfig | None = None,
) -> EnergyTrial:
    """Sample the teacher with and without an energy from the same noise, print its values, and write pictures.

    Args:
        selection: The teacher, one energy, a data set for the reference, and metrics.
        prompts: Texts, or a file of them; by default some of the teacher's own.
        out: The folder for energy.json, contact_sheet.png and side_by_side.mp4; by default trials/NAME.
        config: Steps, seeds, the reference, and how the gradient enters a step.

    Raises:
        GuidedCDError: There is no such energy or reference, or an argument is out of range.
    """
    config = config or EnergyTrialConfig()
    energy = selection.one("energy")
    name = energy.name
    built = energy.build()
    needs_reference = needs_video(built, cast(EnergyConfig, energy.config))
    if needs_reference and config.reference is None and not selection.data:
        raise GuidedCDError(f"energy '{name}' compares with a reference video: give --reference clip.mp4.")
    out = Path("trials") / path_name(name) if out is None else Path(out)
    check_writable(out)
    pipeline = teacher_of(selection, config)
    listed = prompts_of(pipeline, prompts, config.videos)
    compares = needs_reference or (config.reference is not None and not is_reference_free(built))
    video, caption = _reference(pipeline, selection, config) if compares else (None, None)
    texts, seeds = [prompt.text for prompt in listed], seeds_of(config, len(listed))
    options: dict[str, Any] = {
        "omega": omega_of(selection, config),
        "rule": config.rule,
        "noise_factor": config.noise_factor,
        "guider": config.guider,
        "watch": True,
        "advice": ADVICE,
    }
    guiding = Guiding.build(pipeline.teacher, [energy], None if video is None else video[None], caption, [built])
    guiding = attrs.evolve(guiding, known={})  # both calls have the same references
    with progress("sample", 2 * config.steps * len(listed), unit="steps") as advance:
        options["advance"] = advance
        without, with_energy = (
            pipeline.sample_guided(texts, guiding, steps=config.steps, seeds=seeds, guided=on, **options)
            for on in (False, True)
        )
    trial = EnergyTrial(
        energy=energy,
        prompts=listed,
        reference=video,
        reference_prompt=caption,
        without=without,
        with_energy=with_energy,
        metrics=_metrics(selection, pipeline, listed, without.videos, with_energy.videos),
    )
    with locked(out, "the folder"):
        _write(trial, out, pipeline.teacher.geometry.fps)
    _print(trial, out)
    return trial


def _reference(pipeline: TeacherPipeline, selection: Selection, config: EnergyTrialConfig) -> tuple[Tensor, str | None]:
    """The reference (F, 3, H, W) and its caption."""
    geometry = pipeline.teacher.geometry
    if config.reference is not None:
        video, prompt = read_framed(config.reference, geometry)
        return video, config.reference_prompt or prompt
    clip = opened(selection.data[0], geometry)[0]
    pixels = clip.video
    if pixels is None:
        with torch.no_grad():
            pixels = pipeline.teacher.decode(clean_latents(pipeline.teacher, [clip], 1))[0].cpu()
    return pixels, config.reference_prompt or clip.caption


def _metrics(
    selection: Selection, pipeline: TeacherPipeline, prompts: Sequence[Prompt], without: Tensor, with_energy: Tensor
) -> dict[str, dict[str, Any]]:
    """By metric's value, its title and the numbers of every video."""
    chosen = {one.name: one.config for one in selection.metrics}
    metrics = build_metrics(chosen, selection.registry, pipeline.teacher.geometry.fps)
    values: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        if not metric.applies(prompts):
            continue
        for arm, videos in (("without", without), ("with", with_energy)):
            for key, scores in metric.scores(videos.cpu(), prompts).items():
                entry = values.setdefault(key, {"title": metric.about(key)["title"]})
                entry[arm] = [score if math.isfinite(score) else None for score in scores]
    return values


def _write(trial: EnergyTrial, out: Path, fps: float) -> None:
    """Write the numbers, the contact sheet and the video."""
    name = trial.energy.name
    sheet, captions, rows = [], [], []
    if trial.reference is not None:
        sheet.append(trial.reference)
        captions.append("reference" + (f": {trial.reference_prompt}" if trial.reference_prompt else ""))
    for prompt, plain, guided in zip(trial.prompts, trial.without.videos, trial.with_energy.videos, strict=True):
        sheet += [plain, guided]
        captions += [prompt.text, f"with {name}: {prompt.text}"]
        rows.append([*([] if trial.reference is None else [trial.reference]), plain, guided])
    media.contact_sheet(out / "contact_sheet.png", sheet, captions)
    titles = [*([] if trial.reference is None else ["reference"]), f"without {name}", f"with {name}"]
    factor = media.viewing_factor(*trial.without.videos.shape[-2:])
    media.write_video(out / "side_by_side.mp4", side_by_side(rows, titles, enlarge=factor), fps=fps)
    write_json(out / "energy.json", trial.to_dict())


def _print(trial: EnergyTrial, out: Path) -> None:
    """Print the energy at some steps, the metrics, and the files."""
    name, config = trial.energy.name, cast(EnergyConfig, trial.energy.config)
    unit = "relative" if config.is_relative else "scale"
    steps = len(trial.without.timesteps)
    console.print(
        f"energy   {name}, {unit} {config.strength:g}, on the noisiest {config.fraction:.0%} of {steps} steps; "
        f"means of {counted(len(trial.prompts), 'video')}",
        markup=False,
    )
    if trial.reference is not None:
        console.print(f"compared {shortened(trial.reference_prompt or 'the reference', 100)}", markup=False)
    columns = ("step", "timestep", "without", "with", "change", "share of the prediction")
    table = plain_table(*columns, numbers=columns)
    plain, guided = (one.energies[name].mean(1).tolist() for one in (trial.without, trial.with_energy))
    shares = trial.with_energy.shares[name].mean(1).tolist()
    for step in sorted({round(i * (steps - 1) / max(1, LINES - 1)) for i in range(LINES)}):
        share = f"{shares[step]:.1%}" if shares[step] else "not guided"
        numbers = f"{plain[step]:.4g}", f"{guided[step]:.4g}", _change(plain[step], guided[step])
        table.add_row(str(step + 1), str(trial.without.timesteps[step]), *numbers, share)
    print_table(table)
    if trial.metrics:
        console.print()
        print_table(_metric_table(trial.metrics))
    console.print(f"wrote    {out}: side_by_side.mp4, contact_sheet.png, energy.json", markup=False)


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.0%}" if before > 0 else "-"


def _metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = plain_table("metric", "without", "with", "meaning", numbers=("without", "with"))
    for key, values in metrics.items():
        table.add_row(key, *(_mean(values[arm]) for arm in ("without", "with")), values["title"])
    return table


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{sum(numbers) / len(numbers):.3f}" if numbers else "-"
