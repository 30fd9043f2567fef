"""The numbers of a training step: its losses, its gradient's norm, its rewards.

A GPU computes a step while the host launches the next one. Reading a number on the host would wait for the GPU, which
would then idle. Copies to the host are therefore launched with the step, and read one step later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from accelerate import Accelerator
from torch import Tensor

from guidedcd.devices import to_device
from guidedcd.training.log import SOMETIMES


@attrs.frozen(kw_only=True)
class StepResult:
    """The numbers of a step."""

    line: dict[str, float]
    """Means over the step's batches in this process; of a reward, over those batches in which it has samples."""
    losses: list[float]
    """The loss of each batch."""
    everywhere: dict[str, float] | None
    """Means over all processes, after `StepMetrics.share`; without the numbers that no process has."""


class StepMetrics:
    """The numbers of a launched step, which are being copied to the host.

    Args:
        metrics: By batch, numbers by name, on the device or not; "loss" among them.
        norm: Norm of the gradient, on the device.
    """

    def __init__(self, metrics: Sequence[dict[str, Any]], norm: Tensor) -> None:
        self._listed: dict[str, list[Any]] = {}
        for numbers in metrics:
            for key, value in numbers.items():
                self._listed.setdefault(key, []).append(value)
        self._listed["grad_norm"] = [norm]
        self._device = norm.device
        tensors = [v for values in self._listed.values() for v in values if isinstance(v, Tensor)]
        self._values = _HostCopy(torch.stack([value.detach().float().to(norm.device) for value in tensors]))
        self._means: tuple[Sequence[str], _HostCopy] | None = None

    def share(self, accelerator: Accelerator, keys: Sequence[str]) -> None:
        """Compute the means over processes as well; to be called in all of them with the same keys."""
        means = [_combined(key, self._listed.get(key, [math.nan])) for key in keys]
        host = torch.tensor([math.nan if isinstance(mean, Tensor) else mean for mean in means])
        values = to_device(host, self._device)
        for position, mean in enumerate(means):
            if isinstance(mean, Tensor):
                values[position] = mean
        self._means = keys, _HostCopy(accelerator.gather(values[None]).nanmean(0))

    def wait(self) -> StepResult:
        """The numbers on the host; waits until the device has computed them."""
        copied = iter(self._values.wait())
        listed = {
            key: [next(copied) if isinstance(value, Tensor) else value for value in values]
            for key, values in self._listed.items()
        }
        everywhere = None
        if self._means is not None:
            keys, values = self._means
            means = zip(keys, values.wait(), strict=True)
            everywhere = {key: mean for key, mean in means if not math.isnan(mean)}
        line = {key: _combined(key, values) for key, values in listed.items()}
        line = {key: value for key, value in line.items() if not (key.startswith(SOMETIMES) and math.isnan(value))}
        return StepResult(line=line, losses=listed["loss"], everywhere=everywhere)


class _HostCopy:
    """A vector that is being copied to the host."""

    def __init__(self, values: Tensor) -> None:
        self._copied = values.to("cpu", non_blocking=True)  # to pinned memory
        self._done = None
        if values.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> list[float]:
        if self._done is not None:
            self._done.synchronize()
        return self._copied.tolist()


def _combined(key: str, values: Sequence[Any]) -> Any:
    """The mean of a number over batches; of one that a batch may lack, over the batches that have it."""
    if not key.startswith(SOMETIMES):
        return _mean(values)
    if all(isinstance(value, Tensor) for value in values):
        return torch.stack(list(values)).nanmean()
    numbers = [value for value in values if not math.isnan(value)]
    return _mean(numbers) if numbers else math.nan


def _mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)
