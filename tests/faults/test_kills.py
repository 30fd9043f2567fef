"""Commands that are killed: the same command again gives the same bytes as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import forked
import pytest

pytestmark = pytest.mark.slow

TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
PREPROCESS = ("preprocess", "--config", "toy.toml", "--store", "store")
SAMPLE = ("sample", "run", *(f"circle {number}" for number in range(6)), "--batch", "1", "--out", "out")
TIMES = ("seconds", "samples_per_second", "memory_gb", "summary")


def timeless(value: Any) -> Any:
    """A JSON value without what the clock gave."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, str]:
    """By name, what a command has left; times, locks and checkpoints do not count."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name in (".lock", ".evaluation.lock") or "checkpoints" in name:
            continue
        if path.name == "evaluation.json":
            contents[name] = str(timeless(json.loads(path.read_text())))
        elif path.name == "log.jsonl":
            contents[name] = str([timeless(json.loads(line)) for line in path.read_text().splitlines()])
        elif path.name in ("report.html", "report.json"):  # they show times
            contents[name] = ""
        else:
            contents[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


def logged(folder: Path, steps: int) -> bool:
    """Whether so many steps have been logged."""
    path = folder / "run" / "log.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= steps


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
    for place in (folder, whole):
        toys.copy(place, "run")
    assert forked.ended(forked.start(SAMPLE, whole, modules=toys.modules), whole).status == 0
    child = forked.start(SAMPLE, folder, modules=toys.modules)
    forked.killed(child, folder, signal.SIGKILL, lambda: list((folder / "out").glob("0001-*")))
    again = forked.ended(forked.start(SAMPLE, folder, modules=toys.modules), folder)

    assert again.status == 0, again.err
    assert results(folder / "out") == results(whole / "out")
    assert not list(folder.rglob("*.part"))
