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
sys.path[:0] = json.loads(sys.argv[4])
import torch
torch.set_num_threads(1)
from pathlib import Path
from guidedcd.data.routing import Sample
from guidedcd.config.resolve import run_from_dict
from guidedcd.documents import read_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.workflow import distil
from guidedcd.training.trainer import Trainer
run = run_from_dict(read_json(Path(sys.argv[1])))
folder = Path(sys.argv[2]); folder.mkdir(exist_ok=True)
teacher = run.teacher.build()
Trainer(run, folder, LatentStore(preprocess(run, store_folder=Path(sys.argv[3]), teacher=teacher)), teacher).fit()
"""


def trained(run: Run, folder: Path, store: Path) -> list[dict]:
    """Train in `folder`; the log without its clock."""
    folder.mkdir(exist_ok=True)
    Trainer(run, folder, LatentStore(preprocess(run, store_folder=store)), run.teacher.build()).fit()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "samples_per_second", "memory_gb")} for line in lines
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
    """Train in a process of its own."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    config = folder.parent / f"{folder.name}.json"
    write_json(config, run.to_dict())
    paths = [str(FAKES), *(p for p in sys.path if "site-packages" in p and "tmp" in p)]
    command = [sys.executable, *prefix, str(script), str(config), str(folder), str(store), json.dumps(paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *paths])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
