"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.folders import counted, existing, scales
from guidedcd.cli.train import usable
from guidedcd.plugins import Registry

Switch = Annotated[bool, Parameter(negative="")]


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def sample(
        run: Path,
        /,
        *prompts: str,
        out: Path | None = None,
        steps: int | None = None,
        omega: float | None = None,
        scale: Annotated[list[str] | None, Parameter(negative="")] = None,
        seed: int = 0,
        per_prompt: int = 1,
        gif: Switch = False,
        enlarge: int | None = None,
        vbench_names: Switch = False,
        batch: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        """Make videos with a trained student; what is finished already is not made again.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it.
        prompts
            What to show: each prompt one argument, or @FILE with one a line.
        out
            Where the videos go; by default the folder `samples` of the run.
        steps
            Sampling steps; by default as the run's evaluation.
        omega
            Guidance strength that the student is told; by default as the run's evaluation.
        scale
            Strength of the student's energies, NUMBER or NAME=NUMBER; by default as trained, 0 is off.
        seed
            Prompt number i, from 0, starts from seed + i.
        per_prompt
            Videos of each prompt.
        gif
            Also write a gif of each.
        enlarge
            Repeat every pixel so often; by default small videos are shown at about 256 pixels.
        vbench_names
            Name files as VBench reads them, PROMPT-N.mp4, at their true size.
        batch
            Videos made at once.
        device
            Where tensors live; by default as the run says.
        dtype
            float32, bfloat16 or float16.
        """
        existing(run)
        counted(steps=steps, per_prompt=per_prompt, enlarge=enlarge, batch=batch)
        usable(device or "auto")
        from guidedcd.generate import run_sample

        run_sample(
            run,
            list(prompts),
            out=out,
            steps=steps,
            omega=omega,
            scale=scales(scale or ()),
            seed=seed,
            per_prompt=per_prompt,
            gif=gif,
            enlarge=enlarge,
            vbench_names=vbench_names,
            batch=batch,
            device=device,
            dtype=dtype,
        )
