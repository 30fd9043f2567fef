"""Prompts: from the command line, from files, and a list for evaluations of teachers that bring none. No torch.

A teacher or dataset brings its own evaluation prompts with a function `prompts(split, count)`, where split is "motion"
(each names a movement), "no-motion" (none does) or "validation" (to choose settings on; no prompt is in two splits).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from guidedcd.data import Prompt
from guidedcd.errors import GuidedCDError

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
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GuidedCDError(f"there is no prompts file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GuidedCDError(f"{path} cannot be read as a list of prompts: {error}.") from error
    if path.suffix != ".json":
        texts: Sequence[Any] = [line.strip() for line in content.splitlines() if line.strip()]
    else:
        try:
            texts = json.loads(content)
        except ValueError as error:
            raise GuidedCDError(f"{path} is malformed: {error}.") from None
        if not isinstance(texts, list):
            raise GuidedCDError(f"{path} must hold a list of prompts.")
        texts = [t.get("prompt", t.get("prompt_en")) if isinstance(t, dict) else t for t in texts]
    if not texts:
        raise GuidedCDError(f"{path} holds no prompts.")
    return [_prompt(text, str(path)) for text in texts]


def _prompt(text: Any, where: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise GuidedCDError(f"a prompt in {where} is no text: {text!r}.")
    return Prompt(text=text.strip())


def evaluation(sources: Iterable[Any], count: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Prompts to measure on by split, and others to choose settings on.

    Args:
        sources: Teacher and datasets; the first with a function `prompts` is asked.
        count: How many are measured: two thirds name a motion, one third does not. A fourth as many are for choosing,
            at least 8.
    """
    still = count // 3
    wanted = {"motion": count - still, "no-motion": still, "validation": max(8, count // 4)}
    source = next((s.prompts for s in sources if callable(getattr(s, "prompts", None))), general)
    found = {split: list(source(split, number)) for split, number in wanted.items() if number}
    return {split: found[split] for split in SPLITS if split in found}, found["validation"]


def general(split: str, count: int) -> list[Prompt]:
    """Everyday prompts for teachers of natural video, the first `count` of a split."""
    text = (resources.files("guidedcd") / "prompts.txt").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0].strip(): part.splitlines()[1:] for part in text.split("# ")[1:]}
    return [_prompt(line, "prompts.txt") for line in sections[split] if line.strip()][:count]
