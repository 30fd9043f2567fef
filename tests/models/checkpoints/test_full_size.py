"""VideoCrafter2 at its published size, from random weights: memory and time of reading and of converting it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GB = 1e9

WATCHED = """
import os, sys, threading, time
import torch
torch.set_num_threads(1)
peak, done = 0, False

def anonymous(pid):
    try:
        lines = open(f"/proc/{pid}/status").read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while not done:
        children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
        peak = max(peak, sum(anonymous(pid) for pid in [os.getpid(), *children]))
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
"""
READ = """
from guidedcd.models.checkpoints.videocrafter2 import load
parts = load(sys.argv[1], fps=8)
print(peak)
"""
CONVERT = """
from guidedcd.inference.export.convert import convert_videocrafter2
convert_videocrafter2(sys.argv[1], sys.argv[1] + ".out", fps=8)
print(peak)
"""


@pytest.mark.slow
def test_the_published_size_is_read_and_converted_in_the_space_of_its_weights(shared, tmp_path):
    """At most 1.3 times the file in anonymous memory, all processes together."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    manifest_of_parts = json.loads((shared().parent / "facts" / "manifests" / "vc2_full_manifest.json").read_text())
    shapes = {key: shape for part, keys in manifest_of_parts.items() if part != "_meta" for key, shape in keys.items()}
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    free = shutil.disk_usage(tmp_path).free
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 2.5 * size or memory < 1.5 * size:
        pytest.skip(
            f"needs {2.5 * size / GB:.0f} GB of disk and {1.5 * size / GB:.0f} GB of memory, "
            f"there are {free / GB:.0f} and {memory / GB:.0f}"
        )
    noise = torch.randn(max(math.prod(shape) for shape in shapes.values()))  # one for all, scaled to stay finite

    def drawn(shape: list[int]) -> torch.Tensor:
        spread = 0.1 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[1:]))
        return noise[: math.prod(shape)].view(shape) * spread

    state = {key: drawn(shape) for key, shape in shapes.items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    state["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    path = tmp_path / "model.ckpt"
    try:
        torch.save({"state_dict": state}, path)
        del state
        read, converted = (
            subprocess.run([sys.executable, "-c", WATCHED + script, str(path)], capture_output=True, text=True)
            for script in (READ, CONVERT)
        )
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(f"{path}.out", ignore_errors=True)

    for done in (read, converted):
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[-1]) < 1.3 * size
