"""Modules, links and pipes that lie in the way, full disks, small limits: nothing foreign runs, nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from faults import NOBODY, Case, both, check_error, contents, directory, ids, judge, link, mode, pipe, text

pytestmark = pytest.mark.campaign

SAMPLE = ("sample", "run", "a red circle", "--out", "out")
TRAIN = ("train", "--config", "toy.toml", "--out", "new", "--store", "store")
EVALUATE = ("evaluate", "run", "--prompts", "1")
REPORT = ("report", "run")
EXPORT = ("export", "run", "out", "--format", "t2v-turbo-v2")
CONTINUE = ("train", "--config", "toy.toml", "--out", "run", "--store", "store")
STORE = {"needs": "store toy.toml"}
WRITERS = {
    "sample": (SAMPLE, "run"),
    "evaluate": (EVALUATE, "run"),
    "report": (REPORT, "run"),
    "export": (EXPORT, "run"),
    "train": (TRAIN, "store toy.toml"),
    "preprocess": (("preprocess", "--config", "toy.toml", "--store", "new"), "toy.toml"),
    "new": (("plugins", "new", "energy", "mine"), ""),
}
"""Commands that write, with what they need."""
PLANTED = "import pathlib; pathlib.Path(__file__).with_name('OWNED').touch()\n"
NAMES = (
    "torch", "diffusers", "safetensors", "transformers", "attrs", "rich", "cyclopts", "numpy", "av", "accelerate",
    "peft", "jinja2", "json", "random", "site", "sitecustomize", "tokenizers", "guidedcd_pta", "guidedcd_shapes",
)  # fmt: skip


def read_only(what: str, arguments: tuple[str, ...], needs: str) -> Case:
    """The current folder and everything in it cannot be written by the user."""

    def change(folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

    return Case(f"{what} without permission", arguments, "permission|cannot", change, needs=needs, user=NOBODY)


CASES = [
    *[read_only(name, *command) for name, command in WRITERS.items()],
    *[
        Case(f"{name} into a {kind}", command, "", change("out"))
        for name, command in (("samples", SAMPLE), ("export", EXPORT))
        for kind, change in (
            ("file", lambda name: text(name, "x")),
            ("pipe", pipe),
            ("broken link", lambda name: link(name, "nowhere/at/all")),
            ("link to a file", lambda name: both(text("kept", "x"), link(name, "kept"))),
            ("link to itself", lambda name: link(name, name)),
        )
        if (name, kind) != ("samples", "broken link")
    ],
    *[
        Case(f"a new run at a {kind}", TRAIN, "", change("new"), **STORE)
        for kind, change in (("file", lambda name: text(name, "x")), ("pipe", pipe), ("loop", lambda n: link(n, n)))
    ],
    *[
        Case(f"report at a {kind}", (*REPORT, "--out", "page.html"), "", change("page.html"))
        for kind, change in (("pipe", pipe), ("folder", directory), ("device", lambda name: link("page", "/dev/null")))
        if kind != "device"
    ],
    Case("a lock that is a link", SAMPLE, "link", both(text("kept", "x"), directory("out"), link("out/.lock", "kept"))),
    Case("a lock that is a folder", SAMPLE, "lock", both(directory("out"), directory("out/.lock"))),
    Case(
        "an evaluation lock that is a link",
        EVALUATE,
        "link",
        both(text("kept", "x"), link("run/.evaluation.lock", "kept")),
    ),
    Case(
        "a store's lock that is a link",
        WRITERS["preprocess"][0],
        "link",
        both(text("kept", "x"), directory("new"), link("new/.lock", "kept")),
        needs="toy.toml",
    ),
    Case(
        "a page that is a link",
        REPORT,
        change=both(text("kept", "x"), link("run/report.html", "kept")),
        status=0,
        writes=("run/report.html",),
    ),
    Case(
        "metadata that is a link",
        EVALUATE,
        change=both(text("kept", "x"), link("run/evaluation.json", "kept")),
        status=(0, 2),
        writes=("run/evaluation.json", "run/report.html", "run/videos/*"),
    ),
    Case(
        "a log that is a link",
        CONTINUE,
        change=both(
            text("kept", "x"),
            lambda folder: shutil.rmtree(folder / "run" / "student"),
            link("run/log.jsonl", "kept"),
        ),
        needs="run store toy.toml",
        status=(0, 2),
        writes=("run/*",),
    ),
    Case(
        "a student without weights",
        CONTINUE,
        "has no model.safetensors",
        lambda folder: (folder / "run" / "student" / "model.safetensors").unlink(),
        needs="run store toy.toml",
    ),
    Case(
        "a temporary file that is a link",
        REPORT,
        "report",
        both(text("kept", "x"), link("run/.report.html.1.part", "kept")),
        status=0,
        writes=("run/report.html", "run/.report.html.1.part"),
    ),
    Case("a run that nobody may enter", REPORT, "permission", mode("run", 0), user=NOBODY),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_files_and_links_in_the_way_are_named_and_kept(case, toys, folder):
    """What lies in the way is named in one line; it and what it points to stay as they are."""
    if case.user is not None and os.getuid():
        pytest.skip("only root can become another user")
    judge(case, toys, folder)


@pytest.fixture
def disk(folder):
    """A disk of one megabyte, mounted at the folder's `disk`; only root can mount one."""
    mount_point = folder / "disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)]
    if os.getuid() or sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


