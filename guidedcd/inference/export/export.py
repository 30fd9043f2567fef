"""`guidedcd export`: writes a trained student in another format, after a test in a fresh process."""

from __future__ import annotations

from pathlib import Path

import attrs

from guidedcd import __version__
from guidedcd.console import console
from guidedcd.errors import GuidedCDError, refusal
from guidedcd.files import replacing
from guidedcd.inference.export import diffusers_folder, peft_lora, t2v_turbo, transformer_lora
from guidedcd.inference.export.model_card import write_card
from guidedcd.inference.export.writing import check_free
from guidedcd.inference.pipeline import StudentPipeline

FORMATS = ("diffusers", "t2v-turbo-v2", "lora")
HIGHEST_RANK = 4096
"""Of an extracted adapter: more than any layer of a supported teacher has channels."""


def export(run: str | Path, out: str | Path, *, format: str = "diffusers", rank: int | None = None) -> Path:
    """Write a run's student in another format; the folder appears after the self-test has passed.

    Args:
        run: The folder of a run, or of a student or checkpoint in it.
        out: The folder to write, which must not exist yet.
        format: "diffusers": a folder with a pipeline file that samples without this package;
            "t2v-turbo-v2": that project's state dict; "lora": a PEFT adapter of the teacher.
        rank: Rank of an adapter that is extracted from the change of the weights (lora only). None writes a trained
            adapter as it is, and extracts rank 64 from a fully trained student.

    Returns:
        `out`.

    Raises:
        GuidedCDError: There is no student, the format does not support it, `out` exists, or the self-test fails.
    """
    if format not in FORMATS:
        raise GuidedCDError(refusal("--format", format, f"one of {', '.join(FORMATS)}"))
    if rank is not None and format != "lora":
        raise GuidedCDError(f"--rank belongs to --format lora, not to {format}. Leave it out.")
    if rank is not None and not 1 <= rank <= HIGHEST_RANK:
        raise GuidedCDError(refusal("--rank", rank, f"from 1 to {HIGHEST_RANK:,}"))
    out = Path(out).expanduser()
    check_free(out)
    trained = StudentPipeline.from_run(run, device="cpu")
    writes_lora = callable(getattr(trained.teacher, "save_lora", None))
    if getattr(trained.teacher, "time_embedding", None) is not None:
        name = type(trained.teacher.network).__name__
        if not writes_lora:
            raise GuidedCDError(f"a student of a {name} cannot be exported: its teacher has no `save_lora`.")
        if format != "lora":
            raise GuidedCDError(f"--format {format} is for UNets, not for {name}; export it with --format lora.")
    console.print(f"export   writing {out}, then a fresh process reads it and compares its results")
    with replacing(out) as folder:
        folder.mkdir()
        if format == "diffusers":
            result, usage = diffusers_folder.write_folder(trained, folder), diffusers_folder.usage(trained)
        elif format == "t2v-turbo-v2":
            result, usage = t2v_turbo.write_turbo(trained, folder), t2v_turbo.usage(trained)
        elif writes_lora:
            result, usage = transformer_lora.write_lora(trained, folder, rank), transformer_lora.usage(trained)
        else:
            result, usage = peft_lora.write_lora(trained, folder, rank), peft_lora.usage(trained)
        write_card(
            folder,
            title=f"{trained.run.name}: a few-step student",
            base=base_of(trained),
            text=f"Distilled with guidedcd {__version__} from the teacher `{trained.run.teacher.name}`. "
            f"{result[0].upper()}{result[1:]}.",
            usage=usage,
            settings=trained.run.to_dict(),
        )
    console.print(f"export   {out}: {result}")
    return out


def base_of(trained: StudentPipeline) -> str:
    """Name of the student's base model for its card: the teacher's `base_model`, its path, or its name."""
    chosen = trained.run.teacher
    path = attrs.asdict(chosen.config).get("path")
    return getattr(trained.teacher, "base_model", None) or (str(path) if path else chosen.name)
