"""Commands that are killed anywhere: the same command again gives the same bytes as if nothing had happened.

Random kills are placed at file operations, at which a file can be half-written. A command's operations in its own
folder are counted; a case draws a command, a signal and the number of the operation from the seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import forked
import pytest
from faults import results, unfinished

pytestmark = pytest.mark.campaign

USUAL = 20
TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
PREPROCESS = ("preprocess", "--config", "toy.toml", "--store", "store")
SAMPLE = ("sample", "run", *(f"circle {number}" for number in range(6)), "--batch", "1", "--out", "out")
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@attrs.frozen
class Command:
    """A command that can be killed."""

    arguments: Sequence[str]
    needs: str
    """What of the trained run is copied."""
    weight: float = 1.0
    """How often it is drawn."""
    prepare: Callable[[Path], object] = lambda folder: None


COMMANDS = {
    "train": Command(TRAIN, "toy.toml store", 3.0),
    "resume": Command(TRAIN, "toy.toml store run", 3.0, unfinished),
    "preprocess": Command(PREPROCESS, "toy.toml", 3.0),
    "sample": Command((*SAMPLE[:5], *SAMPLE[-4:]), "run", 3.0),
    "evaluate": Command(("evaluate", "run", "--prompts", "2"), "run", 3.0),
    "report": Command(("report", "run"), "run", 2.0),
    "export": Command(("export", "run", "out", "--format", "t2v-turbo-v2"), "run", 1.0),
    "convert": Command(
        ("convert", "videocrafter2", "model.ckpt", "out", "--arch", "config.json"), "model.ckpt config.json", 0.5
    ),
}


def logged(folder: Path, steps: int) -> bool:
    """Whether so many steps have been logged."""
    path = folder / "run" / "log.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= steps


class Operations:
    """Counts the operations of a process on files in its current folder, and sends it a signal at one of them."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate")

    def __init__(self, count_file: Path, number: signal.Signals | None = None, at: int = 0) -> None:
        self.count_file, self.number, self.at = count_file, number, at
        self.count = 0

    def __call__(self) -> None:
        """Begin in this process."""
        self.folder, self.process = os.getcwd(), os.getpid()
        self.target = os.open(self.count_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self.EVENTS or not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(self.folder) or os.getpid() != self.process:
            return
        self.count += 1
        os.pwrite(self.target, str(self.count).encode(), 0)
        if self.count == self.at and self.number is not None:
            os.kill(self.process, self.number)


@pytest.fixture(scope="session")
def undisturbed(toys, tmp_path_factory) -> Callable[[str], tuple[int, dict[str, str]]]:
    """By command, how many file operations it needs and what it leaves; computed at the first request."""
    undisturbed_results: dict[str, tuple[int, dict[str, str]]] = {}

    def find(name: str) -> tuple[int, dict[str, str]]:
        if name not in undisturbed_results:
            folder, command = tmp_path_factory.mktemp(name) / "work", COMMANDS[name]
            toys.copy(folder, command.needs)
            command.prepare(folder)
            operations = Operations(folder.with_name("count"))
            child = forked.start(command.arguments, folder, modules=toys.modules, prepare=operations)
            done = forked.ended(child, folder, seconds=600)
            assert done.status == 0, done.err
            undisturbed_results[name] = int(folder.with_name("count").read_text()), results(folder)
        return undisturbed_results[name]

    return find


def test_a_command_killed_at_a_random_file_operation(toys, folder, undisturbed, random_case):
    """After a signal at any file operation, the same command gives the same bytes and leaves no temporary file."""
    draw = random.Random(f"kill {random_case}")
    name = draw.choices(list(COMMANDS), [command.weight for command in COMMANDS.values()])[0]
    number = draw.choice(list(STATUS))
    count, expected = undisturbed(name)
    at, command = draw.randint(1, count), COMMANDS[name]
    toys.copy(folder, command.needs)
    command.prepare(folder)
    operations = Operations(folder.with_name("count"), number, at)
    child = forked.start(command.arguments, folder, modules=toys.modules, prepare=operations)
    done = forked.ended(child, folder)
    what = f"{name}, {number.name} at operation {at} of {count}: {done.status} {done.err}"

    assert done.status in (STATUS[number], 0), what  # a signal in the last moment changes nothing
    assert "Traceback" not in done.out + done.err, what
    assert done.status or results(folder) == expected, what
    if number != signal.SIGKILL:
        assert not list(folder.rglob("*.part")), what

    again = forked.ended(forked.start(command.arguments, folder, modules=toys.modules), folder)
    if again.status == 2 and name in ("export", "convert"):  # the first call had already put the folder there
        assert "out" in again.err
    else:
        assert again.status == 0, f"{what}; {again.err}"
    assert results(folder) == expected, what
    assert not list(folder.rglob("*.part")), what


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["KILL", "TERM", "INT"],
)
def test_killed_training_continues_to_the_same_student(toys, folder, number, status):
    """Training that is killed after its first step ends in the same files; SIGTERM and Ctrl-C leave a checkpoint."""
    toys.copy(folder, "toy.toml store")
    child = forked.start(TRAIN, folder, modules=toys.modules)
    done = forked.killed(child, folder, number, lambda: logged(folder, 1))

    assert done.status == status
    if number != signal.SIGKILL:
        assert "the same command continues" in done.err
        saved = sorted((folder / "run" / "checkpoints").glob("step-*"))
        trained = (folder / "run" / "student").exists()  # on a busy machine the signal comes after the last step
        assert trained or logged(folder, int(saved[-1].name[5:]))
        assert not list(folder.rglob("*.part"))

    again = forked.ended(forked.start(TRAIN, folder, modules=toys.modules), folder)
    expected = results(toys.home)

    assert again.status == 0, again.err
    assert results(folder / "run") == {name[4:]: value for name, value in expected.items() if name.startswith("run/")}
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_killed_preprocessing_continues_to_the_same_store(toys, folder, number):
    """Preprocessing that is killed after its first shard ends in the same shards."""
    toys.copy(folder, "toy.toml")
    child = forked.start(PREPROCESS, folder, modules=toys.modules)
    forked.killed(child, folder, number, lambda: (folder / "store" / "shard-00000.json").exists())
    again = forked.ended(forked.start(PREPROCESS, folder, modules=toys.modules), folder)
    shards = {name: value for name, value in results(toys.home / "store").items() if name.startswith("shard-")}

    assert again.status == 0, again.err
    assert {name: value for name, value in results(folder / "store").items() if name.startswith("shard-")} == shards
    assert not list(folder.rglob("*.part"))


def test_killed_sampling_continues_to_the_same_videos(toys, folder):
    """Sampling that is killed while it writes its second video ends in the same files as an undisturbed one."""
    whole = folder.with_name("whole")
    for copy in (folder, whole):
        toys.copy(copy, "run")
    assert forked.ended(forked.start(SAMPLE, whole, modules=toys.modules), whole).status == 0
    child = forked.start(SAMPLE, folder, modules=toys.modules)
    forked.killed(child, folder, signal.SIGKILL, lambda: list((folder / "out").glob("0001-*")))
    again = forked.ended(forked.start(SAMPLE, folder, modules=toys.modules), folder)

    assert again.status == 0, again.err
    assert results(folder / "out") == results(whole / "out")
    assert not list(folder.rglob("*.part"))
