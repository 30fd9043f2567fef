"""A step's numbers: means over its batches, copied to the host when it is launched and read later."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.training.step_metrics import StepMetrics


class Others:
    """Stands for accelerate with a second process, whose numbers are given."""

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor([values])

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, self.values])


numbers = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=4)


@given(numbers, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_a_line_has_means_over_batches(losses, shares):
    """Tensors and plain numbers are averaged by name over the batches that have them; each loss is reported."""
    count = max(len(losses), len(shares))
    seen = [
        {"loss": torch.tensor((losses * count)[n])} | ({"routed/a": shares[n]} if n < len(shares) else {})
        for n in range(count)
    ]
    metrics = StepMetrics(seen, torch.tensor(3.0)).wait()

    assert metrics.losses == (losses * count)[:count] and metrics.everywhere is None
    assert metrics.line.keys() == {"loss", "routed/a", "grad_norm"} and metrics.line["grad_norm"] == 3.0
    assert metrics.line["loss"] == pytest.approx(sum(metrics.losses) / count)
    assert metrics.line["routed/a"] == pytest.approx(sum(shares) / len(shares))


def test_means_over_processes_leave_out_what_a_process_has_not():
    """Over processes: the mean of those that have a number; none where nobody has it. A process' own line stays."""
    outcome = StepMetrics(
        [{"loss": torch.tensor(1.0), "routed/a": 0.25, "reward/a": torch.tensor(4.0)}], torch.tensor(2.0)
    )
    keys = ("loss", "grad_norm", "routed/a", "reward/a", "reward/b")
    outcome.share(Others([3.0, 2.0, 0.75, math.nan, math.nan]), keys)
    metrics = outcome.wait()

    assert metrics.everywhere == {"loss": 2.0, "grad_norm": 2.0, "routed/a": 0.5, "reward/a": 4.0}
    assert metrics.line["loss"] == 1.0 and metrics.losses == [1.0]


def test_numbers_are_those_of_the_launch():
    """What changes in place after the launch changes nothing."""
    loss = torch.tensor(1.0)
    outcome = StepMetrics([{"loss": loss}], torch.tensor(2.0))
    loss += 1

    assert outcome.wait().line == {"loss": 1.0, "grad_norm": 2.0}


def test_a_share_is_the_mean_of_the_batches_with_guided_samples():
    """Batches without guided samples have NaN, which is left out; without any, the line has no share."""
    batches = [{"loss": torch.tensor(1.0), "share/a": torch.tensor(share)} for share in (0.2, math.nan, 0.4)]
    assert StepMetrics(batches, torch.tensor(1.0)).wait().line["share/a"] == pytest.approx(0.3)
    assert "share/a" not in StepMetrics(batches[1:2], torch.tensor(1.0)).wait().line
    levels = [{"loss": torch.tensor(1.0), "cd_loss/noise-2": torch.tensor(loss)} for loss in (0.1, math.nan, 0.3)]
    assert StepMetrics(levels, torch.tensor(1.0)).wait().line["cd_loss/noise-2"] == pytest.approx(0.2)

    outcome = StepMetrics(batches[:2], torch.tensor(1.0))
    outcome.share(Others([1.0, 0.6]), ("loss", "share/a"))
    assert outcome.wait().everywhere == pytest.approx({"loss": 1.0, "share/a": 0.4})
