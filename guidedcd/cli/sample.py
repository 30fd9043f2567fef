"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from guidedcd.cli.arguments import trained
from guidedcd.cli.run_flags import flags_of, read_flags
from guidedcd.config.kinds import Chosen
from guidedcd.config.merge import choose
from guidedcd.config.sampling import PublishedConfig, SampleConfig
from guidedcd.config.structure import Value
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def sample(
        run: str | None = None,
        /,
        *prompts: str,
        out: Path | None = None,
        device: str | None = None,
        flags: Any = None,
        published: Any = None,
    ) -> None:
        """Make videos with a trained student: mp4 files, each with its metadata, and a contact sheet.

        It may be interrupted at any time; the same command makes the missing videos.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it; left out with --student.
        prompts
            What to show, each prompt one argument; @FILE reads a file of prompts, one a line or a JSON list.
        out
            Where the videos go; by default `samples` in the run's folder, or here for a published student.
        device
            auto, cpu, cuda, cuda:N or mps; by default as in the run.
        """
        options = read_flags(SampleConfig, flags, "sampling")
        of_student = read_flags(PublishedConfig, published, "a published student")
        if student := of_student.pop("student", None):
            texts = prompts if run is None else (run, *prompts)
            fraction = of_student.pop("fraction", None)
            source, teacher = _published(student, of_student, registry)
        elif run is None:
            raise GuidedCDError("no student: give a run's folder, or --student FILE --teacher videocrafter2:FILE.")
        else:
            for name in of_student:
                raise GuidedCDError(f"--{name} belongs to a published student (--student); a run has its own.")
            source, teacher, texts, fraction = trained(Path(run)), None, prompts, None
        from guidedcd.inference.generate import generate

        generate(source, list(texts), out=out, device=device, teacher=teacher, fraction=fraction, **options)

    sample.__annotations__ |= {
        "out": Path | None,
        "flags": flags_of(SampleConfig, "Videos"),
        "published": flags_of(PublishedConfig, "Published students"),
    }
    app.command(sample)


def _published(student: Path, options: dict[str, Any], registry: Registry) -> tuple[Path, Chosen]:
    """A published student's file, and its teacher with `options`.

    Raises:
        GuidedCDError: It is a folder, or the teacher or one of its options does not exist.
    """
    if student.is_dir():
        raise GuidedCDError(f"--student takes a published student's file, but {student} is a folder: give it first.")
    teacher = options.pop("teacher", None)
    if teacher is None:
        raise GuidedCDError("a published student needs its base model: --teacher videocrafter2:model.ckpt.")
    values = {name: Value(str(v) if isinstance(v, Path) else v, f"--{name}") for name, v in options.items()}
    return student, choose("teacher", teacher, values, "--teacher", registry)
