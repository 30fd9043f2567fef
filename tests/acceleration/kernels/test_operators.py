"""Layers and networks that call the kernels, compiled or not."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_unet import assert_near, gradients, inputs, tiny_unet
from torch import Tensor

from guidedcd import acceleration
from guidedcd.acceleration import layers, operations
from guidedcd.models import attention_probes


@pytest.mark.slow
def test_compiled_layers_call_the_kernels(kernels, device, monkeypatch):
    """A compiled layer that calls the kernels, for norms and over frames, has no breaks and the stock gradients."""
    from guidedcd.acceleration import attention

    monkeypatch.setattr(operations, "calls", lambda x: torch.compiler.is_compiling())
    monkeypatch.setattr(attention, "takes", lambda q: True)
    unet = tiny_unet(dtype=torch.float32).to(device)
    x, temb = torch.randn(2, 8, 2, 2, device=device), torch.randn(2, 32, device=device)
    for function, module, rest in (
        (layers.temporal_transformer, unet.down_blocks[0].temp_attentions[0], (2,)),
        (layers.temporal_convolution, unet.down_blocks[0].temp_convs[0], (2,)),
        (layers.resnet, unet.down_blocks[0].resnets[0], (temb,)),
    ):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
        results = []
        for call, layer in ((type(module).forward, copy.deepcopy(module).double()), (compiled, module)):
            kind = next(layer.parameters()).dtype
            tensors = [x.to(kind, copy=True).requires_grad_(True)]
            tensors += [a.to(kind, copy=True).requires_grad_(True) if isinstance(a, Tensor) else a for a in rest]
            options = {}
            if call is not compiled and function is not layers.resnet:
                options = {"num_frames": tensors.pop()}
            out = call(layer, *tensors, **options)
            out = out if isinstance(out, Tensor) else out.sample
            differentiable = [a for a in tensors if isinstance(a, Tensor)]
            weights = list(layer.parameters())
            grads = torch.autograd.grad(out.square().sum(), [*differentiable, *weights])
            results.append([out, *grads])
        for actual, stock in zip(results[1], results[0], strict=True):
            assert (actual - stock).abs().max() <= 1e-4 * stock.abs().max()


@pytest.mark.slow
def test_a_network_on_the_kernels_is_the_stock_network(kernels, device, monkeypatch):
    """A network on all kernels agrees with the stock one in values and gradients, float32 against float64."""
    from guidedcd.acceleration import attention

    stock, tensors = tiny_unet(), inputs(2, 2, 2)
    fast = acceleration.speed_up(tiny_unet(dtype=torch.float32).to(device))
    called = []
    for module in (operations, layers):
        monkeypatch.setattr(module, "fused", lambda x: True)
    monkeypatch.setattr(attention, "takes", lambda q: called.append(q) or True)
    actual = gradients(fast, *(x.to(device, torch.float32 if x.is_floating_point() else None) for x in tensors))

    assert len(called) == len(attention_probes.temporal_layers(stock))
    assert_near({k: v.cpu().double() for k, v in actual.items()}, gradients(stock, *tensors), 2e-4)
