"""`guidedcd evaluate`: measure students against their teacher, on paired prompts and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.folders import counted, existing, numbers, scales
from guidedcd.cli.train import usable
from guidedcd.plugins import Registry

Listed = Annotated[list[str] | None, Parameter(negative="")]


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def evaluate(
        run: Path,
        /,
        *runs: Path,
        prompts: str | None = None,
        seeds: Listed = None,
        steps: int | None = None,
        omega: float | None = None,
        teacher_omega: Listed = None,
        scale: Listed = None,
        videos: int | None = None,
        batch: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        """Measure a trained student against its teacher on the same prompts and initial noise.

        Several runs are compared with the first.

        Parameters
        ----------
        run
            The run's folder.
        runs
            More runs.
        prompts
            How many of the teacher's evaluation prompts, or a text, or @FILE.
        seeds
            Repetitions of every prompt, such as 0,1,2; by default 0.
        steps
            Sampling steps of the student and of the few-step teacher; by default as the run says.
        omega
            Guidance strength that the student is told; by default as the run says.
        teacher_omega
            Guidance strengths tried for the few-step teacher, such as 2,4; the best is reported.
        scale
            Strength of the student's energies, NUMBER or NAME=NUMBER; by default as trained.
        videos
            How many videos the report shows.
        batch
            Videos made at once.
        device
            Where tensors live; by default as the run says.
        dtype
            float32, bfloat16 or float16.
        """
        folders = [existing(folder) for folder in (run, *runs)]
        counted(steps=steps, batch=batch)
        options = {
            "prompts": int(prompts) if prompts and prompts.isdecimal() else prompts,
            "seeds": numbers(seeds or (), int, "--seeds") or (0,),
            "steps": steps,
            "omega": omega,
            "teacher_omega": numbers(teacher_omega or (), float, "--teacher-omega"),
            "scale": scales(scale or ()),
            "videos": videos,
            "batch": batch,
            "device": device,
            "dtype": dtype,
        }
        usable(device or "auto")
        if len(folders) > 1:
            from guidedcd.compare import compare

            compare(folders, **options)
        else:
            from guidedcd.evaluate import run_evaluate

            run_evaluate(run, **options)
