"""The page about the architecture: its tree and its table name what exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "guidedcd"
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


def test_the_tree_has_every_room():
    """The tree lists each folder and each module of guidedcd/, and no other."""
    (tree,) = re.findall(r"^```\nguidedcd/\n(.*?)^plugins/", PAGE, re.M | re.S)
    folders = set(re.findall(r"^  (\w+)/  ", tree, re.M))
    modules = {name for line in tree.splitlines() for name in re.findall(r"(?<!\S)(\w+\.py)", line)}

    assert folders == {path.parent.name for path in ENGINE.glob("*/__init__.py")}
    assert modules == {path.name for path in ENGINE.glob("*.py") if not path.name.startswith("__")}


def test_questions_are_answered_with_files_that_exist():
    """Each row of the table names folders of guidedcd/, and files and folders inside the one before."""
    rows = re.findall(r"^\| (Where .*?\?) \| (.*) \|$", PAGE, re.M)

    assert len(rows) == 10
    for question, answer in rows:
        named = re.findall(r"`([\w/]+(?:\.py)?)`", answer)
        assert named, question
        room = ENGINE
        for name in named:
            path = next((path for path in (ENGINE / name, room / name, ROOT / name) if path.exists()), None)
            assert path is not None, f"{question} {name} does not exist"
            room = path if path.parent == ENGINE else room
