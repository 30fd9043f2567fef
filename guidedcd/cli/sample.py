"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.arguments import trained
from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import PathFlag
from guidedcd.cli.run_flags import flags_of, read_flags, read_selection, selected
from guidedcd.config.kinds import Chosen
from guidedcd.config.merge import choose
from guidedcd.config.option_types import flag
from guidedcd.config.sampling import GuidedConfig, PublishedConfig, SampleConfig
from guidedcd.config.selection import Selection
from guidedcd.config.sources import Layer, split_names
from guidedcd.config.structure import Value
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def sample(
        run: str | None = None,
        /,
        *prompts: str,
        out: PathFlag = None,
        device: str | None = None,
        flags: Any = None,
        published: Any = None,
        guided: Any = None,
        components: Any = None,
    ) -> None:
        """Make videos with a trained student, or with a teacher: mp4 files with metadata, and a contact sheet.

        With --teacher alone the teacher samples; --energies then guide it towards a --reference, without training.
        It may be interrupted at any time; the same command makes the missing videos.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it; left out with --student or --teacher.
        prompts
            What to show, each prompt one argument; @FILE reads a file of prompts, one a line or a JSON list.
        out
            Folder of the videos; by default `samples` in the run's folder, or the current folder without a run.
        device
            auto, cpu, cuda, cuda:N or mps; by default as in the run.
        """
        options = read_flags(SampleConfig, flags, "sampling")
        of_student = read_flags(PublishedConfig, published, "a published student")
        of_energies = read_flags(GuidedConfig, guided, "sampling")
        texts = list(prompts if run is None else (run, *prompts))
        is_run = run is not None and os.path.isdir(run)  # False for a text too long to be a path
        if "teacher" in of_student and "student" not in of_student and not is_run:
            selection = _teacher(of_student, components, registry)
            starting("sample   loading PyTorch and the teacher")
            from guidedcd.inference.generate_teacher import generate_teacher

            generate_teacher(
                selection.teacher,
                texts,
                energies=selection.energies,
                guided=GuidedConfig(**of_energies),
                evaluate=selection.evaluate,
                out=out,
                device=device,
                **options,
            )
            return
        for name in (*of_energies, *selected(components)):
            raise GuidedCDError(f"--{flag(name)} guides a teacher: give --teacher NAME[:VALUE] in place of a student.")
        if student := of_student.pop("student", None):
            fraction = of_student.pop("fraction", None)
            source, teacher = _published(student, of_student, registry)
        elif run is None:
            raise GuidedCDError(
                "nothing to sample from: give a run's folder, --teacher NAME[:VALUE], or a published student with its "
                "base model, --student FILE --teacher videocrafter2:FILE."
            )
        else:
            for name in of_student:
                raise GuidedCDError(f"--{name} belongs to a published student (--student); a run has its own.")
            if run in registry.of_kind("teacher") and not is_run:
                raise GuidedCDError(f"'{run}' is a teacher and no run folder: sample it with --teacher {run}.")
            source, teacher, texts, fraction = trained(Path(run)), None, list(prompts), None
        starting("sample   loading PyTorch and the student")
        from guidedcd.inference.generate import generate

        generate(source, texts, out=out, device=device, teacher=teacher, fraction=fraction, **options)

    sample.__annotations__ |= {
        "out": PathFlag,
        "flags": flags_of(SampleConfig, "Videos"),
        "published": flags_of(PublishedConfig, "Published students"),
        "guided": flags_of(GuidedConfig, "Energies of a teacher"),
        "components": Annotated[flags_class, Parameter(name="*")],
    }
    app.command(sample)


def _teacher(options: dict[str, Any], components: Any, registry: Registry) -> Selection:
    """The teacher with `options`, and the energies that guide it.

    Raises:
        GuidedCDError: A name or an option does not exist, or belongs to a published student.
    """
    if "fraction" in options:
        raise GuidedCDError("--fraction belongs to a published student; energies have --energies.NAME.fraction.")
    selected = split_names([options.pop("teacher")], "--teacher")
    values = {name: Value(str(v) if isinstance(v, Path) else v, f"--{name}") for name, v in options.items()}
    tables = [(name, values) for name, _, _ in selected if values]
    return read_selection(components, registry, Layer(select={"teacher": selected}, options={"teacher": tables}))


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
