"""The reference pages contain what the code defines."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


PAGES = ("config.md", "cli.md", "python-api.md", "plugin-hooks.md", "plugins.md")


@pytest.fixture(scope="module")
def make_reference():
    """The script that writes the pages; its neighbours are modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("make_reference")


@pytest.fixture(scope="module")
def texts(make_reference) -> dict[str, str]:
    """What the script writes, by the name of the page."""
    return {path.name: text for path, text in make_reference.pages().items()}


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_up_to_date(texts, page):
    """Each page equals what `python docs/reference/make_reference.py` writes."""
    assert set(texts) == set(PAGES)
    assert (FOLDER / page).read_text(encoding="utf-8") == texts[page], "run python docs/reference/make_reference.py"


def test_a_page_without_a_block_is_an_error(make_reference):
    """A block that a page lost, or one that nothing writes, is not passed over."""
    text = "<!-- begin one -->\nold\n<!-- end one -->\n"

    assert "new" in make_reference.filled(text, {"one": lambda: "new"})
    with pytest.raises(ValueError, match="expected"):
        make_reference.filled(text, {"one": str, "two": str})
    with pytest.raises(ValueError, match="expected"):
        make_reference.filled(text, {})
