"""Cases of the campaign of faults: what is damaged, which command runs, and the rules that judge every one of them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import forked
import torch
from safetensors.torch import load_file, save_file

DEEP = "[" * 100_000 + "]" * 100_000
NOBODY = 65534
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LOCKS = (".lock", ".evaluation.lock")
TIMES = ("seconds", "samples_per_second", "memory_gb", "summary")
LONGEST = 1000
"""Characters of the longest error."""
Change = Callable[[Path], object]


class Toys(Protocol):
    """What the cases copy, see conftest.py."""

    modules: list[Path]

    def copy(self, folder: Path, names: str) -> None: ...


@attrs.frozen
class Case:
    """A command that is given something bad."""

    name: str
    arguments: Sequence[str]
    words: str = ""
    """A pattern in the output."""
    change: Change = lambda folder: None
    """What is damaged before the command runs."""
    needs: str = "run"
    """Files and folders of the trained run that are copied."""
    status: int | Sequence[int] = 2
    """The exit status, or those that are accepted."""
    writes: Sequence[str] = ()
    """Patterns of files that the command may write or change."""
    user: int | None = None
    variables: Mapping[str, str] = attrs.field(factory=dict)
    seconds: float = 120.0
    """A command that takes longer hangs."""


def ids(case: Case) -> str:
    """A case's name in pytest's output."""
    return case.name.replace(" ", "-")


def judge(case: Case, toys: Toys, folder: Path, prepare: Callable[[], object] | None = None) -> forked.Ended:
    """Run a case in `folder`, and check the rules that hold for every bad input.

    The exit status; one `error:` line of bounded length; no traceback and no control character; no file lost or
    changed; no temporary file; nothing that was damaged or planted runs.
    """
    toys.copy(folder, case.needs)
    case.change(folder)
    if case.user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, case.user, case.user, follow_symlinks=False)
    before = contents(folder)
    child = forked.start(case.arguments, folder, modules=toys.modules, user=case.user, prepare=prepare)
    done = forked.ended(child, folder, seconds=case.seconds)
    printed = done.out + done.err
    statuses = (case.status,) if isinstance(case.status, int) else case.status

    assert done.status in statuses, f"{done.status}: {done.err[-2000:]}"
    assert "Traceback" not in printed
    assert not CONTROL.search(printed)
    assert re.search(case.words, printed), printed[-2000:]
    if done.status == 2:
        check_error(done.err)
    after = contents(folder)
    if done.status == 2 and case.status != 2:  # of what a success writes, an empty folder may be there already
        new = {name for name in after.keys() - before.keys() if after[name] == "folder"}
        after = {name: one for name, one in after.items() if name not in new or not fits(name, case.writes)}
        check_files(before, after)
    else:
        check_files(before, after, case.writes)
    return done


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of several patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def check_error(err: str) -> None:
    """One line `error: ...` of bounded length; progress and warnings may come before it."""
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: "), err
    assert sum(line.startswith("error: ") for line in lines) == 1, err
    assert all(line.startswith(("error: ", "warning: ", "waiting ")) for line in lines), err
    assert len(lines[-1]) < LONGEST, err


def check_files(before: Mapping[str, str], after: Mapping[str, str], writes: Sequence[str] = ()) -> None:
    """No file is lost, changed or new, but those that the command may write; no temporary file is left.

    A store's list of the runs that use it may grow.
    """
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    wrong = sorted(name for name in changed if not fits(name, writes) and "store/runs" not in name)
    assert not wrong, f"lost, changed or new: {', '.join(wrong)}"
    assert not [name for name in after if name.endswith(".part")]
    assert not [name for name in after if name.startswith("OWNED")]


def contents(folder: Path) -> dict[str, str]:
    """By name, what every file, link and folder is; locks do not count."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            entries[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.name not in LOCKS:
            entries[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**27 else "large"
        elif path.is_dir():
            entries[name] = "folder"
        elif not path.is_file():
            entries[name] = "special"
    return entries


def timeless(value: Any) -> Any:
    """A JSON value without what the clock gave."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if not key.startswith(TIMES)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, str]:
    """By name, what a command has left; times, locks, checkpoints and the list of a store's runs do not count."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_lock = path.name in LOCKS or path.name.startswith(".part-")
        if not path.is_file() or is_lock or "checkpoints" in name or "store/runs/" in name:
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


def text(name: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def edit(name: str, /, **values: object) -> Change:
    """Change keys of a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def drop(name: str, *keys: str) -> Change:
    """Remove keys of a JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if key not in keys}))

    return change


