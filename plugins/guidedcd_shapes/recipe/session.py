"""A run of the recipe: its device, time budgets, log and measurements."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.files import write_json
from guidedcd.locks import locked
from guidedcd_shapes import models, vocabulary, world

VARIETY = world.Variety(texture=True, sway=2.0)
"""Variation of the training videos that no caption names, which a sampler takes several steps to decide.

Tilted shapes would cost the teacher a tenth of its accuracy in the same time."""
SECONDS = {
    "vae": 60,
    "text": 18,
    "teacher": 530,
    "clip": 75,
    "hps": 37,
    "internv2": 130,
    "evaluation": 80,
    "motion": 200,
    "dit": 300,
    "dit-evaluation": 60,
}
"""Training time of each stage in seconds; for `motion` and the evaluations a limit."""


@attrs.define(kw_only=True)
class Session:
    """Device, sizes and budgets."""

    out: Path
    seed: int = 0
    tiny: bool = False
    pace: float = 1.0
    """Factor of every time budget."""
    device: torch.device = attrs.field(
        factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"), converter=torch.device
    )
    started: float = attrs.field(factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is used."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights that compute in training and sampling."""
        return torch.bfloat16 if self.cuda else torch.float32

    def size(self, full: int, tiny: int) -> int:
        """`full`, or `tiny` in a tiny session."""
        return tiny if self.tiny else full

    def seconds(self, stage: str) -> float:
        """Time budget of a stage in seconds."""
        return SECONDS[stage] * self.pace

    def generator(self, seed: int) -> torch.Generator:
        """A generator with this seed on the device."""
        return torch.Generator(device=self.device).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def log(self, stage: str, **values: Any) -> None:
        """Print one line and append it to log.jsonl."""
        line = json.dumps({"t": round(time.monotonic() - self.started, 1), "stage": stage, **values})
        print(line, flush=True)
        with open(self.out / "log.jsonl", "a") as file:
            file.write(line + "\n")

    @contextmanager
    def timed(self, stage: str, what: str = "everything") -> Iterator[None]:
        """Log the seconds that a block took; "everything" is the whole stage, which is then recorded as finished."""
        whole, begin = what == "everything", time.monotonic()
        if whole:
            self.record(stage, {"seconds": None})
        yield
        self.synchronize()
        seconds = round(time.monotonic() - begin, 1)
        self.log(stage, did=what, seconds=seconds)
        if whole:
            self.record(stage, {"seconds": seconds})

    def record(self, stage: str, values: Mapping[str, Any]) -> None:
        """Add a stage's constants and measurements to meta.json."""
        self._merge(lambda meta: meta.setdefault("stages", {}).setdefault(stage, {}).update(values))

    def save(self, name: str, model: torch.nn.Module) -> None:
        """Write a model's weights, and its sizes to meta.json; for a teacher also VARIETY."""
        models.save(name, model, self.out)
        about = {name: models.CONFIGS[name]} | ({"variety": attrs.asdict(VARIETY)} if name in ("unet", "dit") else {})
        self._merge(lambda meta: meta.update(about))

    def _merge(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change meta.json under a lock, as stages may run at the same time in one folder."""
        with locked(self.out, "the recipe's folder", wait=True):
            meta = models.meta(self.out) | describe()
            change(meta)
            write_json(self.out / "meta.json", meta)

    def meta(self) -> dict[str, Any]:
        """The records of all stages, by name."""
        return models.meta(self.out).get("stages", {})

    def done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return self.meta().get(stage, {}).get("seconds") is not None

    def load(self, name: str) -> Any:  # classes of libraries whose types are not read
        """A model that an earlier stage saved."""
        return models.load(name, self.out, self.device)

    def ticks(self, stage: str, start: float = 0.0, limit: int = 2) -> Iterator[float]:
        """Spent fractions in [`start`, 1) of a stage's budget, one per step; `limit` steps in a tiny session."""
        if self.tiny:
            yield from (start + (1 - start) * i / limit for i in range(limit))
            return
        self.synchronize()
        begin, step, fraction = time.monotonic(), 0, start
        self.paused = 0.0
        while fraction < 1:
            yield fraction
            step += 1
            if step % 20 == 0:
                self.synchronize()
                fraction = start + (time.monotonic() - begin - self.paused) / self.seconds(stage)

    paused: float = 0.0
    """Seconds of the running stage that do not count as training."""

    def aside(self, function: Callable[[], Any]) -> Any:
        """Call `function` without counting its time as training."""
        self.synchronize()
        begin = time.monotonic()
        result = function()
        self.synchronize()
        self.paused += time.monotonic() - begin
        return result


def speed_up(session: Session, network: torch.nn.Module) -> torch.nn.Module:
    """Switch `network` to the fastest exact layers for the device, in place."""
    from guidedcd_shapes import attention

    temporal = None
    if session.cuda:
        from guidedcd_shapes.recipe import tiny_attention

        error = tiny_attention.error(session.device)
        session.log("kernel", error=error)
        temporal = tiny_attention.Temporal() if error < 1e-4 else None
    return attention.speed_up(network, world.FRAMES, temporal)


def describe() -> dict[str, Any]:
    """The constants that a reader of the weights needs besides the models' sizes."""
    return {
        "scheduler": models.SCHEDULER,
        "flow scheduler": models.FLOW_SCHEDULER,
        "context": models.CONTEXT,
        "vocabulary": list(vocabulary.VOCABULARY),
        "frames": world.FRAMES,
        "size": world.SIZE,
    }
