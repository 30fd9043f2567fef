"""One invocation of the recipe: where it runs, what it may spend, what it has measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist

from guidedcd.shapes import models

SECONDS = {
    "vae": 45,
    "text": 15,
    "teacher": 365,
    "polish": 240,
    "clip": 50,
    "hps": 25,
    "internv2": 75,
    "evaluation": 150,
}
"""Training time per stage; `evaluation` is a limit."""


@attrs.define(kw_only=True)
class Session:
    """Device, sizes and budgets."""

    out: Path
    seed: int = 0
    tiny: bool = False
    pace: float = 1.0
    """Multiplies every budget, for trials."""
    device: torch.device = attrs.field(
        factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"), converter=torch.device
    )
    rank: int = attrs.field(factory=lambda: int(os.environ.get("RANK", 0)))
    """Of this process under `torchrun`; only rank 0 logs, measures and writes."""
    started: float = attrs.field(factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is used."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of live weights while training and sampling."""
        return torch.bfloat16 if self.cuda else torch.float32

    def join(self) -> None:
        """Under `torchrun`, bind this process to its device and meet the others."""
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            return
        if self.cuda:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if self.cuda else "gloo")

    def size(self, full: int, tiny: int) -> int:
        """A count, or the tiny one."""
        return tiny if self.tiny else full

    def seconds(self, stage: str) -> float:
        """The budget of a stage."""
        return SECONDS[stage] * self.pace

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the device."""
        return torch.Generator(device=self.device).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def log(self, stage: str, **values: Any) -> None:
        """Print one line and append it to log.jsonl."""
        if self.rank:
            return
        line = json.dumps({"t": round(time.monotonic() - self.started, 1), "stage": stage, **values})
        print(line, flush=True)
        with open(self.out / "log.jsonl", "a") as file:
            file.write(line + "\n")

    @contextmanager
    def timed(self, stage: str, what: str) -> Iterator[None]:
        """Log how long a block took."""
        begin = time.monotonic()
        yield
        self.synchronize()
        self.log(stage, did=what, seconds=round(time.monotonic() - begin, 1))

    def record(self, stage: str, values: dict[str, Any]) -> None:
        """Merge a stage's constants and measurements into meta.json."""
        if self.rank:
            return
        path = self.out / "meta.json"
        meta = json.loads(path.read_text()) if path.exists() else {}
        meta.setdefault("stages", {})[stage] = values
        path.write_text(json.dumps(meta | describe(), indent=1) + "\n")

    def meta(self) -> dict[str, Any]:
        """What earlier stages have recorded."""
        path = self.out / "meta.json"
        return json.loads(path.read_text()).get("stages", {}) if path.exists() else {}

    def done(self, stage: str) -> bool:
        """Whether a stage has recorded its results."""
        return stage in self.meta()

    def load(self, name: str) -> torch.nn.Module:
        """A model that an earlier stage has saved."""
        return models.load(name, self.out, self.device)

    def ticks(self, stage: str, limit: int = 2) -> Iterator[float]:
        """Fractions in [0, 1) of a stage's budget, one per step; in a tiny session `limit` steps."""
        if self.tiny:
            yield from (i / limit for i in range(limit))
            return
        self.synchronize()
        begin, step, fraction = time.monotonic(), 0, 0.0
        self.paused = 0.0
        while fraction < 1:
            yield fraction
            step += 1
            if step % 20 == 0:
                self.synchronize()
                fraction = self.agree((time.monotonic() - begin - self.paused) / self.seconds(stage))

    paused: float = 0.0
    """Seconds that the running stage spent on something other than training."""

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if not dist.is_initialized():
            return value
        held = [value]
        dist.broadcast_object_list(held, 0)
        return held[0]

    def aside(self, function: Callable[[], Any]) -> Any:
        """Run something without charging the running stage's budget."""
        self.synchronize()
        begin = time.monotonic()
        result = function()
        self.synchronize()
        self.paused += time.monotonic() - begin
        return result


def speed_up(session: Session, network: torch.nn.Module) -> torch.nn.Module:
    """The fastest exact paths for this device, in place."""
    from guidedcd.shapes import fast, world

    temporal = None
    if session.cuda:
        from guidedcd.shapes.recipe import tiny_attention

        error = tiny_attention.error(session.device)
        session.log("kernel", error=error)
        temporal = tiny_attention.Temporal() if error < 1e-4 else None
    return fast.speed_up(network, world.FRAMES, temporal)


def describe() -> dict[str, Any]:
    """What every reader of the weights needs."""
    from guidedcd.shapes import text, world

    return {
        **models.CONFIGS,
        "scheduler": models.SCHEDULER,
        "context": models.CONTEXT,
        "vocabulary": list(text.VOCABULARY),
        "frames": world.FRAMES,
        "size": world.SIZE,
    }
