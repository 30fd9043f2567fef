"""Hooks and probes on the temporal attention of a fast network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from tiny_unet import assert_near, inputs, predict, tiny_unet
from torch import Tensor

from guidedcd import acceleration
from guidedcd.models import attention_probes


class Counting:
    """An attention processor that counts its calls."""

    def __init__(self, processor: Callable[..., Tensor], ran: list[int]) -> None:
        self.processor, self.ran = processor, ran

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        self.ran.append(1)
        return self.processor(*args, **kwargs)


def test_records_keep_the_fast_path_and_other_hooks_do_not():
    """Records keep the fast path; under a hook that could change its input the stock attention runs."""
    fast, batch = acceleration.speed_up(tiny_unet()), inputs()
    watched, ran, shapes = attention_probes.temporal_layers(fast), [], []
    for module in watched.values():
        module.processor = Counting(module.processor, ran)
    with attention_probes.record(fast, ["temporal-attention:all"], batch=2) as records:
        predict(fast, *batch)
    assert len(records["temporal-attention:all"]) == len(watched) and not ran

    name = next(name for name in watched if name.startswith("up_blocks"))
    handle = watched[name].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    predict(fast, *batch)
    handle.remove()
    assert len(ran) == 1
    assert [(len(shape), shape[1]) for shape in shapes] == [(3, batch[0].shape[2])]


def test_records_of_a_fast_network_are_the_stock_ones():
    """The recorded attention of a fast network and its gradient equal the stock ones."""
    stock, batch = tiny_unet("attention everywhere"), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock))
    need, results = "temporal-attention:all", []
    for unet in (stock, fast):
        z = batch[0].clone().requires_grad_(True)
        with attention_probes.record(unet, [need], batch=2) as records:
            out = predict(unet, z, *batch[1:])
        maps = records[need]
        gradient = torch.autograd.grad(sum((m * m).sum() for m in maps.values()), z)[0]
        results.append({"out": out, "gradient": gradient, **maps})

    assert len(results[0]) > 5
    assert_near(results[1], results[0])
