"""Model cards: base model, licence, settings and usage of exported weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LICENCES = {
    "VideoCrafter/VideoCrafter2": (
        "other",
        "https://github.com/AILab-CVC/VideoCrafter/blob/main/LICENSE",
        "The weights derive from VideoCrafter2 and remain under its publisher's licence. Read it before you use them.",
    ),
    "guidedcd-shapes": (
        "apache-2.0",
        None,
        "The weights derive from the small model that ships with guidedcd, under Apache-2.0.",
    ),
}
"""By base model: SPDX identifier, link, and a sentence."""

_UNKNOWN = ("other", None, "The weights derive from {base} and remain under its licence. Read it before you use them.")


def write_card(
    folder: Path, *, title: str, base: str, text: str, usage: str, settings: Mapping[str, Any], name: str = "README.md"
) -> None:
    """Write a model card.

    Args:
        folder: The folder for the card.
        title: Its heading.
        base: The base model, a hub id where it has one.
        text: Description of the weights.
        usage: Python code, in which "FOLDER" stands for the folder.
        settings: The settings that produced the weights, printed as JSON.
        name: File name.
    """
    licence, link, sentence = LICENCES.get(base, _UNKNOWN)
    header = ["---", f"license: {licence}"]
    if licence == "other":
        header.append("license_name: base-model")
    if link:
        header.append(f"license_link: {link}")
    if "/" in base and not Path(base).exists():
        header.append(f"base_model: {base}")
    header += ["library_name: diffusers", "pipeline_tag: text-to-video", "---"]
    sections = [
        "\n".join(header),
        f"# {title}",
        text,
        f"## Licence\n\n{sentence.format(base=base)}",
        f"## Use\n\n```python\n{usage.strip()}\n```",
        f"## Settings\n\n```json\n{json.dumps(settings, indent=1, ensure_ascii=False)}\n```",
    ]
    (folder / name).write_text("\n\n".join(sections) + "\n", encoding="utf-8")
