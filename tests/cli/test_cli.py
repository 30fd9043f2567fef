"""Mistakes at the command line: one line, no traceback, and nothing is written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedcd.cli import main
from guidedcd.config.run import Run

TOYS = ["--teacher", "toy", "--data", "toy", "--routes", "none", "--metrics", "none"]


MISTAKES = {
    "component": (["--energy", "shakee"], "no energy named 'shakee'. Did you mean 'shake'?"),
    "reward": (["--rewards", "smil"], "no reward named 'smil'. Did you mean 'smile'?"),
    "teacher": (["--teacher", "toi"], "no teacher named 'toi'. Did you mean 'toy'?"),
    "data": (["--data", "toi"], "no dataset named 'toi'. Did you mean 'toy'?"),
    "capitals": (["--energy", "SHAKE"], "Did you mean 'shake'?"),
    "option": (
        ["--energies.shake.topp", "1"],
        "Unknown option: --energies.shake.topp. Did you mean --energies.shake.top?",
    ),
    "section": (["--trian.steps", "1"], "Unknown option: --trian.steps. Did you mean --train.steps?"),
    "below": (
        ["--energy=shake", "--energies.shake.scale", "-1"],
        "--energies.shake.scale is -1.0; it must be at least 0",
    ),
    "above": (
        ["--energy=shake", "--energies.shake.fraction=1.5"],
        "--energies.shake.fraction is 1.5; it must be from 0 to 1",
    ),
    "choice": (["--student.kind", "loraa"], "--student.kind is 'loraa'; it must be one of full, lora"),
    "number": (["--train.optimizer.lr", "fast"], "--train.optimizer.lr is 'fast'; it must be a number"),
    "whole": (["--train.steps", "1.5"], "--train.steps is '1.5'; it must be a whole number"),
    "nan": (["--train.optimizer.lr", "nan"], "--train.optimizer.lr is 'nan'; it must be a finite number"),
    "pair": (["--solver.omega", "5"], "--solver.omega has 1 value, ['5']; it must have 2, such as 5,15"),
    "seed": (["--seed", "-1"], "--seed is -1; it must be a whole number from 0 to 2^63 - 1"),
    "name": (["--name", "a/b"], "--name is 'a/b'; it names a folder"),
    "no-value": (["--train.optimizer.lr"], "--train.optimizer.lr requires an argument"),
    "word": (["extra"], "'extra' is not expected here"),
    "switch": (["--preprocess.keep-inversions", "true"], "A switch takes its value after '=', such as --option=true."),
    "profile": (["--profile", "shape"], "no profile named 'shape'. Did you mean 'shapes'?"),
    "no-file": (["--config", "none.toml"], "--config: none.toml is missing."),
    "device": (["--device", "gpu"], "--device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps"),
    "value": (["--energy", "shake:x"], "energy 'shake' takes no value after ':' (got 'x')"),
    "of-a-plugin": (["--energy=shake", "--energies.shake.top", "13"], "energy 'shake': an unlucky number"),
    "old-name": (["--train.lr", "1"], "error: --train.lr is now --train.optimizer.lr."),
    "old-switch": (["--train.gradient-checkpointing"], "is now --train.activation-checkpoint.layers all."),
    "old-name-of-a-group": (["--train.rollouts", "2"], "--train.rollouts is now --train.rollouts.videos."),
    "group": (
        ["--train.checkpoint", "2"],
        "--train.checkpoint is a group of options. Give one of them, such as --train.checkpoint.every.",
    ),
    "section-with-a-value": (["--student=lora"], "--student is a group of options."),
    "component-with-a-value": (["--energies.shake", "3"], "such as --energies.shake.scale."),
    "in-a-group": (
        ["--train.optimizer.lrr", "1"],
        "Unknown option: --train.optimizer.lrr. Did you mean --train.optimizer.lr?",
    ),
    "unselected": (
        ["--energy", "rattle", "--energies.shake.top", "2"],
        "--energies.shake.top is an option of energy 'shake', which is not selected (selected: rattle). Select it with "
        "--energies rattle,shake, or leave the option out.",
    ),
    "unselected-teacher": (
        ["--teacher.unet3d.path", "x"],
        "which is not selected (selected: toy). Select it with --teacher unet3d, or",
    ),
    "twice": (["--train.optimizer.lr", "1", "--train.optimizer.lr", "2"], "specified multiple times"),
}


@pytest.mark.parametrize(("argv", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(command, toys, tmp_path, argv, text):
    """Status 2, one line on standard error that names flag, value and remedy, and no file."""
    base = TOYS[2:] if "--teacher" in argv else TOYS
    base = [*base[:2], *base[4:]] if "--data" in argv else base
    (before,) = [sorted(tmp_path.rglob("*"))]

    done = command("train", *base, *argv)

    assert done.status == 2
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert text in done.err
    assert not done.runs
    assert sorted(tmp_path.rglob("*")) == before


FILES = {
    "malformed": ("[train\n", "line 1"),
    "unknown-section": ("[trian]\nlr = 1\n", "unknown key 'trian'. Did you mean 'train'?"),
    "unknown-option": (
        "[train.optimizer]\nlrr = 1\n",
        "train.optimizer.lrr in wrong.toml: [train.optimizer] has no option 'lrr'. Did you mean 'lr'?",
    ),
    "out-of-range": (
        "[train.optimizer]\nlr = -1\n",
        "train.optimizer.lr in wrong.toml is -1.0; it must be more than 0",
    ),
    "of-a-plugin": ("[energy.shake]\ntopp = 1\n", "Did you mean 'top'?"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_mistake_in_a_file_names_file_and_key(command, toys, tmp_path, text, message):
    """A mistake in a TOML file is reported with file and key."""
    (tmp_path / "wrong.toml").write_text(text)

    done = command("train", *TOYS, "--config", "wrong.toml")

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_unknown_commands_are_corrected(command):
    """A misspelt command gets a suggestion, and status 2."""
    done = command("trian")

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert 'Did you mean "train"?' in done.err


def test_a_missing_gpu_is_an_error_before_anything_is_written(command, toys, monkeypatch):
    """--device cuda without a GPU, or with too high a number, is the user's mistake."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    none = command("train", *TOYS, "--device", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    few = command("train", *TOYS, "--device", "cuda:7")

    assert (none.status, none.err.count("\n"), none.runs) == (2, 1, [])
    assert (few.status, few.err.count("\n"), few.runs) == (2, 1, [])
    assert "no usable NVIDIA GPU" in none.err
    assert "1 GPU" in few.err


