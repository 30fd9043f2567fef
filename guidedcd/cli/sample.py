"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.arguments import scales, trained
from guidedcd.cli.number_types import NUMBER, WHOLE
from guidedcd.config.resolve import choose
from guidedcd.config.run import Chosen
from guidedcd.config.structure import Value
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def sample(
        run: str | None = None,
        /,
        *prompts: str,
        student: Path | None = None,
        teacher: str | None = None,
        arch: Path | None = None,
        frames: Annotated[int | None, WHOLE] = None,
        height: Annotated[int | None, WHOLE] = None,
        width: Annotated[int | None, WHOLE] = None,
        fps: Annotated[int | None, WHOLE] = None,
        out: Path | None = None,
        steps: Annotated[int | None, WHOLE] = None,
        omega: Annotated[float | None, NUMBER] = None,
        scale: Annotated[list[str] | None, Parameter(negative="")] = None,
        window: Annotated[float | None, NUMBER] = None,
        seed: Annotated[int, WHOLE] = 0,
        per_prompt: Annotated[int, WHOLE] = 1,
        gif: Annotated[bool, Parameter(negative="")] = False,
        enlarge: Annotated[int | None, WHOLE] = None,
        vbench_names: Annotated[bool, Parameter(negative="")] = False,
        batch: Annotated[int | None, WHOLE] = None,
        device: str | None = None,
        dtype: str = "float32",
        fast: str = "auto",
    ) -> None:
        """Make videos with a trained student: mp4 files, each with its metadata, and a contact sheet.

        Interrupt it at any time: the same command makes what is missing.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it; left out with --student.
        prompts
            What to show, each prompt one argument; @FILE takes a file's, one a line or as a JSON list.
        student
            Instead of a run, the file of a published student: T2V-Turbo's unet_mg.pt, unet_no_mg.pt or unet_lora.pt.
        teacher
            What a published student was distilled from, e.g. videocrafter2:model.ckpt; a run knows its own.
        arch
            JSON or YAML with the teacher's architecture, for a published student of another size.
        frames
            Frames per video; by default, as for height, width and fps, the teacher's.
        height
            Pixels.
        width
            Pixels.
        fps
            Frames per second that a published student is told.
        out
            Where the videos go; by default `samples` in the run's folder, or here for a published student.
        steps
            Sampling steps, one network call each; by default as the run's evaluation.
        omega
            Guidance strength that the student is told; by default as the run's evaluation.
        scale
            Strength of the student's energy, within what it was trained for; NAME=NUMBER where it has several.
        window
            Noisiest fraction of the timesteps at which a published student is told that strength; by default 0.5.
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
        fast
            Faster paths through 3D UNets: no, layers (exact), graphs, blocks (compiled); auto: layers on GPUs.
        """
        size = {"frames": frames, "height": height, "width": width}
        size = {name: value for name, value in size.items() if value is not None}
        options = {name: value for name, value in {"arch": arch, "fps": fps}.items() if value is not None}
        chosen = None
        if student is not None:
            prompts = prompts if run is None else (run, *prompts)
            source, chosen = _published(student, teacher, options, registry)
        elif run is None:
            raise GuidedCDError("no student: give a run's folder, or --student FILE --teacher videocrafter2:FILE.")
        else:
            source = trained(Path(run))
            for name, value in {"teacher": teacher, "window": window, **options}.items():
                if value is not None:
                    raise GuidedCDError(f"--{name} belongs to a published student (--student); a run knows its own.")
        from guidedcd.inference.generate import generate

        generate(
            source,
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
            fast=fast,
            teacher=chosen,
            size=size,
            window=window,
        )


def _published(student: Path, teacher: str | None, options: dict[str, Any], registry: Registry) -> tuple[Path, Chosen]:
    """A published student's file, and its teacher with `options`.

    Raises:
        GuidedCDError: It is a folder, or the teacher or one of its options does not exist.
    """
    student = student.expanduser()
    if student.is_dir():
        raise GuidedCDError(f"--student takes a published student's file, but {student} is a folder: give it first.")
    if teacher is None:
        raise GuidedCDError("a published student needs its base model: --teacher videocrafter2:model.ckpt.")
    given = {name: Value(str(v) if isinstance(v, Path) else v, f"--{name}") for name, v in options.items()}
    return student, choose("teacher", teacher, given, "--teacher", registry)
