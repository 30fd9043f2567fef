"""Prompts from the command line and from files, and general prompts for evaluations. No torch.

A teacher may have its own evaluation prompts, with a method `prompts(split, count)`. The split is "motion" (each prompt
names a movement), "no-motion" (none does) or "validation" (prompts for choosing settings). It may have prompts for
training without clips, with a method `training_prompts(count)`.
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
"""Bytes of the longest prompt, a thousand times the context of text encoders."""
TRAINING = 2000
"""Number of prompts for training without clips."""
HELD_OUT = 384
"""Number of evaluation prompts that are excluded from training without clips."""
SPLITS = {"motion": "prompts that name a motion", "no-motion": "prompts without motion words"}
"""Titles of the splits of an evaluation; a user's own list is one split, "prompts"."""


def as_prompts(prompts: str | Path | Prompt | Iterable[str | Prompt]) -> list[Prompt]:
    """A list of prompts from one text, several, or a file (`Path`, or a text "@FILE").

    Raises:
        GuidedCDError: There are no prompts, or the file cannot be read.
    """
    if isinstance(prompts, Path):
        return read(prompts)
    listed = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    result: list[Prompt] = []
    for prompt in listed:
        if isinstance(prompt, str) and prompt.startswith("@"):
            result += read(Path(prompt[1:]).expanduser())
        else:
            result.append(prompt if isinstance(prompt, Prompt) else _prompt(prompt, "the prompts"))
    if not result:
        raise GuidedCDError('no prompts: give some ("a red circle") or a file of them (@prompts.txt).')
    return result


def read(path: Path) -> list[Prompt]:
    """The prompts of a file: one a line, or a JSON list of texts or of objects with "prompt" or "prompt_en".

    Empty lines are ignored. VBench's lists have both forms.

    Raises:
        GuidedCDError: The file is missing, empty or malformed.
    """
    content = read_text(path, missing=f"there is no prompts file {path}.")
    if path.suffix != ".json":
        texts: Sequence[Any] = [line.strip() for line in content.splitlines() if line.strip()]
    else:
        texts = parse_json(content, path)
        if not isinstance(texts, list):
            raise GuidedCDError(f"{path} must contain a list of prompts.")
        texts = [t.get("prompt", t.get("prompt_en")) if isinstance(t, dict) else t for t in texts]
    if not texts:
        raise GuidedCDError(f"{path} contains no prompts.")
    return [_prompt(text, str(path)) for text in texts]


def _prompt(text: Any, where: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise GuidedCDError(f"a prompt in {where} is no text: {shortened(ascii(text))}.")
    text = text.strip()
    if "\0" in text:
        raise GuidedCDError(f"a prompt in {where} has a null byte: {shortened(ascii(text))}.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise GuidedCDError(f"a prompt in {where} is no UTF-8 text: {shortened(ascii(text))}.") from None
    if size > LONGEST:
        raise GuidedCDError(
            f"a prompt in {where} has {size:,} bytes; at most {LONGEST:,} are allowed: {shortened(text)}"
        )
    return Prompt(text=text)


def evaluation(teacher: object, count: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Prompts of an evaluation by split, and disjoint prompts for choosing settings.

    Args:
        teacher: Its own prompts are used where it has some.
        count: Number of evaluation prompts, of which two thirds name a motion and one third does not. Another sixth
            of it, at least 8, are prompts for choosing.
    """
    prompts_of = getattr(teacher, "prompts", general)
    still = count // 3
    splits = {
        name: list(prompts_of(name, number))
        for name, number in (("motion", count - still), ("no-motion", still))
        if number
    }
    measured = {prompt.text for split in splits.values() for prompt in split}
    choosing = max(8, count // 6)
    others = [prompt for prompt in prompts_of("validation", 2 * choosing) if prompt.text not in measured]
    return splits, others[:choosing]


def example(teacher: object) -> str:
    """The text of one evaluation prompt, as an example of what a teacher and its students can show."""
    prompts_of = getattr(teacher, "prompts", general)
    return next(prompt.text for of in (prompts_of, general) for prompt in of("motion", 1))


def training(teacher: object, count: int = TRAINING) -> list[Prompt]:
    """Prompts for training without clips: the teacher's own where it has some, else none.

    Prompts of an `evaluation` with `HELD_OUT` prompts are excluded.

    Args:
        teacher: May have a method `training_prompts(count)`.
        count: Upper limit of their number.
    """
    candidates = list(teacher.training_prompts(count)) if hasattr(teacher, "training_prompts") else []
    splits, others = evaluation(teacher, HELD_OUT) if candidates else ({}, [])
    measured = {prompt.text for split in (*splits.values(), others) for prompt in split}
    return [prompt for prompt in candidates if prompt.text not in measured]


def general(split: str, count: int) -> list[Prompt]:
    """General prompts for teachers of natural video: the first `count` of a split, or all of them."""
    text = (resources.files("guidedcd.data") / "prompts.txt").read_text(encoding="utf-8")
    sections = {block.partition("\n")[0].strip(): block.splitlines()[1:] for block in text.split("# ")[1:]}
    return [_prompt(line, "prompts.txt") for line in sections[split] if line.strip()][:count]
