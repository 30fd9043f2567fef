"""What a step of training found out: its losses, its gradient's norm, its rewards.

A GPU computes a step while the host launches the next one, but for the first question about a number: that waits until
all is done, and then the GPU waits for the host. So numbers are sent off when a step is launched, and asked for later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from accelerate import Accelerator
from torch import Tensor


@attrs.frozen(kw_only=True)
class StepResult:
    """The numbers of a step."""

    line: dict[str, float]
    """Means over the step's batches in this process; of a reward, over those batches in which it has samples."""
    losses: list[float]
    """Of each batch."""
    everywhere: dict[str, float] | None
    """The means over all processes, where they were asked for; one that no process has is left out."""


class StepMetrics:
    """The numbers of a launched step, on their way to the host.

    Args:
        seen: By batch, numbers by name, on the device or not; "loss" among them.
        norm: Of the gradient, on the device.
    """

    def __init__(self, seen: Sequence[dict[str, Any]], norm: Tensor) -> None:
        self._listed: dict[str, list[Any]] = {}
        for numbers in seen:
            for key, value in numbers.items():
                self._listed.setdefault(key, []).append(value)
        self._listed["grad_norm"] = [norm]
        self._device = norm.device
        held = [v for values in self._listed.values() for v in values if isinstance(v, Tensor)]
        self._values = _Sent(torch.stack([value.detach().float().to(norm.device) for value in held]))
        self._means: tuple[Sequence[str], _Sent] | None = None

    def share(self, accelerator: Accelerator, keys: Sequence[str]) -> None:
        """Also take the means over processes, to be called in all of them with the same keys."""
        known = [_mean(self._listed.get(key, [math.nan])) for key in keys]
        host = torch.tensor([math.nan if isinstance(value, Tensor) else value for value in known])
        if self._device.type == "cuda":
            host = host.pin_memory()  # the copy of any other memory waits for the device
        values = host.to(self._device, non_blocking=True)
        for place, value in enumerate(known):
            if isinstance(value, Tensor):
                values[place] = value
        self._means = keys, _Sent(accelerator.gather(values[None]).nanmean(0))

    def wait(self) -> StepResult:
        """The numbers; waits for the device if it is not so far."""
        sent = iter(self._values.wait())
        listed = {
            key: [next(sent) if isinstance(value, Tensor) else value for value in values]
            for key, values in self._listed.items()
        }
        everywhere = None
        if self._means is not None:
            keys, values = self._means
            found = zip(keys, values.wait(), strict=True)
            everywhere = {key: value for key, value in found if not math.isnan(value)}
        line = {key: _mean(values) for key, values in listed.items()}
        return StepResult(line=line, losses=listed["loss"], everywhere=everywhere)


class _Sent:
    """A vector that is being copied to the host."""

    def __init__(self, values: Tensor) -> None:
        self._copied = values.to("cpu", non_blocking=True)  # to memory that a GPU writes by itself
        self._done = None
        if values.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> list[float]:
        if self._done is not None:
            self._done.synchronize()
        return self._copied.tolist()


def _mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)