def raising(error: BaseException) -> Callable[..., None]:
    """A training that fails."""

    def training(run: Run, **options: object) -> None:
        raise error

    return training


def test_an_interrupt_prints_how_to_continue(command, toys):
    """Ctrl-C is one line and status 130."""
    done = command("train", *TOYS, training=raising(KeyboardInterrupt()))

    assert (done.status, done.err.count("\n")) == (130, 1)
    assert "the same command continues" in done.err


def test_no_memory_names_the_component_and_a_remedy(command, toys):
    """Running out of memory is one line: in what, and which settings need less."""
    import torch

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    error.add_note("in reward 'smile' of acme-toys/acme_toys")
    done = command("train", *TOYS, training=raising(error))

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "out of memory in reward 'smile' of acme-toys/acme_toys" in done.err
    assert "--train.batch-size" in done.err
    assert command("train", *TOYS, training=raising(MemoryError())).status == 2


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_full_disk_or_a_closed_folder_is_one_line(command, toys, number, text):
    """An error of the operating system is reported with the path."""
    done = command("train", *TOYS, training=raising(OSError(number, "no", "some/file")))

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert text in done.err and "some/file" in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments):
    """What is printed is flushed before the command ends, and a failed flush is one error."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "guidedcd", *arguments], stdout=full, stderr=subprocess.PIPE, env=environment
        )

    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"disk is full" in done.stderr


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), OSError(errno.EIO, "x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(monkeypatch, toys, error):
    """What is not the user's mistake is raised as it is."""
    monkeypatch.setitem(sys.modules, "guidedcd.workflow", types.SimpleNamespace(distil=raising(error)))

    with pytest.raises(type(error)) as caught:
        main(["train", *TOYS])

    assert caught.value is error


@pytest.mark.parametrize("argv", [["report"], ["evaluate"], ["sample"]])
def test_a_missing_run_folder_is_an_error(command, argv):
    """Commands on a run that does not exist end with an error."""
    done = command(*argv, "nowhere", *(["a prompt"] if argv == ["sample"] else []))

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "nowhere" in done.err
