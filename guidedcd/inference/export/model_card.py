"""Model cards: where weights come from, whose licence they keep, how they were made, how to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LICENCES = {
    "VideoCrafter/VideoCrafter2": (
        "other",
        "https://github.com/AILab-CVC/VideoCrafter/blob/main/LICENSE",
        "The weights derive from VideoCrafter2 and stay under its publisher's licence; read it before you use them.",
    ),
    "guidedcd-shapes": (
        "apache-2.0",
        None,
        "The weights derive from the small model that ships with guidedcd, under Apache-2.0.",
    ),
}
"""By base model: identifier, link, and a sentence."""

_UNKNOWN = ("other", None, "The weights derive from {base} and stay under its licence; read it before you use them.")


def write_card(
    folder: Path, *, title: str, base: str, text: str, usage: str, settings: Mapping[str, Any], name: str = "README.md"
) -> None:
    """Write a model card.

    Args:
        folder: Where.
        title: Its first line.
        base: The base model, a hub id where it has one.
        text: What this is.
        usage: Python code; "FOLDER" stands for the folder.
        settings: How it was made, shown as JSON.
        name: File name.
    """
    licence, link, sentence = LICENCES.get(base, _UNKNOWN)
    front = ["---", f"license: {licence}"]
    if licence == "other":
        front.append("license_name: base-model")
    if link:
        front.append(f"license_link: {link}")
    if "/" in base and not Path(base).exists():
        front.append(f"base_model: {base}")
    front += ["library_name: diffusers", "pipeline_tag: text-to-video", "---"]
    parts = [
        "\n".join(front),
        f"# {title}",
        text,
        f"## Licence\n\n{sentence.format(base=base)}",
        f"## Use\n\n```python\n{usage.strip()}\n```",
        f"## How it was made\n\n```json\n{json.dumps(settings, indent=1, ensure_ascii=False)}\n```",
    ]
    (folder / name).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