@pytest.mark.parametrize("room", [0, 4096, 40_000, 400_000])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "evaluate"])
def test_a_command_on_a_full_disk_ends_well_or_names_it(name, room, toys, folder, disk):
    """On a disk with little room a command ends well or names the full disk; with room again it ends as elsewhere."""
    arguments, needs = WRITERS[name]
    toys.copy(folder, needs)
    places = {"out": "disk/out", "new": "disk/new", "store": "store"}
    arguments = tuple(places.get(word, word) if number > 1 else word for number, word in enumerate(arguments))
    if name == "report":
        arguments = (*arguments, "--out", "disk/page.html")
    if name == "new":
        arguments = (*arguments, "--out", "disk/new")
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(max(0, free - room)))
    before = contents(folder)
    done = forked.ended(forked.start(arguments, folder, modules=toys.modules), folder)

    assert done.status in (0, 2), done.err
    assert "Traceback" not in done.out + done.err
    if done.status == 2:
        check_error(done.err)
        assert "full" in done.err or "room" in done.err or "space" in done.err or "needs" in done.err, done.err
    after = contents(folder)
    assert {name: after.get(name) for name in before if not name.startswith("disk")} == {
        name: value for name, value in before.items() if not name.startswith("disk")
    }
    assert not list(folder.rglob("*.part"))

    filler.unlink()
    if done.status == 2 and name != "train":  # a student's files take more than the disk has
        again = forked.ended(forked.start(arguments, folder, modules=toys.modules), folder)
        assert again.status == 0, again.err
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("name", ["plan", "store", "help", "list"])
def test_a_full_disk_behind_standard_output_is_one_error(name, toys, folder):
    """A full disk behind standard output is one error, and no traceback."""
    toys.copy(folder, "store")
    commands = {
        "plan": ("plan", "--help"),
        "store": ("store", "show", "store"),
        "help": ("--help",),
        "list": ("plugins", "list"),
    }

    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = forked.ended(forked.start(commands[name], folder, modules=toys.modules, prepare=full), folder)

    assert done.status == 2, done.err
    check_error(done.err)


@pytest.mark.parametrize("name", [*WRITERS, "convert"])
def test_modules_in_the_current_folder_do_not_run(name, toys, folder):
    """Files with the names of modules that guidedcd imports are not imported, also not by processes that it starts."""
    arguments, needs = WRITERS.get(
        name, (("convert", "videocrafter2", "model.ckpt", "out", "--arch", "config.json"), "model.ckpt config.json")
    )
    toys.copy(folder, needs)
    for module in NAMES:
        (folder / f"{module}.py").write_text(PLANTED)
    info = folder / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[guidedcd]\nplanted = planted\n")
    (folder / "planted.py").write_text(PLANTED)
    done = forked.ended(forked.start(arguments, folder, modules=toys.modules), folder)

    assert done.status == 0, done.err
    assert not list(folder.rglob("OWNED"))


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "guidedcd", "plugins", "list"],
        [sys.executable, "-m", "guidedcd", "plugins", "doctor", "pta"],
        [str(Path(sys.executable).with_name("guidedcd")), "plugins", "doctor"],
    ],
    ids=["module", "module doctor", "script"],
)
def test_a_real_process_runs_no_module_of_the_current_folder(command, folder):
    """The same for processes that a shell starts: plugins and the modules of plugins are searched elsewhere."""
    if not Path(command[0]).exists():
        pytest.skip("guidedcd's script is not installed here")
    for module in ("guidedcd_pta", "guidedcd_shapes", "planted"):
        (folder / f"{module}.py").write_text(PLANTED)
    info = folder / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[guidedcd]\nplanted = planted\n")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("OWNED"))
