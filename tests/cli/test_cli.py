"""The command line: every option of every plugin is a flag, and every mistake is one line."""

from __future__ import annotations

import errno
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

import guidedcd
from guidedcd.cli import main
from guidedcd.config.run import Run

OF_PROFILE = tomllib.loads((Path(guidedcd.__file__).parent / "config" / "profiles" / "shapes.toml").read_text())[
    "train"
]
TOYS = ["--teacher", "toy", "--data", "toy", "--routes", "none", "--metrics", "none"]


@attrs.define
class Done:
    """What a command did."""

    status: int
    out: str
    err: str
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The run that was trained."""
        assert self.status == 0, self.err
        (run,) = self.runs
        return run


@pytest.fixture
def command(capsys, monkeypatch, tmp_path) -> Callable[..., Done]:
    """Run `guidedcd` in an empty folder, with a training that only notes what it was asked."""
    monkeypatch.chdir(tmp_path)
    runs: list[Run] = []

    def distil(run: Run, **options: object) -> None:
        runs.append(run)
        print(sorted(options.items(), key=str))

    def command(*argv: str, training: Callable[..., None] = distil) -> Done:
        monkeypatch.setitem(sys.modules, "guidedcd.workflow", types.SimpleNamespace(distil=training))
        runs.clear()
        with pytest.raises(SystemExit) as exit_:
            main([*argv])
        captured = capsys.readouterr()
        return Done(exit_.value.code or 0, captured.out, captured.err, list(runs))

    return command


def test_an_option_of_a_plugin_is_a_flag(command, toys):
    """Naming an option of a plugin selects the plugin, and its value arrives with its type."""
    run = command(
        "train", *TOYS, "--energies.shake.top", "3", "--rewards", "smile", "--energies.shake.scale-range", "1,2"
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


def test_booleans_and_none(command, toys):
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


def test_the_command_is_told_as_it_was_typed(command, toys):
    """The training gets the exact words, quoted for a shell, to keep beside its results."""
    done = command("train", *TOYS, "--out", "my runs/a", "--reward", "smile")

    typed = "guidedcd train --teacher toy --data toy --routes none --metrics none --out 'my runs/a' --reward smile"
    assert f"('command', {typed!r})" in done.out


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
    "below": (["--energies.shake.scale", "-1"], "--energies.shake.scale must be >= 0: -1.0"),
    "above": (["--energies.shake.fraction=1.5"], "--energies.shake.fraction must be <= 1: 1.5"),
    "choice": (["--student.kind", "loraa"], "--student.kind must be in ('full', 'lora') (got 'loraa')"),
    "number": (["--train.optimizer.lr", "fast"], "--train.optimizer.lr must be a number (got 'fast')"),
    "whole": (["--train.steps", "1.5"], "--train.steps must be a whole number (got '1.5')"),
    "nan": (["--train.optimizer.lr", "nan"], "--train.optimizer.lr must be a finite number"),
    "pair": (["--solver.omega", "5"], "--solver.omega must be 2 values separated by a comma (got 1)"),
    "seed": (["--seed", "-1"], "--seed must be a whole number from 0 to 2^63 - 1 (got -1)"),
    "name": (["--name", "a/b"], "--name must be letters"),
    "no-value": (["--train.optimizer.lr"], "--train.optimizer.lr requires an argument"),
    "word": (["extra"], "'extra' is not expected here"),
    "profile": (["--profile", "shape"], "no profile named 'shape'. Did you mean 'shapes'?"),
    "no-file": (["--config", "none.toml"], "--config none.toml is missing."),
    "device": (["--device", "gpu"], "--device must be auto, cpu, cuda, cuda:N or mps (got 'gpu')"),
    "value": (["--energy", "shake:x"], "energy 'shake' takes no value after ':' (got 'x')"),
    "of-a-plugin": (["--energies.shake.top", "13"], "energy 'shake': an unlucky number"),
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
    "out-of-range": ("[train.optimizer]\nlr = -1\n", "train.optimizer.lr in wrong.toml must be > 0: -1.0"),
    "of-a-plugin": ("[energy.shake]\ntopp = 1\n", "Did you mean 'top'?"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_mistake_in_a_file_names_file_and_key(command, toys, tmp_path, text, message):
    """What is wrong in a TOML file is told with its place."""
    (tmp_path / "wrong.toml").write_text(text)

    done = command("train", *TOYS, "--config", "wrong.toml")

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_unknown_commands_are_corrected(command):
    """A misspelt command gets a suggestion, and status 2."""
    done = command("trian")

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert 'Did you mean "train"?' in done.err


def test_a_missing_gpu_is_said_before_anything_is_written(command, toys, monkeypatch):
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


def test_an_interrupt_says_how_to_go_on(command, toys):
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
    """What the operating system refuses is told with the path."""
    done = command("train", *TOYS, training=raising(OSError(number, "no", "some/file")))

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert text in done.err and "some/file" in done.err


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), OSError(errno.EIO, "x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(monkeypatch, toys, error):
    """What is not the user's mistake is raised as it is."""
    monkeypatch.setitem(sys.modules, "guidedcd.workflow", types.SimpleNamespace(distil=raising(error)))

    with pytest.raises(type(error)) as caught:
        main(["train", *TOYS])

    assert caught.value is error


