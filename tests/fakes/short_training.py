"""Training runs of a few steps: in this process, interrupted before a step, or in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guidedcd.config.run import Run
from guidedcd.files import write_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.step import TrainStep
from guidedcd.training.trainer import Trainer

FAKES = Path(__file__).parent
REPOSITORY = FAKES.parents[1]

TWO_PROCESSES = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--local-addr", "127.0.0.1")
"""Two gloo processes that meet at a free port, whatever else runs on the machine."""

SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from guidedcd.config.resolve import run_from_dict
from guidedcd.documents import read_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.trainer import Trainer
run = run_from_dict(read_json(Path(sys.argv[1])))
teacher = run.teacher.build()
store = preprocess(run, store_folder=Path(sys.argv[2]), teacher=teacher)
if len(sys.argv) > 4:
    folder = Path(sys.argv[4]); folder.mkdir(exist_ok=True)
    Trainer(run, folder, LatentStore(store), teacher).fit()
"""
"""Preprocess, and train where there is a folder for it: arguments run.json, store, paths as JSON, folder."""


def trained(run: Run, folder: Path, store: Path) -> list[dict]:
    """Train in `folder`; the log without its clock."""
    folder.mkdir(exist_ok=True)
    Trainer(run, folder, LatentStore(preprocess(run, store_folder=store)), run.teacher.build()).fit()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds", "samples_per_second", "memory_gb"))}
        for line in lines
    ]


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Inside, training is stopped before step `number`, and nothing else ends it."""
    begin = TrainStep.begin

    def stopping(self, step):
        if step == number:
            raise KeyboardInterrupt
        return begin(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "begin", stopping)
        yield


def launch(run: Run, folder: Path, store: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    """Preprocess and train in a process of its own, with the arguments `prefix` of Python before the script."""
    return _started(run, folder, store, prefix, [str(folder)])


def launch_preprocessing(run: Run, store: Path) -> subprocess.Popen:
    """Preprocess in a process of its own."""
    return _started(run, store, store, (), [])


def _started(run: Run, name: Path, store: Path, prefix: tuple[str, ...], more: list[str]) -> subprocess.Popen:
    script, config = name.parent / "script.py", name.parent / f"{name.name}.json"
    script.write_text(SCRIPT)
    write_json(config, run.to_dict())
    paths = [str(FAKES), *(path for path in sys.path if "site-packages" in path and "tmp" in path)]
    command = [sys.executable, *prefix, str(script), str(config), str(store), json.dumps(paths), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *paths])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
