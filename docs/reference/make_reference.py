"""Write the parts of docs/reference/ that repeat the code: config.md, and the marked blocks of the other pages.

python docs/reference/make_reference.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import make_api
import make_cli
import make_config
import make_hooks
import make_plugins

FOLDER = Path(__file__).parent
BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "cli.md": make_cli.BLOCKS,
    "python-api.md": make_api.BLOCKS,
    "plugin-hooks.md": make_hooks.BLOCKS,
    "plugins.md": make_plugins.BLOCKS,
}
"""By page, the functions that write its blocks, by the name in the block's marks."""

MARKED = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.S)


def filled(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The text of a page with its marked blocks written anew.

    Raises:
        ValueError: The marks of the page are not those of `blocks`.
    """
    names = [match["name"] for match in MARKED.finditer(text)]
    if sorted(names) != sorted(blocks):
        raise ValueError(f"the page has the blocks {sorted(names)}, expected {sorted(blocks)}")
    return MARKED.sub(lambda match: f"{match[1]}\n{blocks[match['name']]().strip()}\n\n{match[3]}", text)


def pages() -> dict[Path, str]:
    """The text of every page by its path."""
    texts = {FOLDER / page: filled((FOLDER / page).read_text("utf-8"), blocks) for page, blocks in BLOCKS.items()}
    return {make_config.PAGE: make_config.page(), **texts}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
