"""CUDA graphs of a network: which calls are recorded."""

from __future__ import annotations

import torch
from tiny_unet import inputs, tiny_unet

from guidedcd import acceleration
from guidedcd.acceleration import cuda_graphs
from guidedcd.acceleration.blocks import below
from guidedcd.models import attention_probes


def test_graphs_are_recorded_only_where_they_can_be():
    """Graphs are not used for gradients, under hooks inside the network, or where autocast caches weights."""
    fast = acceleration.speed_up(tiny_unet(), graphs=True)
    replay, batch = fast.forward, inputs()

    def possible() -> bool:
        return replay.possible(batch, below(fast))

    assert isinstance(replay, cuda_graphs.Replay)
    assert not possible()
    with torch.no_grad():
        assert possible()
        with attention_probes.record(fast, ["temporal-attention:all"], batch=2):
            assert not possible()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert possible()
            fast.conv_out.float()  # whose narrow copy autocast would remember
            assert not possible()
    fast.requires_grad_(False)
    assert possible()
