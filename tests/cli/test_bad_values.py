"""Values that no option can mean, and what becomes of them: one short sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guidedcd import devices
from guidedcd.cli import main
from guidedcd.cli.errors import explain
from guidedcd.config.resolve import resolve
from guidedcd.config.sources import Layer, split_names
from guidedcd.data.prompts import as_prompts
from guidedcd.errors import GuidedCDError
from guidedcd.inference.generate import generate
from guidedcd.plugins.registry import Registry, load_plugins


def test_a_value_of_thousands_of_characters_is_shortened(capsys):
    """The error quotes a part of a long value, not all of it."""
    with pytest.raises(SystemExit) as exit_:
        main(["sample", "run", "a circle", "--seed", "9" * 5000])

    assert exit_.value.code == 2
    assert len(capsys.readouterr().err) < 200


def test_an_unknown_command_of_any_length_is_a_line(capsys):
    """An error that a library writes is cut in its middle as well."""
    with pytest.raises(SystemExit):
        main(["x" * 100_000])

    assert len(capsys.readouterr().err) < 1000


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--lr", "--train.optimizer.lr"),
        ("--steps", "--train.steps, --train.rollouts.steps or --solver.steps"),
        ("--omega", "--solver.omega or --evaluate.omega"),
    ],
)
def test_an_option_without_its_group_is_suggested_with_it(flag, options, capsys):
    """The last part of an option's name is enough to find the option."""
    with pytest.raises(SystemExit):
        main(["train", flag, "1"])

    assert capsys.readouterr().err == f"error: Unknown option: {flag}. Did you mean {options}?\n"


def test_scale_beside_relative_is_refused():
    """Both set an energy's strength, so that a source which states both is ambiguous; a run.json records both."""
    both = {"teacher": "shapes", "energies": {"pta": {"scale": 1.0, "relative": 0.3}}}
    with pytest.raises(GuidedCDError, match="pta.scale in run.toml and energies.pta.relative .* are both stated"):
        resolve([Layer.of_file(both, "run.toml")], load_plugins(), needs_data=False)

    assert resolve([Layer.of_file(both, "run.json")], load_plugins(), needs_data=False).energies["pta"].relative == 0.3


def test_none_beside_names_is_refused():
    """`none` selects no component, so that nothing can be selected beside it; in a list of a file as well."""
    with pytest.raises(GuidedCDError, match="energies` has `none` beside pta"):
        split_names(["none,pta"], "--energies")
    with pytest.raises(GuidedCDError, match="`none` beside pta"):
        Layer.of_file({"energies": ["pta", "none"]}, "run.toml")

    assert split_names(["none"], "--energies") == []


def test_a_prompt_with_a_null_byte_is_refused():
    """No tokenizer reads such a prompt, and no file can have its name."""
    with pytest.raises(GuidedCDError, match="has a null byte"):
        as_prompts("a\0b")


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:-1", "cuda:x", "", "cpu:0", "d" * 5000])
def test_other_devices_of_torch_are_refused(name):
    """Any other device than those that the help names is refused, whatever torch would do with it."""
    with pytest.raises(GuidedCDError, match="no device named") as error:
        devices.device(name)

    assert len(str(error.value)) < 200


def test_too_many_videos_are_refused_at_once():
    """A number of videos that no disk holds is refused at once, before anything is loaded."""
    with pytest.raises(GuidedCDError, match=r"are more than 100,000 videos"):
        generate(Path("missing"), ["a circle", "a star"], per_prompt=60_000)


def test_a_file_in_a_closed_folder_is_unreadable(tmp_path, monkeypatch, capsys):
    """A folder that may not be entered is a matter of permissions; its files are not taken for unwritable ones."""
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "closed")  # root may enter all
    path = tmp_path / "closed" / "student.json"

    assert explain(PermissionError(errno.EACCES, "Permission denied", str(path)), ["sample"], Registry()) == 2
    assert f"no permission to read {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--out="],
        ["train", "--config", ""],
        ["preprocess", "--store="],
        ["data", "inspect", "--out="],
        ["sample", "run", "a circle", "--out="],
        ["try", "energy", "pta", "--out="],
        ["report", ""],
        ["evaluate", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_an_error(capsys, argv):
    """An empty text is no path; it does not stand for the present folder."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "is empty; it must be the path of a file or folder." in error and error.count("\n") == 1


HUGE = {
    ("evaluate", "run", "--prompts"): "from 1 to 100,000, or a file of prompts",
    ("evaluate", "run", "--videos"): "from 0 to 100,000",
    ("evaluate", "run", "--seeds"): "from 1 to 10,000",
    ("evaluate", "run", "--seeds=0,1"): "from 0 to 10^12",
    ("evaluate", "run", "--batch"): "from 1 to 100,000",
    ("sample", "run", "a circle", "--per-prompt"): "from 1 to 100,000",
    ("sample", "run", "a circle", "--frames"): "from 1 to 10,000",
    ("plan", "--evaluate.prompts"): "from 1 to 100,000, or a file of prompts",
    ("plan", "--train.batch-size"): "from 1 to 100,000",
    ("plan", "--train.accumulate"): "from 1 to 10,000",
    ("plan", "--preprocess.draws-per-video"): "from 1 to 10,000",
    ("plan", "--preprocess.videos"): "from 1 to 1,000,000,000",
    ("plan", "--student.rank"): "from 1 to 100,000",
    ("plan", "--processes"): "at most 1,000,000,000",
    ("try", "energy", "pta", "--videos"): "from 1 to 100,000",
}


@pytest.mark.parametrize(("argv", "words"), HUGE.items(), ids=[" ".join(argv) for argv in HUGE])
def test_a_count_that_no_machine_reaches_is_refused_at_once(capsys, tmp_path, monkeypatch, argv, words):
    """10^30 of anything is one sentence with the limit, before anything is loaded."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    option, _, first = argv[-1].partition("=")
    with pytest.raises(SystemExit) as exit_:
        main([*argv[:-1], option, f"{first}{',' * bool(first)}{10**30}"])

    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert words in error and option in error and error.count("\n") == 1


def test_a_store_has_a_limited_number_of_shards(capsys):
    """More shards than a folder can list are refused with the option that makes them fewer."""
    with pytest.raises(SystemExit):
        main(["plan", "--preprocess.videos", "900000000"])

    assert "shards; a store has at most 1,000,000. Raise --preprocess.shard-size." in capsys.readouterr().err
