"""The page about the architecture: its tree and its table name what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "guidedcd"
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


def test_the_tree_has_every_room():
    """The tree lists each folder and each module of guidedcd/, and no other."""
    (tree,) = re.findall(r"^```text\nguidedcd/\n(.*?)^plugins/", PAGE, re.M | re.S)
    folders = set(re.findall(r"^  (\w+)/  ", tree, re.M))
    modules = {name for line in tree.splitlines() for name in re.findall(r"(?<!\S)(\w+\.py)", line)}

    assert folders == {path.parent.name for path in ENGINE.glob("*/__init__.py")}
    assert modules == {path.name for path in ENGINE.glob("*.py") if not path.name.startswith("__")}


def test_the_levels_are_those_of_the_import_test():
    """The page orders the rooms as tests/test_architecture.py does, which checks the imports."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    (floors,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    ]
    (block,) = re.findall(r"## The import rule.*?^```text\n(.*?)^```", PAGE, re.M | re.S)

    assert [line.split() for line in block.splitlines()] == [rooms.split() for rooms in floors]


def test_questions_are_answered_with_files_that_exist():
    """Each row of the table names folders of guidedcd/, and files and folders inside the one before."""
    rows = re.findall(r"^\| (Where .*?\?) \| (.*) \|$", PAGE, re.M)

    assert len(rows) >= 10
    for question, answer in rows:
        named = re.findall(r"`([\w/]+(?:\.py)?)`", answer)
        assert named, question
        room = ENGINE
        for name in named:
            path = next((path for path in (ENGINE / name, room / name, ROOT / name) if path.exists()), None)
            assert path is not None, f"{question} {name} does not exist"
            room = path if path.parent == ENGINE else room
