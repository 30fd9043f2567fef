"""Compiled layers: no graph breaks, the stock gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_unet import assert_near, gradients, inputs, predict, tiny_unet

from guidedcd import acceleration
from guidedcd.acceleration import layers, switch
from guidedcd.models import attention_probes


def test_unknown_modes_are_refused():
    """An unknown mode is refused with the list of modes."""
    with pytest.raises(ValueError, match="None, blocks, blocks-tuned: 'all'"):
        acceleration.speed_up(tiny_unet(), compile="all")


@pytest.mark.slow
def test_compiled_layers_compute_the_same(monkeypatch):
    """Compiled layers have no graph breaks, share functions by size, and have the stock gradients."""
    from torch._dynamo.testing import CompileCounterWithBackend

    functions = {}

    def compiled(function, mode):
        counter = CompileCounterWithBackend("aot_eager")
        result = torch.compile(function, dynamic=False, backend=counter, fullgraph=True)
        return functions.setdefault(function, (result, counter))[0]

    monkeypatch.setattr(switch, "compiled", compiled)
    stock, batch = tiny_unet("attention everywhere"), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock), compile="blocks")

    assert_near(gradients(fast, *batch), gradients(stock, *batch))
    assert functions[layers.temporal_convolution][1].frame_count == 2  # 8 channels at two sizes, ten layers
    with attention_probes.record(fast, ["temporal-attention:all"], batch=2) as records:
        predict(fast, *batch)
    assert len(records["temporal-attention:all"]) == len(attention_probes.temporal_layers(stock))
