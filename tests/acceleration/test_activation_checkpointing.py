"""Forward passes that end early, and activations that are computed again."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from tiny_unet import assert_near, gradients, inputs, predict, saved_numbers, tiny_unet
from toy_plugin import make as toy_run

from guidedcd.acceleration.activation_checkpointing import checkpoint_layers, recomputing
from guidedcd.acceleration.switch import speed_up
from guidedcd.diffusion.randomness import noise
from guidedcd.models.attention_probes import recorded_layers, temporal_layers

make = partial(toy_run, replace=("energy",))


def look(teacher, needs: tuple[str, ...], tail: str, recompute: str = "nothing"):
    """(what is seen of two samples, the gradient of a sum of records, numbers kept for it)."""
    z = noise(0, 0, (2, *teacher.geometry.latent_shape)).requires_grad_()
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.data_ptr()] = x.numel()
        return x

    weights = {p.data_ptr() for p in teacher.network.parameters()}
    how = {"tail": tail, "recompute": recompute != "nothing"}
    network = teacher.network
    temporal, recorded = temporal_layers(network).values(), recorded_layers(network, needs)
    with recomputing(network, recompute, temporal=temporal, keep=recorded):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            seen = teacher.seen(z, torch.tensor([300, 800]), teacher.null(2), needs, **how)
            value = sum(maps.square().sum() for maps in seen.records[needs[0]].values())
        (gradient,) = torch.autograd.grad(value, z)
    return seen, gradient, sum(count for position, count in saved.items() if position not in weights)


def test_a_pass_may_end_at_its_last_record(toy):
    """With the tail "none" nothing after the last record runs, "detached" runs it without gradient; records agree."""
    teacher = make().teacher.build()
    ran = []
    teacher.network.mid_block.register_forward_hook(lambda *_: ran.append("middle"))
    teacher.network.conv_out.register_forward_hook(lambda *_: ran.append("end"))
    needs = ("temporal-attention:down_blocks",)
    passes = {tail: look(teacher, needs, tail) for tail in ("whole", "detached", "none")}

    assert ran == ["middle", "end", "middle", "end"]
    assert (passes["whole"][0].output.requires_grad, passes["detached"][0].output.requires_grad) == (True, False)
    assert torch.equal(passes["whole"][0].output, passes["detached"][0].output)
    assert passes["none"][0].output.numel() == 0
    assert passes["detached"][2] < passes["whole"][2]
    for tail in ("detached", "none"):
        assert torch.equal(passes[tail][1], passes["whole"][1])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("fast", [False, True])
def test_recomputed_activations_are_not_kept(toy, fast):
    """Gradients are bit for bit the same, far less is kept for them, and the network is left as it was."""
    teacher = make().teacher.build()
    if fast:
        speed_up(teacher.network)
    needs = ("temporal-attention:official",)
    before = [module for module in teacher.network.modules() if "forward" in vars(module)]
    plain, cheap, most = (look(teacher, needs, "detached", what) for what in ("nothing", "cheap", "most"))

    assert [module for module in teacher.network.modules() if "forward" in vars(module)] == before
    for seen, gradient, _ in (cheap, most):
        assert torch.equal(gradient, plain[1])
        assert torch.equal(seen.output, plain[0].output)
    assert cheap[2] < 0.5 * plain[2] and most[2] < 0.3 * plain[2]
    with pytest.raises(ValueError, match="recompute must be one of"):
        look(teacher, needs, "whole", "some")


def test_checkpointing_gives_equal_gradients():
    """Layers that are recomputed in the backward pass give equal gradients and save less."""
    stock, batch = tiny_unet(), inputs()
    expected = gradients(stock, *batch)
    fast = speed_up(copy.deepcopy(stock))
    everything = saved_numbers(lambda: predict(fast, *batch))
    checkpoint_layers(fast)

    assert_near(gradients(fast, *batch), expected)
    assert saved_numbers(lambda: predict(fast, *batch)) < 0.5 * everything
