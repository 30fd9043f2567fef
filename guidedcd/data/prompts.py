"""Prompts: from the command line, from files, and a list for evaluations of teachers that bring none. No torch.

A teacher brings its own evaluation prompts with a method `prompts(split, count)`, where split is "motion" (each names a
movement), "no-motion" (none does) or "validation" (to choose settings on), and prompts to train on without clips with a
method `training_prompts(count)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from guidedcd.data.clips import Prompt
from guidedcd.documents import parse_json, read_text
from guidedcd.errors import GuidedCDError, shortened

LONGEST = 100_000
"""Bytes of the longest prompt; no text encoder reads a thousandth of it."""
TRAINING = 2000
"""How many prompts without clips a teacher is asked for."""
HELD_OUT = 384
"""So many prompts of an evaluation are never trained on without clips."""
SPLITS = {"motion": "prompts that name a motion", "no-motion": "prompts without motion words"}
"""The splits that figures are reported for, and what they are called; a user's own list is one split, "prompts"."""


def given(prompts: str | Path | Prompt | Iterable[str | Prompt]) -> list[Prompt]:
    """Prompts as a list: one text, several, or a file's (`Path`, or one argument that begins with "@").

    Raises:
        GuidedCDError: There is none, or the file cannot be read.
    """
    if isinstance(prompts, Path):
        return read(prompts)
    listed = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    found: list[Prompt] = []
    for prompt in listed:
        if isinstance(prompt, str) and prompt.startswith("@"):
            found += read(Path(prompt[1:]).expanduser())
        else:
            found.append(prompt if isinstance(prompt, Prompt) else _prompt(prompt, "the prompts"))
    if not found:
        raise GuidedCDError('no prompts: give some ("a red circle") or a file of them (@prompts.txt).')
    return found


def read(path: Path) -> list[Prompt]:
    """The prompts of a file: text with one a line, or a JSON list of texts or of objects with "prompt" or "prompt_en".

    Empty lines are passed over. VBench's lists are of both kinds.

    Raises:
        GuidedCDError: The file is missing, empty or malformed.
    """
    content = read_text(path, missing=f"there is no prompts file {path}.")
    if path.suffix != ".json":
        texts: Sequence[Any] = [line.strip() for line in content.splitlines() if line.strip()]
    else:
        texts = parse_json(content, path)
        if not isinstance(texts, list):
            raise GuidedCDError(f"{path} must hold a list of prompts.")
        texts = [t.get("prompt", t.get("prompt_en")) if isinstance(t, dict) else t for t in texts]
    if not texts:
        raise GuidedCDError(f"{path} holds no prompts.")
    return [_prompt(text, str(path)) for text in texts]


def _prompt(text: Any, where: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise GuidedCDError(f"a prompt in {where} is no text: {shortened(ascii(text))}.")
    text = text.strip()
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise GuidedCDError(f"a prompt in {where} is no UTF-8 text: {shortened(ascii(text))}.") from None
    if size > LONGEST:
        raise GuidedCDError(f"a prompt in {where} has {size:,} bytes; at most {LONGEST:,} are taken: {shortened(text)}")
    return Prompt(text=text)


def evaluation(teacher: object, count: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Prompts to measure on by split, and others to choose settings on: no text is in both.

    Args:
        teacher: Asked for its own prompts where it has some.
        count: How many are measured: two thirds name a motion, one third does not. A sixth as many, at least 8, are
            for choosing.
    """
    ask = getattr(teacher, "prompts", general)
    still = count // 3
    splits = {
        name: list(ask(name, number)) for name, number in (("motion", count - still), ("no-motion", still)) if number
    }
    measured = {prompt.text for split in splits.values() for prompt in split}
    choosing = max(8, count // 6)
    others = [prompt for prompt in ask("validation", 2 * choosing) if prompt.text not in measured]
    return splits, others[:choosing]


def training(teacher: object, count: int = TRAINING) -> list[Prompt]:
    """Prompts to train on without clips: the teacher's own where it has some, else none.

    No text is among those that an `evaluation` of `HELD_OUT` prompts measures or chooses on.

    Args:
        teacher: May have a method `training_prompts(count)`.
        count: At most so many.
    """
    found = list(teacher.training_prompts(count)) if hasattr(teacher, "training_prompts") else []
    splits, others = evaluation(teacher, HELD_OUT) if found else ({}, [])
    measured = {prompt.text for some in (*splits.values(), others) for prompt in some}
    return [prompt for prompt in found if prompt.text not in measured]


def general(split: str, count: int) -> list[Prompt]:
    """Everyday prompts for teachers of natural video, the first `count` of a split, fewer where there are no more."""
    text = (resources.files("guidedcd.data") / "prompts.txt").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0].strip(): part.splitlines()[1:] for part in text.split("# ")[1:]}
    return [_prompt(line, "prompts.txt") for line in sections[split] if line.strip()][:count]
