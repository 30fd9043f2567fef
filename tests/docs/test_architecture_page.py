"""The page about the architecture: its tree and its table name what exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


def test_the_tree_has_every_room():
    """The tree lists each folder and each module of guidedcd/, and no other."""
    (tree,) = re.findall(r"^```\nguidedcd/\n(.*?)^plugins/", PAGE, re.M | re.S)
    folders = set(re.findall(r"^  (\w+)/  ", tree, re.M))
    modules = {name for line in tree.splitlines() for name in re.findall(r"(?<!\S)(\w+\.py)", line)}
    engine = ROOT / "guidedcd"

    assert folders == {path.parent.name for path in engine.glob("*/__init__.py")}
    assert modules == {path.name for path in engine.glob("*.py") if not path.name.startswith("__")}


def test_questions_are_answered_with_files_that_exist():
    """Each row of the table names a folder of guidedcd/ first, and files and folders inside it."""
    rows = re.findall(r"^\| (Where .*?\?) \| (.*) \|$", PAGE, re.M)

    assert len(rows) == 10
    for question, answer in rows:
        named = re.findall(r"`([\w/]+(?:\.py)?)`", answer)
        assert named, question
        room = ROOT
        for name in named:
            places = (ROOT / "guidedcd" / name, ROOT / name, room / name)
            path = next((place for place in places if place.exists()), None)
            assert path is not None, f"{question} {name} does not exist"
            room = path if room == ROOT else room
