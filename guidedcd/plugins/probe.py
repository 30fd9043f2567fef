"""Importing plugins in processes of their own, where they may print, crash or hang. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import attrs

from guidedcd.errors import PluginError
from guidedcd.files import child_environment
from guidedcd.plugins.isolation import Import
from guidedcd.plugins.registry import Failure, entry_points, is_blocked

HEAVY = ("torch", "diffusers", "transformers", "open_clip")
"""Packages that registering a component must not import, because `guidedcd --help` waits for every plugin."""

LIMIT = 30.0
"""Seconds after which the import of a plugin is stopped."""

CODE = """
import importlib, json, os, sys, threading, time
import guidedcd, guidedcd.plugins.registry
from guidedcd.plugins.process_state import WHOLE, restored
module, path, heavy = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
text, result, before, failure = sys.stdout, open(path, "w"), threading.enumerate(), None
process = os.getpid()
began = time.perf_counter()
with restored(WHOLE) as changes:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        failure = error
if os.getpid() != process:  # the module forked
    os._exit(0)
seconds = time.perf_counter() - began
threads = [repr(one.name) for one in threading.enumerate() if one not in before]
heavy = [name for name in heavy if name in sys.modules]
failed = failure is not None
with result:
    json.dump(dict(seconds=seconds, heavy=heavy, changes=changes, threads=threads, failed=failed), result)
try:
    text.flush()
    sys.stderr.flush()
finally:
    os._exit(0)
"""
"""Imports a module and writes what it did to a file; it does not wait for threads of the module."""


@attrs.frozen(kw_only=True)
class Probe:
    """The import of one module in a new process."""

    heavy: Sequence[str] = ()
    """Large packages that it imported."""
    record: Import = attrs.field(factory=Import)
    death: str = ""
    """How the process ended before the import did; empty if it did not."""

    def complaints(self, module: str) -> list[str]:
        """A sentence for each thing that an import must not do."""
        sentences = []
        if self.heavy:
            sentences.append(
                f"importing {module} imports {' '.join(self.heavy)}; move that code to the module named in the target"
            )
            if self.record.seconds > 0:  # a large package is the reason for the time
                return sentences + attrs.evolve(self.record, seconds=0.0).complaints()
        return sentences + self.record.complaints()


def probe(module: str, limit: float = LIMIT) -> Probe:
    """Import `module` in a new process; repeated calls in the same environment return the first result.

    Args:
        module: Its full name.
        limit: Seconds after which the process is killed.
    """
    return _probe(module, limit, os.pathsep.join(path for path in sys.path if path))


@cache
def _probe(module: str, limit: float, path: str) -> Probe:
    environment = child_environment() | {"PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder, "result"), Path(folder, "output")
        with output.open("w", encoding="utf-8") as stream:
            command = [sys.executable, "-P", "-c", CODE, module, str(result), ",".join(HEAVY)]
            options = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream, "env": environment}
            try:
                status = subprocess.run(command, timeout=limit, check=False, **options).returncode  # type: ignore[call-overload]
            except subprocess.TimeoutExpired:
                return Probe(death=f"importing it takes longer than {limit:.0f} s{_end_of(output)}")
        if not result.exists() or not result.read_text(encoding="utf-8"):
            end = f"signal {-status}" if status < 0 else f"status {status}"
            return Probe(death=f"importing it ended the process with {end}{_end_of(output)}")
        values = json.loads(result.read_text(encoding="utf-8"))
        text = "" if values["failed"] else output.read_text(encoding="utf-8", errors="replace")
    record = Import(seconds=values["seconds"], output=text, changes=values["changes"], threads=values["threads"])
    return Probe(heavy=tuple(values["heavy"]), record=record)


def _end_of(output: Path) -> str:
    """The last 200 characters of a process's output, as a part of a sentence; "" without output."""
    text = " ".join(output.read_text(encoding="utf-8", errors="replace").split())
    return f"; the last that it printed is {text[-200:]!r}" if text else ""


def fatal_plugins() -> list[Failure]:
    """The installed plugins whose import ends or blocks a process, each imported in a process of its own."""
    plugins = [
        (id_, version, entry.module)
        for id_, version, entry in entry_points()
        if entry.pattern.match(entry.value) and not is_blocked(id_)
    ]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        probes = pool.map(probe, [module for _, _, module in plugins])
    return [
        Failure(id_, version, PluginError(one.death))
        for (id_, version, _), one in zip(plugins, probes, strict=True)
        if one.death
    ]