def large(name: str, size: int) -> Change:
    """Make a file of `size` bytes, all zero, that takes no room."""

    def change(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return change


def cut(name: str, fraction: float = 0.5) -> Change:
    """Keep the first part of a file."""
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * fraction))


def both(*changes: Change) -> Change:
    """Several changes, one after the other."""
    return lambda folder: [change(folder) for change in changes]


def remove(name: str) -> Change:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def pipe(name: str) -> Change:
    """Put a named pipe, for which nobody writes, in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def directory(name: str) -> Change:
    """Put a folder in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def link(name: str, target: str) -> Change:
    """Put a symbolic link in the place of a file; its target is in the same folder unless it begins with a slash."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / target)

    return change


def mode(name: str, bits: int) -> Change:
    """Change a file's permissions."""
    return lambda folder: os.chmod(folder / name, bits)


def flip(name: str, where: float = 0.5, bit: int = 4) -> Change:
    """Flip one bit of a file, by default in its middle."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[min(int(len(content) * where), len(content) - 1)] ^= 1 << bit
        (folder / name).write_bytes(content)

    return change


def tensors(name: str, convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Change the tensors of a safetensors file, and the checksum beside it if there is one."""

    def change(folder: Path) -> None:
        path = folder / name
        save_file(convert(load_file(path)), path)
        about = path.with_suffix(".json")
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if about.exists():
            edit(str(about), sha256=checksum)(folder)
        if (sums := path.with_name("checksums.json")).exists():
            edit(str(sums), sha256={**json.loads(sums.read_text())["sha256"], path.name: checksum})(folder)

    return change


def unfinished(folder: Path) -> None:
    """Turn the run into one that was interrupted at its checkpoint."""
    for path in sorted((folder / "run" / "student").iterdir()):
        path.unlink()
    (folder / "run" / "student").rmdir()
    (folder / "run" / "evaluation.json").unlink()


STEP = "run/checkpoints/step-000002"


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


class Hostile:
    """A pickle that runs a command when it is read as usual."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch OWNED",)


def json_damages(name: str) -> dict[str, Change]:
    """By name, ways in which a JSON file can be unreadable or of another form."""
    return {
        "missing": remove(name),
        "empty": text(name, ""),
        "a list": text(name, "[]"),
        "a number": text(name, "7"),
        "a text": text(name, '"text"'),
        "null": text(name, "null"),
        "without keys": text(name, "{}"),
        "cut": cut(name),
        "nested": text(name, DEEP),
        "nested objects": text(name, '{"a":' * 50_000 + "1" + "}" * 50_000),
        "binary": text(name, bytes(range(256)) * 4),
        "no UTF-8": text(name, b'{"a": "\xff\xfe"}'),
        "UTF-16": text(name, '{"a": 1}'.encode("utf-16")),
        "a folder": directory(name),
        "a pipe": pipe(name),
        "a device": link(name, "/dev/zero"),
        "a link to itself": link(name, name),
        "a broken link": link(name, "nowhere"),
        "2 GB": large(name, 2**31),
        "long digits": text(name, '{"format": ' + "9" * 5000 + "}"),
        "NaN": text(name, '{"format": NaN}'),
    }


def binary_damages(name: str) -> dict[str, Change]:
    """By name, ways in which a file of tensors can be damaged."""
    return {
        "missing": remove(name),
        "empty": text(name, ""),
        "cut": cut(name),
        "without its last byte": cut(name, 0.9999),
        "text": text(name, "I am a text. " * 50),
        "long header": text(name, (2**62).to_bytes(8, "little") + b"{}"),
        "header of another form": text(name, (2).to_bytes(8, "little") + b"[]"),
        "a folder": directory(name),
        "a pipe": pipe(name),
        "a device": link(name, "/dev/zero"),
        "a broken link": link(name, "nowhere"),
    }


def other_types(values: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """By name, changes that give one key of a JSON object a value of another type."""
    others: list[object] = [[], {}, "text", -1, 1e308, None, True]
    changes = {}
    for number, (key, value) in enumerate(values.items()):
        fitting = [other for other in others if type(other) is not type(value)]
        other = fitting[number % len(fitting)]
        changes[f"{key} {other!r}"] = {key: other}
    return changes
