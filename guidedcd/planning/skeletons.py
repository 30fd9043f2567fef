"""Teachers and rewards without their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from guidedcd.acceleration.int8 import quantise
from guidedcd.config.kinds import Chosen
from guidedcd.planning.meter import without_memory


def outline(chosen: Chosen) -> Any:
    """A component on the meta device.

    A target that takes the argument `weights` is called with `weights=False` and opens no file. Any other is built with
    its weights, whose memory is freed afterwards. Those of a reward with the option `quantize` are counted in int8.
    """
    component = without_memory(chosen.outline())
    if getattr(chosen.config, "quantize", "no") == "int8" and isinstance(component, nn.Module):
        quantise(component)
    return component
