"""Self-tests of what was written: a fresh process without this package loads the files and repeats the numbers."""

from __future__ import annotations

import json
import os
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

_BEFORE = """
import json, sys, warnings
if {alone}:
    sys.modules["guidedcd"] = None  # importing it fails, as where it is not installed
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads({threads})
folder, given, result, options = sys.argv[1], load_file(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
out = {{}}
with torch.no_grad():
"""
_AFTER = """
save_file({k: v.contiguous() for k, v in out.items()}, result)
"""
TOLERANCE = 1e-4
"""Largest error that passes, relative to the largest magnitude; rounding of float32 is 100 times smaller."""


def repeated(
    script: str, folder: Path, inputs: Mapping[str, Tensor], options: Mapping[str, Any], *, alone: bool = True
) -> dict[str, Tensor]:
    """What `script` puts into `out` in a process of its own.

    Args:
        script: Python; `folder` (str), `given` (tensors) and `options` are defined, torch is imported.
        folder: What was written.
        inputs: Tensors for `given`.
        options: JSON values.
        alone: Whether this package is out of reach there.

    Raises:
        GuidedCDError: The process failed; its last line of output is quoted.
    """
    body = "\n".join("    " + line for line in script.strip().splitlines())
    program = _BEFORE.format(threads=torch.get_num_threads(), alone=alone) + body + _AFTER
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "given.safetensors"), Path(scratch, "result.safetensors")
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in inputs.items()}, given)
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), str(given), str(result), json.dumps(options)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
                "DIFFUSERS_VERBOSITY": "error",
            },
        )
        if done.returncode:
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            raise GuidedCDError(
                f"the self-test failed: {folder.name} does not load in a fresh process "
                f"({lines[-1].strip() if lines else f'exit status {done.returncode}'})"
            )
        return load_file(result)


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
