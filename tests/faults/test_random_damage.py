"""Random damage of random files: refused in one line, or served with the numbers of the sound file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
import video_files
from faults import STEP, Case, judge, results, unfinished

pytestmark = pytest.mark.campaign

USUAL = 40


@attrs.frozen
class Target:
    """A file that a command reads."""

    pattern: str
    arguments: Sequence[str]
    needs: str
    writes: Sequence[str] = ()
    prepare: Callable[[Path], object] = lambda folder: None
    checked: str = ""
    """A folder of results; where the command ends well they are those of the sound file, because it has a checksum."""


def some_clips(folder: Path) -> None:
    """Ten small videos with captions."""
    video_files.folder(folder / "clips", [video_files.video()] * 10)


TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
SAMPLE = ("sample", "run", "a red circle", "--out", "out")
VERIFY = ("store", "verify", "store", "--samples", "0")
INSPECT = ("data", "inspect", "--config", "toy.toml", "--rewards", "none", "--data", "folder:clips", "--sample", "0")
CONVERT = ("convert", "videocrafter2", "model.ckpt", "out", "--arch", "config.json")
TARGETS = [
    Target("run/run.json", SAMPLE, "run", ("out*",)),
    Target("run/student/student.json", SAMPLE, "run", ("out*",)),
    Target("run/student/model.safetensors", SAMPLE, "run", ("out*",)),
    Target("run/evaluation.json", ("report", "run"), "run", ("run/report.html",)),
    Target("run/log.jsonl", ("report", "run"), "run", ("run/report.html",)),
    Target("run/sources.json", ("report", "run"), "run", ("run/report.html",)),
    Target("run/videos/000-*", ("report", "run"), "run", ("run/report.html",)),
    Target(f"{STEP}/*", TRAIN, "run store toy.toml", ("run/*",), unfinished, "run/student"),
    Target("store/shard-*", TRAIN, "run store toy.toml", ("run/*", "store*"), unfinished, "run/student"),
    Target("store/store.json", ("store", "show", "store"), "store"),
    Target("store/shard-*", VERIFY, "store"),
    Target("store/scores/*/*", VERIFY, "store"),
    Target("store/inversions/*", VERIFY, "store"),
    Target("toy.toml", (*TRAIN[:3], "--train.steps", "0"), "toy.toml"),
    Target("clips/*/*", INSPECT, "toy.toml", prepare=some_clips),
    Target("config.json", CONVERT, "config.json model.ckpt", ("out*",)),
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file's content with one kind of damage."""
    size = len(content)
    kind = draw.choice(["bit", "byte", "cut", "insert", "delete", "swap", "zeros", "double", "value"])
    at = draw.randrange(max(size, 1))
    if kind == "value":
        return _other_value(content, draw) or damaged(content, draw)
    if kind == "bit" and size:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if kind == "byte" and size:
        return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "delete":
        return content[:at] + content[at + draw.randint(1, 200) :]
    if kind == "zeros":
        return content[:at] + bytes(min(200, size - at)) + content[at + 200 :]
    if kind == "double":
        return content * 2
    if kind == "swap":
        return content[at:] + content[:at]
    return content[:at] + draw.randbytes(draw.randint(1, 50)) + content[at:]


def _other_value(content: bytes, draw: random.Random) -> bytes | None:
    """A JSON document in which one value, however deep, is another; None for other files."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    places: list[tuple[dict | list, str | int]] = []

    def visit(value: object) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, one in entries:
            places.append((value, key))
            visit(one)

    visit(document)
    if not places:
        return None
    holder, key = draw.choice(places)
    others = [None, True, -1, 0, 10**30, 1e308, "", "x" * 300, "../x", "\x1b[31m", [], {}, [[]], {"a": 1}, float("nan")]
    holder[key] = draw.choice(others)
    return json.dumps(document).encode()


@pytest.fixture(scope="session")
def expected(toys) -> dict[str, str]:
    """The files of the sound run's student."""
    return results(toys.home / "run" / "student")


def test_random_damage_never_misleads(toys, folder, expected, random_case):
    """The rules of `faults.judge` hold for any damage of any file, and files with checksums never mislead."""
    draw = random.Random(f"damage {random_case}")
    target, kind = draw.choice(TARGETS), draw.random()
    chosen: list[str] = []

    def change(folder: Path) -> None:
        target.prepare(folder)
        names = sorted(str(path.relative_to(folder)) for path in folder.glob(target.pattern) if path.is_file())
        chosen.append(draw.choice([name for name in names if not name.endswith(".lock")]))
        path = folder / chosen[0]
        if kind < 0.05:
            path.unlink()
        elif kind < 0.1 and len(names) > 1:  # the place of another file
            path.write_bytes((folder / draw.choice(names)).read_bytes())
        else:
            path.write_bytes(damaged(path.read_bytes(), draw))

    case = Case(random_case, target.arguments, change=change, needs=target.needs, status=(0, 2), writes=target.writes)
    try:
        done = judge(case, toys, folder)
    except AssertionError as error:
        raise AssertionError(f"{target.arguments[0]} with {chosen}: {error}") from error
    if done.status == 0 and target.checked and os.path.isdir(folder / target.checked):
        assert results(folder / target.checked) == expected, chosen
