"""Bad inputs of every kind: exit status 2 and one clear line, nothing half-written, nothing lost, no hang, no code run.

Each case copies a trained run of the toy teacher, damages something, and calls a command in a process of its own.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import forked
import numpy as np
import pytest
import torch
import video_files
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

DEEP = "[" * 100_000 + "]" * 100_000
NOBODY = 65534
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Change = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """Change nothing."""


def text(name: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def edit(name: str, **values: object) -> Change:
    """Change keys of a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def large(name: str, size: int) -> Change:
    """Make a file of `size` bytes, all zero, that takes no room."""

    def change(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return change


def both(*changes: Change) -> Change:
    """Several changes, one after the other."""
    return lambda folder: [change(folder) for change in changes]


def pipe(name: str) -> Change:
    """Put a named pipe, for which nobody writes, in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def link(name: str, target: str) -> Change:
    """Put a symbolic link in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / target)

    return change


def flip(name: str) -> Change:
    """Flip one bit in the middle of a file."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 16
        (folder / name).write_bytes(content)

    return change


def tensors(name: str, convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Change the tensors of a safetensors file, and the checksum beside it if there is one."""

    def change(folder: Path) -> None:
        path = folder / name
        save_file(convert(load_file(path)), path)
        about = path.with_suffix(".json")
        if about.exists():
            edit(str(about), sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return change


def unfinished(folder: Path) -> None:
    """Turn the run into one that was interrupted at its checkpoint."""
    for path in sorted((folder / "run" / "student").iterdir()):
        path.unlink()
    (folder / "run" / "student").rmdir()
    (folder / "run" / "evaluation.json").unlink()


class Hostile:
    """A pickle that runs a command when it is read as usual."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch OWNED",)


def bomb() -> bytes:
    """A file of 600 KB that is 600 MB when it is unpacked."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(60):
                entry.write(bytes(10**7))
    return target.getvalue()


def checkpoint(name: str, content: object) -> Change:
    """Replace a file of the checkpoint, with the right checksum."""

    def change(folder: Path) -> None:
        path = folder / STEP / name
        path.write_bytes(content if isinstance(content, bytes) else b"")
        if not isinstance(content, bytes):
            torch.save(content, path)
        sums = json.loads((folder / STEP / "checksums.json").read_text())
        sums["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / STEP / "checksums.json").write_text(json.dumps(sums))

    return change


def clips(damage: Change = nothing) -> Change:
    """A folder of ten small videos, one of which is damaged."""

    def change(folder: Path) -> None:
        video_files.folder(folder / "clips", [video_files.video()] * 10)
        damage(folder / "clips")

    return change


STEP = "run/checkpoints/step-000002"
SAMPLE = ("sample", "run", "a red circle")
REPORT = ("report", "run")
EVALUATE = ("evaluate", "run")
TRAIN = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
NEW = ("train", "--config", "toy.toml", "--out", "new", "--store", "store")
SHOW = ("store", "show", "store")
CONVERT = ("convert", "videocrafter2", "x.pt", "out", "--arch", "config.json")
DATA = ("--config", "toy.toml", "--preprocess.videos", "10", "--rewards", "none", "--data", "folder:clips")
INSPECT = ("data", "inspect", *DATA, "--sample", "0")
NOT_UTF8 = os.fsdecode(b"red \xff circle")


@attrs.frozen
class Case:
    """A command that gets something bad."""

    name: str
    arguments: Sequence[str]
    words: str
    """A pattern in what it prints."""
    change: Change = nothing
    needs: str = "run"
    """What of the trained run is copied."""
    status: int = 2
    writes: Sequence[str] = ()
    """Files that it may write or change."""
    user: int | None = None
    variables: dict[str, str] = attrs.field(factory=dict)


def option(name: str, *arguments: str, words: str, **more: object) -> Case:
    """A case of `sample` with odd options."""
    return Case(name, (*SAMPLE, *arguments), words, **more)


HTML = {"status": 0, "writes": ("run/report.html",)}
STORE = {"needs": "store toy.toml"}
RESUME = {"needs": "run store toy.toml"}
CASES = [
    option("seed 2^63", "--seed", str(2**63), words="from 0 to"),
    option("seeds that overflow", "--seed", str(2**63 - 5), "--per-prompt", "2", words="last video's seed"),
    option("10^12 videos", "--per-prompt", str(10**12), words="more than 100,000 videos"),
    option("omega nan", "--omega", "nan", words="finite number"),
    option("scale nan", "--scale", "nan", words=r"--scale is 'nan'; it must be a finite number, or numbers by name"),
    option("device of torch alone", "--device", "xpu", words="no device named 'xpu'"),
    option("out a pipe", "--out", "pipe", words="in the way", change=pipe("pipe")),
    option("out too long", "--out", "n" * 300, words="has 300 bytes"),
    option("one name for two videos", "a red circle", "--vbench-names", words="occurs twice"),
    Case("slash and space", ("sample", "run", "a/b", "a b", "--vbench-names"), "have the same file name"),
    Case("prompt is no UTF-8", ("sample", "run", NOT_UTF8), "no UTF-8 text"),
    Case(
        "huge prompts file",
        ("sample", "run", "@p"),
        "at most",
        lambda f: (f / "p").touch() or os.truncate(f / "p", 2**28),
    ),
    Case("nested prompts", ("sample", "run", "@p.json"), "nested too deeply", text("p.json", DEEP)),
    Case("prompts from a device", ("sample", "run", "@/dev/zero"), "device or pipe"),
    Case("superscript number", (*EVALUATE, "--prompts", "\u00b2"), "there is no prompts file"),
    Case("teacher omega nan", (*EVALUATE, "--teacher-omega", "nan"), "finite number"),
    Case("too many steps", (*EVALUATE, "--steps", "1000"), r"--steps is 1000; it must be from 1 to 50"),
    Case(
        "run name too long",
        ("train", "--config", "toy.toml", "--name", "n" * 300),
        "at most 200 bytes",
        needs="toy.toml",
    ),
    Case("rank of a launch", NEW, "RANK must be a whole number", variables={"RANK": "abc"}, **STORE),
    Case("data without a folder", (*NEW, "--data", "folder:"), "nothing follows", **STORE),
    Case("fps 1e300", (*NEW, "--data", "folder:clips", "--data.folder.fps", "1e300"), "fps", clips(), **STORE),
    Case("report to a device", (*REPORT, "--out", os.devnull), "device, pipe or socket"),
    Case("run.json a list", SAMPLE, "must contain an object", text("run/run.json", "[]")),
    Case("run.json nested", EVALUATE, "nested too deeply", text("run/run.json", DEEP)),
    Case("run.json a pipe", REPORT, "no run folder", pipe("run/run.json")),
    Case("student of another kind", SAMPLE, "student.json", edit("run/student/student.json", student={"kind": "xx"})),
    Case("student of another run", SAMPLE, "different runs", edit("run/student/student.json", energies=["other"])),
    Case("student a pipe", SAMPLE, "device or pipe", pipe("run/student/model.safetensors")),
    Case(
        "student in whole numbers",
        SAMPLE,
        "whole numbers",
        tensors("run/student/model.safetensors", lambda state: {k: v.to(torch.int8) for k, v in state.items()}),
    ),
    Case("log with a script", REPORT, "report", text("run/log.jsonl", '{"step": 1, "loss": "<script>x"}\n'), **HTML),
    Case("evaluation a list", REPORT, "must contain an object", text("run/evaluation.json", "[]")),
    Case("store of 10^12 shards", SHOW, "cannot hold", edit("store/store.json", shards=10**12), **STORE),
    Case("store.json a list", NEW, "store.json", text("store/store.json", "[]"), **STORE),
    Case("samples of a number", NEW, "shard-00000", edit("store/shard-00000.json", samples=[1]), **STORE),
    Case(
        "shard too short",
        NEW,
        "z0 has shape",
        tensors("store/shard-00000.safetensors", lambda state: state | {"z0": state["z0"][:1]}),
        **STORE,
    ),
    Case("shard a pipe", NEW, "device or pipe", pipe("store/shard-00000.safetensors"), **STORE),
    Case(
        "bit of a shard",
        ("store", "verify", "store", "--samples", "0"),
        "checksum differs",
        flip("store/shard-00000.safetensors"),
        **STORE,
    ),
    Case("pickle with code", CONVERT, "holds code", text("x.pt", pickle.dumps(Hostile())), needs="config.json"),
    Case("zip bomb", CONVERT, "is compressed", text("x.pt", bomb()), needs="config.json"),
    Case("nested TOML", ("plan", "--config", "c.toml"), "nested too deeply", text("c.toml", "a = " + DEEP), needs=""),
    Case("seed 10^30 in TOML", ("plan", "--config", "c.toml"), "seed", text("c.toml", f"seed = {10**30}"), needs=""),
    Case("bit of a checkpoint", TRAIN, "checksum of state.pt", both(unfinished, flip(f"{STEP}/state.pt")), **RESUME),
    Case("state without keys", TRAIN, "is damaged", both(unfinished, checkpoint("state.pt", {"step": 2})), **RESUME),
    Case("state of another step", TRAIN, "of step 3", both(unfinished, checkpoint("state.pt", {"step": 3})), **RESUME),
    Case(
        "state with code",
        TRAIN,
        "is damaged",
        both(unfinished, checkpoint("state.pt", pickle.dumps(Hostile()))),
        **RESUME,
    ),
    Case("lock a link", TRAIN, "symbolic link", both(unfinished, link("run/.lock", "toy.toml")), **RESUME),
    Case("lock a pipe", TRAIN, "no regular file", both(unfinished, pipe("run/.lock")), **RESUME),
    Case("student unreadable", SAMPLE, "check its permissions", lambda f: os.chmod(f / "run/student", 0), user=NOBODY),
    Case(
        "clip with a nested sidecar",
        ("preprocess", *DATA, "--store", "new"),
        "store",
        clips(text("a/clip 02.json", DEEP)),
        needs="toy.toml",
        status=0,
        writes=("new*",),
    ),
    Case(
        "wide clip",
        INSPECT,
        "clip 00",
        clips(text("a/clip 00.mp4", video_files.video([np.zeros((2, 8192, 3), np.uint8)] * 12))),
        needs="toy.toml",
        status=0,
    ),
    Case(
        "caption of 20,000 words",
        INSPECT,
        "10",
        clips(text("a/clip 00.txt", "word " * 20_000)),
        needs="toy.toml",
        status=0,
    ),
    Case(
        "row outside of the folder",
        INSPECT,
        "outside of the data set",
        clips(text("metadata.csv", "file_name,caption\na/clip 00.mp4,a\n../secret.mp4,x\n")),
        needs="toy.toml",
        status=0,
    ),
]


def contents(folder: Path) -> dict[str, str]:
    """By name, what every file, link and folder is; locks do not count."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            entries[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.name not in (".lock", ".evaluation.lock"):
            entries[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**27 else "large"
        elif path.is_dir():
            entries[name] = "folder"
    return entries


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(case, toys, folder, monkeypatch):
    """A command that gets something bad states it in one line and leaves everything as it was."""
    if case.user is not None and os.getuid():
        pytest.skip("only root can become another user")
    toys.copy(folder, case.needs)
    case.change(folder)
    for name, value in case.variables.items():
        monkeypatch.setenv(name, value)
    if case.user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, case.user, case.user)
    before = contents(folder)
    done = forked.ended(forked.start(case.arguments, folder, modules=toys.modules, user=case.user), folder)
    after = contents(folder)

    assert done.status == case.status, done.err[-2000:]
    assert re.search(case.words, done.out + done.err)
    assert "Traceback" not in done.out + done.err
    assert not CONTROL.search(done.out + done.err)
    if case.status:
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert len(done.err) < 1000
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert not [name for name in changed if not any(fnmatch.fnmatch(name, pattern) for pattern in case.writes)]
    assert not [name for name in after if name.endswith(".part")]


def test_a_report_shows_no_other_file_and_runs_no_script(toys, folder):
    """Texts of an evaluation are escaped, and a video outside of the run's folder is not embedded."""
    toys.copy(folder, "run")
    (folder / "secret").write_text("SECRET-WORDS" * 10)
    path = folder / "run" / "evaluation.json"
    evaluation = json.loads(path.read_text().replace("student", "<script>alert(1)</script>"))
    for video in evaluation["videos"]:
        for pane in video["panes"]:
            pane["file"] = "../secret"
    path.write_text(json.dumps(evaluation))
    forked.ended(forked.start(REPORT, folder, modules=toys.modules), folder)
    page = (folder / "run" / "report.html").read_text()

    assert "<script>alert" not in page
    assert "U0VDUkVULVdPUkRT" not in page  # the secret in base64


def test_the_evaluation_of_a_checkpoint_leaves_that_of_the_run(toys, folder):
    """A checkpoint's evaluation goes into a folder of its own."""
    toys.copy(folder, "run")
    before = (folder / "run" / "evaluation.json").read_bytes()
    done = forked.ended(forked.start(("evaluate", STEP), folder, modules=toys.modules), folder)

    assert done.status == 0, done.err
    assert (folder / "run" / "evaluation.json").read_bytes() == before
    assert (folder / "run" / "evaluations" / "step-000002" / "evaluation.json").is_file()
