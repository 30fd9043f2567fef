"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.folders import existing
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import Registry


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
        gif: Annotated[bool, Parameter(negative="")] = False,
        enlarge: int | None = None,
        vbench_names: Annotated[bool, Parameter(negative="")] = False,
        batch: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        """Make videos with a trained student: mp4 files, each with its metadata, and a contact sheet.

        Interrupt it at any time: the same command makes what is missing.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it.
        prompts
            What to show, each prompt one argument; @FILE takes a file's, one a line or as a JSON list.
        out
            Where the videos go; by default `samples` in the run's folder.
        steps
            Sampling steps, one network call each; by default as the run's evaluation.
        omega
            Guidance strength that the student is told; by default as the run's evaluation.
        scale
            Strength of the student's energy, within what it was trained for; NAME=NUMBER where it has several.
        seed
            The first prompt's seed, the next one's is one higher, and so on.
        per_prompt
            Videos of each prompt, from different seeds.
        gif
            Also write a gif of each video.
        enlarge
            Repeat every pixel so often; by default small videos come to about 256 pixels.
        vbench_names
            Name files "PROMPT-N.mp4", at true size, as VBench reads them.
        batch
            Videos made at once.
        device
            auto, cpu, cuda, cuda:N or mps; by default as the run.
        dtype
            float32, bfloat16 or float16.
        """
        folder = trained(run)
        from guidedcd.generate import run_sample

        run_sample(
            folder,
            list(prompts),
            out=out,
            steps=steps,
            omega=omega,
            scale=scales(scale),
            seed=seed,
            per_prompt=per_prompt,
            gif=gif,
            enlarge=enlarge,
            vbench_names=vbench_names,
            batch=batch,
            device=device,
            dtype=dtype,
        )


def trained(folder: Path) -> Path:
    """`folder`, if it is a run's or holds a student.

    Raises:
        GuidedCDError: There is none, or it is something else.
    """
    return folder if (folder / "student.json").is_file() else existing(folder)


def scales(given: list[str] | None) -> float | dict[str, float] | None:
    """`--scale 0.3`, or `--scale pta=0.3 --scale calm=0`.

    Raises:
        GuidedCDError: No number.
    """
    if not given:
        return None
    pairs = [text.rpartition("=") for part in given for text in part.split(",")]
    try:
        if len(pairs) == 1 and not pairs[0][0]:
            return float(pairs[0][2])
        return {name: float(number) for name, _, number in pairs}
    except ValueError:
        raise GuidedCDError(f"--scale must be a number or NAME=NUMBER, not '{' '.join(given)}'.") from None
