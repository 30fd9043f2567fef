"""Self-tests of what was written: a fresh process without this package loads the files and repeats the numbers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedcd.errors import GuidedCDError
from guidedcd.files import child_environment

_CHILD = """
import json, os, queue, shutil, sys, threading, warnings
jobs = queue.SimpleQueue()
def read():
    # The end of the input means that the parent has ended, in whatever way: nothing of this process stays.
    for line in sys.stdin:
        jobs.put(line)
    shutil.rmtree({scratch!r}, ignore_errors=True)
    os._exit(0)
threading.Thread(target=read, daemon=True).start()
if {alone}:
    sys.modules["guidedcd"] = None  # importing it fails, as where it is not installed
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads({threads})
import diffusers, transformers  # while there is nothing else to do yet
while True:
    job = json.loads(jobs.get())
    out = {{}}
    known = {{"folder": job["folder"], "given": load_file(job["given"]), "options": job["options"], "out": out}}
    with torch.no_grad():
        exec(compile(job["script"], "self-test", "exec"), {{**known, "sys": sys, "torch": torch}})
    save_file({{k: v.contiguous() for k, v in out.items()}}, job["result"])
    del out, known
    print("done", flush=True)
"""
TOLERANCE = 1e-4
"""Largest error that passes, relative to the largest magnitude; rounding of float32 is 100 times smaller."""


class Fresh:
    """A fresh process that repeats numbers from files; it starts at once, so that its imports cost no waiting.

    Use as a context manager; `begin` hands it work, and `results` waits for all of it.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """Start it.

        Args:
            alone: Whether this package is out of reach there.
        """
        self._scratch = tempfile.TemporaryDirectory()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see __exit__
        self._pending: list[tuple[str, Path]] = []
        program = _CHILD.format(threads=torch.get_num_threads(), alone=alone, scratch=self._scratch.name)
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**child_environment(), **quiet},
        )

    def begin(self, script: str, folder: Path, inputs: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        """Let it run `script`, after what it was given before.

        Args:
            script: Python; `folder` (str), `given` (tensors) and `options` are defined, torch is imported. What it puts
                into `out` is a result.
            folder: What was written.
            inputs: Tensors for `given`.
            options: JSON values.
        """
        number = len(self._pending)
        given, result = (Path(self._scratch.name, f"{kind}-{number}.safetensors") for kind in ("given", "result"))
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in inputs.items()}, given)
        job = {"script": script, "folder": str(folder), "given": str(given), "result": str(result)}
        self._pending.append((folder.name, result))
        try:
            print(json.dumps({**job, "options": options}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed(folder.name) from None

    def results(self) -> dict[str, Tensor]:
        """Everything that the scripts put into `out`.

        Raises:
            GuidedCDError: The process failed; its last line of output is quoted.
        """
        found: dict[str, Tensor] = {}
        for name, result in self._pending:
            for line in self._process.stdout:  # libraries may print there as well
                if line == "done\n":
                    break
            else:
                raise self._failed(name)
            found |= load_file(result)
        return found

    def _failed(self, name: str) -> GuidedCDError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return GuidedCDError(
            f"the self-test failed: {name} does not load in a fresh process "
            f"({lines[-1].strip() if lines else f'exit status {status}'})"
        )

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()  # what it was asked has been answered, or does not matter any more
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._scratch.cleanup()


def repeated(
    script: str, folder: Path, inputs: Mapping[str, Tensor], options: Mapping[str, Any], *, alone: bool = True
) -> dict[str, Tensor]:
    """What `script` puts into `out` in a process of its own; arguments as of `Fresh.begin`.

    Raises:
        GuidedCDError: The process failed; its last line of output is quoted.
    """
    with Fresh(alone=alone) as process:
        process.begin(script, folder, inputs, options)
        return process.results()


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> float:
    """The largest error, relative to each tensor's largest magnitude.

    Raises:
        GuidedCDError: It is more than `tolerance`, a whole number differs, or a shape does.
    """
    worst = 0.0
    for key, wanted in expected.items():
        value = found[key]
        if value.shape != wanted.shape:
            raise GuidedCDError(f"the self-test failed: {key} is {list(value.shape)}, not {list(wanted.shape)}")
        if not wanted.is_floating_point():
            if not torch.equal(value, wanted.cpu()):
                raise GuidedCDError(f"the self-test failed: {key} differs after reloading")
            continue
        wanted = wanted.cpu().double()
        error = float((value.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        if not error <= tolerance:
            raise GuidedCDError(f"the self-test failed: {key} differs by {error:.2g} of its magnitude after reloading")
        worst = max(worst, error)
    return worst
