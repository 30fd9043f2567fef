"""Every option of every plugin is a flag; flags, files and profile are merged."""

from __future__ import annotations

import sys
import tomllib
import types
from pathlib import Path

import pytest

import guidedcd

OF_PROFILE = tomllib.loads((Path(guidedcd.__file__).parent / "config" / "profiles" / "shapes.toml").read_text())[
    "train"
]


TOYS = ["--teacher", "toy", "--data", "toy", "--routes", "none", "--metrics", "none"]


def test_an_option_of_a_plugin_is_a_flag(command, toys):
    """The value of a plugin's option arrives with its type."""
    strength = ("--energies.shake.scale", "1", "--energies.shake.scale-range", "1,2")
    run = command(
        "train", *TOYS, "--energies", "shake", "--energies.shake.top", "3", "--rewards", "smile", *strength
    ).run

    assert run.energies["shake"].top == 3
    assert run.energies["shake"].scale_range == (1.0, 2.0)
    assert list(run.rewards) == ["smile"]


def test_flags_files_and_profile_are_layers(command, toys, tmp_path):
    """Class default < profile < file < flags, option by option."""
    (tmp_path / "run.toml").write_text("[train]\nsteps = 7\nbatch_size = 2\n[energy.shake]\ntop = 5\nfraction = 0.25\n")

    run = command("train", *TOYS, "--config", "run.toml", "--train.steps", "9", "--energies.shake.top", "6").run

    assert (run.train.steps, run.train.batch_size, run.train.accumulate) == (9, 2, 1)
    assert run.train.optimizer.lr == OF_PROFILE["optimizer"]["lr"]
    assert (run.energies["shake"].top, run.energies["shake"].fraction) == (6, 0.25)


def test_the_same_word_in_another_number_is_accepted(command, toys):
    """--reward is --rewards and --energy is --energies, with options too."""
    run = command("train", *TOYS, "--reward", "smile", "--reward.smile.weight=2", "--energy=shake").run

    assert run.rewards["smile"].weight == 2
    assert list(run.energies) == ["shake"]


def test_lists_by_comma_and_data_by_repetition(command, toys):
    """Names are separated by commas; every --data is one more dataset."""
    run = command(
        "train", "--teacher=toy:w.ckpt", "--routes", "keep,drop", "--metrics", "count", "--energy", "rattle,shake",
        "--data", "toy:a", "--data", "toy:b", "--data", "other-toy", "--data.other-toy.weight", "3",
    ).run  # fmt: skip

    assert [(c.name, getattr(c.config, "path", None)) for c in run.data] == [
        ("toy", "a"),
        ("toy", "b"),
        ("other-toy", None),
    ]
    assert run.data[2].config.weight == 3
    assert (list(run.routes), list(run.energies)) == (["keep", "drop"], ["rattle", "shake"])
    assert str(run.teacher.config.path) == "w.ckpt"


def test_an_option_may_be_set_for_one_of_two_values(command, toys):
    """--rewards.NAME:VALUE.weight sets the option of one, --rewards.NAME.weight that of all."""
    both = "--rewards", "wrap:x,sized:a.b/c.pt,sized:d", "--reward.sized.frames", "1"
    run = command("train", *TOYS, *both, "--reward.sized:a.b/c.pt.weight=2", "--rewards.sized:d.frames", "3").run

    assert {name: (one.weight, one.frames) for name, one in run.rewards.items()} == {
        "wrap:x": (1, 2),
        "sized:a.b/c.pt": (2, 1),
        "sized:d": (1, 3),
    }
    assert "select it with --rewards wrap:y," in command("train", *TOYS, "--rewards.wrap:y.frames", "4").err.lower()
    assert "Did you mean --rewards.wrap:y.frames?" in command("train", *TOYS, "--rewards.wrap:y.frame", "4").err


def test_booleans_have_a_negative_and_numbers_can_be_none(command, toys):
    """A boolean is a switch with a negative, and an optional number can be none."""
    off = "--train.average", "none"
    one = "--train.activation-checkpoint.decoder", "true", "--data.toy.mirror", "--student.ema", "0.9"
    on = command("train", *TOYS, *one, *off).run
    off = command("train", *TOYS, "--data.toy.no-mirror", "--student.ema", "none").run

    assert (on.train.activation_checkpoint.decoder, on.data[0].config.mirror, on.student.ema) == (True, True, 0.9)
    assert (off.data[0].config.mirror, off.student.ema) == (False, None)