def test_help_shows_every_option_with_its_docstring_and_default(command, toys):
    """Help is made from the config classes, with the profile's defaults."""
    out = " ".join(command("train", "--help").out.replace("│", " ").split())

    assert "--energies.shake.top INT How many. (>= 1) [default: 1]" in out
    assert "--train.optimizer.lr FLOAT" in out and f"[default: {OF_PROFILE['optimizer']['lr']}]" in out
    assert "one of full, lora" in out
    assert "[default: 8000]" in command("train", "--profile", "t2v-turbo-v2", "--help").out


def test_list_shows_what_loaded_and_what_did_not(command, toys):
    """One line per component, one per plugin that failed; nothing is imported."""
    toys("acme-broken", "import no_such_module")

    done = command("plugins", "list")

    lines = done.out.splitlines()
    assert done.status == 0
    assert any(line.split()[:2] == ["energy", "shake"] and "acme-toys/acme_toys" in line for line in lines)
    assert any("acme-broken/acme_broken" in line and "did not load" in line for line in lines)


def test_show_lists_every_option(command, toys):
    """The plugin of a component, its flags, and all its options with their limits."""
    out = command("plugins", "show", "shake").out

    assert "acme-toys/acme_toys" in out
    assert "--energies.shake.top" in out and "How many. [>= 1]" in out
    assert "[one of inversion, single-step, clean]" in out
    assert "--energies.shake.fraction" in out
    toys("acme-broken", "import no_such_module")
    error = command("plugins", "show", "shak").err
    assert "Did you mean 'shake'?" in error and "Not loaded: acme-broken/acme_broken." in error


def test_doctor_tells_each_failure_and_fails(command, toys, monkeypatch):
    """Status 1 if anything is wrong, so that it can be used in CI."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")  # checking all the shipped ones takes long
    assert command("plugins", "doctor", "keep").status == 1  # the toys do not behave
    toys("acme-broken", "import no_such_module")
    done = command("plugins", "doctor", "-v")

    assert done.status == 1
    assert "acme-broken/acme_broken 1.0: ModuleNotFoundError: No module named 'no_such_module'" in done.out
    assert "Traceback" in done.out


def test_doctor_checks_what_a_plugin_requires(command, install):
    """A plugin made for another guidedcd is told so."""
    offer = (
        "from guidedcd import *\n@hookimpl\ndef register_routes(register): register('far', 'a:b', config=RouteConfig)"
    )
    install("acme-future", offer, requires="guidedcd>=99")

    done = command("plugins", "doctor", "far")

    assert done.status == 1
    assert "is installed, >=99 is required" in done.out


@pytest.mark.parametrize("kind", ["energy", "reward", "route"])
def test_a_new_plugin_is_whole(command, tmp_path, kind):
    """`plugins new` writes a package that Python can compile, and refuses to overwrite."""
    done = command("plugins", "new", kind, "my-thing")
    again = command("plugins", "new", kind, "my-thing")

    folder = tmp_path / "guidedcd-my-thing"
    assert done.status == 0
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "guidedcd_my_thing", "pyproject.toml", "tests"]
    for file in folder.rglob("*.py"):
        compile(file.read_text(), file, "exec")
    assert again.status == 2 and "exists already" in again.err


def test_a_new_plugin_needs_a_proper_name(command):
    """Names are checked before anything is written."""
    done = command("plugins", "new", "energy", "My Thing")

    assert done.status == 2
    assert not list(Path().iterdir())


@pytest.mark.parametrize("argv", [["report"], ["evaluate"], ["sample"]])
def test_a_missing_run_folder_is_said(command, argv):
    """Commands on a run say when there is none."""
    done = command(*argv, "nowhere", *(["a prompt"] if argv == ["sample"] else []))

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "nowhere" in done.err


def test_singular_and_plural_do_not_touch_values():
    """Only flags are renamed."""
    from guidedcd.cli.run_flags import same_words

    assert same_words(["train", "--reward", "reward", "--routes.keep.x=--metric"]) == [
        "train",
        "--rewards",
        "reward",
        "--routes.keep.x=--metric",
    ]
