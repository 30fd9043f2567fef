"""`guidedcd evaluate`: measure students against their teacher, on paired prompts and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.arguments import scales, trained
from guidedcd.cli.number_types import NUMBER, WHOLE
from guidedcd.config.structure import convert
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.plugins.registry import Registry

MOST_SEEDS = 10_000


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def evaluate(
        run: Path,
        /,
        *more: Path,
        prompts: str | None = None,
        seeds: Annotated[int, WHOLE] = 1,
        steps: Annotated[int | None, WHOLE] = None,
        omega: Annotated[float | None, NUMBER] = None,
        teacher_omega: str | None = None,
        scale: Annotated[list[str] | None, Parameter(negative="")] = None,
        videos: Annotated[int | None, WHOLE] = None,
        batch: Annotated[int | None, WHOLE] = None,
        device: str | None = None,
        dtype: str | None = None,
        fast: str | None = None,
    ) -> None:
        """Measure a student against its teacher on the same prompts and initial noise; several runs: compare them.

        Of one run it writes evaluation.json, videos and the report anew. Several runs are put into one table, paired
        with the first; those that were measured with the same options before are not measured again.

        Parameters
        ----------
        run
            The run's folder.
        more
            Further runs to compare with it.
        prompts
            How many prompts, e.g. 256, or a file of prompts; by default as the run says.
        seeds
            How many seeds per prompt.
        steps
            Sampling steps of the student and the few-step teacher; by default as the run says.
        omega
            Guidance strength that the student is told; by default as the run says.
        teacher_omega
            Guidance strengths to try for the few-step teacher, e.g. 1,2,4; the best on other prompts is measured.
        scale
            Strength of the student's energy, within what it was trained for; NAME=NUMBER where it has several.
        videos
            How many prompts the report shows; by default as the run says.
        batch
            Videos made at once.
        device
            auto, cpu, cuda, cuda:N or mps; by default as the run.
        dtype
            float32, bfloat16 or float16.
        fast
            Faster paths through 3D UNets: no, layers (exact), graphs, blocks (compiled); auto: layers on GPUs.
        """
        folders = [trained(one) for one in (run, *more)]
        options = {
            "prompts": _prompts(prompts),
            "seeds": tuple(range(_count(seeds))) if seeds != 1 else None,
            "steps": steps,
            "omega": omega,
            "teacher_omega": _numbers(teacher_omega),
            "scale": scales(scale),
            "videos": videos,
            "batch": batch,
            "device": device,
            "dtype": dtype,
            "fast": fast,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if more:
            from guidedcd.evaluation.compare import compare

            compare(folders, **options)
            return
        from guidedcd.console import console
        from guidedcd.evaluation.evaluate import evaluate
        from guidedcd.evaluation.report.page import write_report
        from guidedcd.inference.pipeline import locate, results_of

        evaluate(folders[0], **options)
        folder, weights = locate(folders[0])
        console.print(f"report   {write_report(folder, results=results_of(folder, weights))}")


def _prompts(text: str | None) -> int | Path | None:
    """A count, or a file."""
    if text is None:
        return None
    return (
        int(text) if text.isascii() and text.isdigit() and len(text) < 10 else Path(text.removeprefix("@")).expanduser()
    )


def _count(seeds: int) -> int:
    if not 1 <= seeds <= MOST_SEEDS:
        raise GuidedCDError(f"--seeds must be a whole number from 1 to {MOST_SEEDS:,}, not {shortened(seeds, 40)}.")
    return seeds


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    return tuple(convert(part, float, "--teacher-omega") for part in text.split(","))
