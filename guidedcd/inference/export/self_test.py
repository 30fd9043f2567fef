"""Self-tests of exports: a fresh process without this package loads the files and computes the same numbers."""

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
    # The end of the input means that the parent process has ended: delete the temporary files and end as well.
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
import diffusers, transformers  # before the first job arrives
while True:
    job = json.loads(jobs.get())
    out = {{}}
    names = {{"folder": job["folder"], "inputs": load_file(job["inputs"]), "options": job["options"], "out": out}}
    with torch.no_grad():
        exec(compile(job["script"], "self-test", "exec"), {{**names, "sys": sys, "torch": torch}})
    save_file({{k: v.contiguous() for k, v in out.items()}}, job["result"])
    del out, names
    print("done", flush=True)
"""
TOLERANCE = 1e-4
"""Largest error allowed, relative to the largest magnitude; rounding errors of float32 are 100 times smaller."""


class CleanProcess:
    """A fresh Python process that loads exported files; it imports its libraries while the parent writes the files.

    Use as a context manager; `begin` sends a job, and `results` waits for all jobs.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """Start the process.

        Args:
            alone: Whether importing this package fails there, as where it is not installed.
        """
        self._scratch = tempfile.TemporaryDirectory()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see __exit__
        self._pending: list[tuple[str, Path]] = []
        program = _CHILD.format(threads=torch.get_num_threads(), alone=alone, scratch=self._scratch.name)
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
        # diffusers copies the pipeline files of folders there.
        quiet["HF_MODULES_CACHE"] = str(Path(self._scratch.name, "modules"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**child_environment(), **quiet},
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def begin(self, script: str, folder: Path, inputs: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        """Send a script, which runs after those sent before.

        Args:
            script: Python code that reads `folder` (str), `inputs` (tensors by name), `options`, `torch` and `sys`, and
                stores its results in the mapping `out`.
            folder: The exported folder.
            inputs: Tensors by name.
            options: JSON values by name.

        Raises:
            GuidedCDError: The process has ended with an error; its last line of output is quoted.
        """
        number = len(self._pending)
        tensors, result = (Path(self._scratch.name, f"{kind}-{number}.safetensors") for kind in ("inputs", "result"))
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in inputs.items()}, tensors)
        job = {"script": script, "folder": str(folder), "inputs": str(tensors), "result": str(result)}
        self._pending.append((folder.name, result))
        try:
            print(json.dumps({**job, "options": options}), file=self._stdin, flush=True)
        except BrokenPipeError:
            raise self._failed(folder.name) from None

    def results(self) -> dict[str, Tensor]:
        """The tensors that the scripts stored in `out`, by name.

        Raises:
            GuidedCDError: The process failed; its last line of output is quoted.
        """
        results: dict[str, Tensor] = {}
        for name, result in self._pending:
            for line in self._stdout:  # libraries may print there as well
                if line == "done\n":
                    break
            else:
                raise self._failed(name)
            results |= load_file(result)
        return results

    def _failed(self, name: str) -> GuidedCDError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return GuidedCDError(
            f"the self-test failed: {name} does not load in a fresh process "
            f"({lines[-1].strip() if lines else f'exit status {status}'})"
        )

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._process.terminate()  # its results have been read, or an error makes them useless
        self._process.wait()
        self._stdout.close()
        self._errors.close()
        self._scratch.cleanup()


def run_clean(
    script: str, folder: Path, inputs: Mapping[str, Tensor], options: Mapping[str, Any], *, alone: bool = True
) -> dict[str, Tensor]:
    """The tensors that `script` stores in `out`, computed in a fresh process; arguments as in `CleanProcess`.

    Raises:
        GuidedCDError: The process failed; its last line of output is quoted.
    """
    with CleanProcess(alone=alone) as process:
        process.begin(script, folder, inputs, options)
        return process.results()


def assert_close(expected: Mapping[str, Tensor], results: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> float:
    """The largest error of all `results`, relative to the largest magnitude of each tensor.

    Raises:
        GuidedCDError: The error exceeds `tolerance`, or a whole number or a shape differs.
    """
    worst = 0.0
    for key, reference in expected.items():
        value = results[key]
        if value.shape != reference.shape:
            raise GuidedCDError(f"the self-test failed: {key} is {list(value.shape)}, not {list(reference.shape)}")
        if not reference.is_floating_point():
            if not torch.equal(value, reference.cpu()):
                raise GuidedCDError(f"the self-test failed: {key} differs after reloading")
            continue
        reference = reference.cpu().double()
        error = float((value.double() - reference).abs().max() / reference.abs().max().clamp(min=1e-12))
        if not error <= tolerance:
            raise GuidedCDError(f"the self-test failed: {key} differs by {error:.2g} of its magnitude after reloading")
        worst = max(worst, error)
    return worst
