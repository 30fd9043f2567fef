"""JSON and TOML files: whatever is wrong with them is one sentence."""

from __future__ import annotations

import os
from typing import Any

import pytest

from guidedcd.documents import check_form, read_json, read_text, read_toml
from guidedcd.errors import GuidedCDError

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ', "damaged and cannot be read as JSON"),
        (b"", "damaged and cannot be read as JSON"),
        (DEEP.encode(), "nested too deeply"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (b"1" * 5000, "damaged and cannot be read as JSON"),
    ],
)
def test_damaged_json_is_one_sentence(tmp_path, content, words):
    """Malformed, deep and binary files are named, without a traceback of the parser."""
    (tmp_path / "run.json").write_bytes(content)

    with pytest.raises(GuidedCDError, match=rf"run\.json .*{words}"):
        read_json(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a = = 1", "line 1"),
        ("a = " + DEEP, "nested too deeply"),
        ("b = 1\n" + "a." * 20_000 + "a = 1", "the key in line 2 has more than 64 parts"),
        ("['a'" + ".'a'" * 20_000 + "]", "the key in line 1 has more than 64 parts"),
    ],
    ids=["operator", "deep", "dotted", "dotted-table"],
)
def test_damaged_toml_is_one_sentence(tmp_path, content, words):
    """The same holds for TOML, with the line if the parser reports it."""
    (tmp_path / "run.toml").write_text(content)

    with pytest.raises(GuidedCDError, match=rf"run\.toml is malformed: .*{words}"):
        read_toml(tmp_path / "run.toml")


def test_only_files_are_read_and_only_so_much_of_them(tmp_path):
    """A folder, a pipe that nobody writes, a device without end, a file too large and none at all."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"1234")
    (tmp_path / "denied").touch(mode=0)
    for name, words in {
        "": "is a folder",
        "pipe": "device or pipe",
        "zero": "device or pipe",
        "large": "4 bytes; at most 3 are read",
        "absent": "is missing",
        "large/x": "is missing",
        "n" * 300: "too long",
        "a\0b": "no UTF-8 text",
    }.items():
        with pytest.raises(GuidedCDError, match=words):
            read_text(tmp_path / name, largest=3)
    if os.geteuid():
        with pytest.raises(GuidedCDError, match="no permission to read .* may be sound"):
            read_text(tmp_path / "denied")


@pytest.mark.parametrize(
    ("form", "good", "bad", "words"),
    [
        (int, 3, True, "contains True; it must contain a whole number"),
        (float, 3, float("nan"), "contains nan; it must contain a number"),
        (float, 0.5, 10**400, "a number"),
        (str, "a", 3, "contains 3; it must contain text"),
        ([int], [1, 2], [1, "x"], r"\[1\] is 'x'; it must be a whole number"),
        ({str: [float]}, {"a": [1.5]}, {"a": 3}, "a is 3; it must be a list"),
        ({"a": int, "b?": str}, {"a": 1, "c": 2}, {"b": "x"}, "a is missing"),
        ({"a": {"b": None}}, {"a": {"b": None}}, {"a": {"b": 0}}, r"a\.b is 0; it must be null"),
        ((str, [str]), ["a"], ["a", 1], r"\[1\] is 1; it must be text"),
        (Any, DEEP, None, ""),
    ],
)
def test_the_form_of_a_value_is_checked(form, good, bad, words):
    """What differs from the form is named with its place, what may be there, and what is."""
    check_form(good, form, "a.json")
    if words:
        with pytest.raises(GuidedCDError, match=rf"a\.json.*{words}"):
            check_form(bad, form, "a.json")


def test_a_missing_file_can_have_its_own_sentence(tmp_path):
    """`read_text` states that the file is missing, in the caller's words if there are any."""
    with pytest.raises(GuidedCDError, match=r"a\.txt"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(GuidedCDError, match=r"^there is no list\.$"):
        read_text(tmp_path / "a.txt", missing="there is no list.")
