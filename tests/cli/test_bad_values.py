"""Values that no option can mean, and what becomes of them: one short sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guidedcd import devices
from guidedcd.cli import main
from guidedcd.cli.errors import explain
from guidedcd.errors import GuidedCDError
from guidedcd.inference.generate import generate
from guidedcd.plugins.registry import Registry


def test_a_value_of_thousands_of_characters_is_shortened(capsys):
    """The error quotes a part of a long value, not all of it."""
    with pytest.raises(SystemExit) as exit_:
        main(["sample", "run", "a circle", "--seed", "9" * 5000])

    assert exit_.value.code == 2
    assert len(capsys.readouterr().err) < 200


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:-1", "cuda:x", "", "cpu:0", "d" * 5000])
def test_devices_that_torch_knows_but_guidedcd_does_not_use(name):
    """Any other device than those that the help names is refused, whatever torch would do with it."""
    with pytest.raises(GuidedCDError, match="no device named") as error:
        devices.device(name)

    assert len(str(error.value)) < 200


def test_more_videos_than_a_call_makes():
    """A number of videos that no disk holds is refused at once, before anything is loaded."""
    with pytest.raises(GuidedCDError, match=r"are more than 100,000 videos"):
        generate(Path("missing"), ["a circle"], per_prompt=10**12)


def test_a_file_in_a_closed_folder_is_unreadable(tmp_path, monkeypatch, capsys):
    """A folder that may not be entered is a matter of permissions; its files are not taken for unwritable ones."""
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "closed")  # root may enter all
    path = tmp_path / "closed" / "student.json"

    assert explain(PermissionError(errno.EACCES, "Permission denied", str(path)), ["sample"], Registry()) == 2
    assert f"no permission to read {path}" in capsys.readouterr().err