def test_where_and_whether_anew_reach_the_training(command, toys):
    """--out, --store and --new are no part of the run."""
    done = command("train", *TOYS, "--out", "here", "--store", "there", "--new")

    assert done.out.count("Path") == 2
    assert "('new', True)" in done.out


@pytest.mark.parametrize("words", [["--evaluate", "none"], ["--evaluate=none"], ["--skip-evaluation"]])
def test_an_evaluation_can_be_skipped(command, toys, words):
    """`--evaluate none` is no part of the run; any other value of the group is refused."""
    done = command("train", *TOYS, *words)

    assert "('evaluation', False)" in done.out
    assert done.run == command("train", *TOYS).run
    assert "--evaluate is a group of options" in command("train", *TOYS, "--evaluate", "5").err


def test_training_receives_the_command_as_typed(command, toys):
    """The training gets the exact words, quoted for a shell, to keep beside its results."""
    done = command("train", *TOYS, "--out", "my runs/a", "--reward", "smile")

    typed = "guidedcd train --teacher toy --data toy --routes none --metrics none --out 'my runs/a' --reward smile"
    assert f"('command', {typed!r})" in done.out


def test_help_shows_every_option_with_its_docstring_and_default(command, toys):
    """Help is generated from the config classes, with the profile's defaults."""

    def page(*profile: str) -> str:  # without frames and line breaks
        return " ".join(command("train", *profile).out.replace("│", " ").split())

    out = page("--energy=shake", "--help")
    assert "--energies.shake.top INT How many. (at least 1) [default: 1]" in out
    assert "--train.optimizer.lr FLOAT" in out and f"[default: {OF_PROFILE['optimizer']['lr']}]" in out
    assert "one of full, lora" in out
    assert "[default: 8000]" in page("--profile", "t2v-turbo-v2", "--help")
    assert "--help-all shows those of all installed ones" in out
    assert "--energies.rattle" not in out and "--rewards." not in out and "--teacher.toy" not in out
    everything = page("--help-all")
    assert all(flag in everything for flag in ("--energies.shake.top", "--energies.rattle.scale", "--teacher.toy.path"))
    chosen = page("--profile=t2v-turbo-v2", "--rewards", "smile", "--help")
    assert "--rewards.smile.weight" in chosen and "--rewards.hps" not in chosen and "--energies.pta.layers" in chosen


def test_help_shows_the_components_of_a_file_and_of_a_trial(command, toys, tmp_path):
    """What --config selects is shown, and of `try` the component that is tried."""
    (tmp_path / "run.toml").write_text("[rewards.smile]\nweight = 2\n")

    assert "--rewards.smile.weight" in command("plan", "--config", "run.toml", "--help").out
    page = command("try", "energy", "shake", "--help").out
    assert "--energies.shake.top" in page and "--energies.rattle" not in page


def test_a_trial_has_the_options_of_what_an_energy_is_made_of(command, monkeypatch):
    """`try energy reward:clip` and `sample` take --rewards.clip options, and help shows them; they choose no reward."""
    tried = []
    fake = types.SimpleNamespace(try_energy=lambda selection, **_: tried.append(selection.one("energy")))
    monkeypatch.setitem(sys.modules, "guidedcd.trials.energy", fake)
    command("try", "energy", "reward:clip", "--rewards.clip.frames", "3")

    assert guidedcd.inside(tried[0].config).config.frames == 3
    page = command("try", "energy", "reward:clip", "--help").out
    assert "--rewards.clip.frames" in page and "--rewards.hps" not in page
    assert "--rewards." not in command("try", "energy", "pta", "--help").out
    done = command("try", "energy", "reward:clip", "--rewards", "clip")
    assert done.status == 2 and "--rewards chooses no reward here" in done.err
    done = command("try", "energy", "pta", "--rewards.clip.frames", "3")
    assert done.status == 2 and "reward 'clip', which is not selected" in done.err
    done = command("sample", "x", "--energy", "reward:clip", "--rewards.clip.wrong", "3")
    assert done.status == 2 and "--rewards.clip.wrong" in done.err


def test_singular_and_plural_do_not_touch_values():
    """Only flags are renamed."""
    from guidedcd.cli.run_flags import same_words

    assert same_words(["train", "--reward", "reward", "--routes.keep.x=--metric"]) == [
        "train",
        "--rewards",
        "reward",
        "--routes.keep.x=--metric",
    ]
