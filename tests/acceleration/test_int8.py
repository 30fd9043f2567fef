"""Frozen layers with int8 weights: the bound of the rounding, gradients of the input, and what stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_unet import assert_near, gradients, inputs, tiny_unet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidedcd import acceleration
from guidedcd.acceleration import switch
from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.int8 import CLASSES, Int8Layer, quantise, rounded, saved
from guidedcd.acceleration.precision import relative_error

LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), (3, 5, 12)),
    "linear without bias": (lambda: nn.Linear(12, 7, bias=False), (4, 12)),
    "convolution over time": (lambda: nn.Conv1d(8, 6, 3, dilation=2), (2, 8, 15)),
    "strided and grouped": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2), (2, 8, 9, 10)),
    "over frames": (lambda: nn.Conv3d(8, 6, (3, 1, 1), padding=(1, 0, 0)), (2, 8, 5, 6, 7)),
}


def dequantised(network: nn.Module) -> nn.Module:
    """A copy with PyTorch's layers, which have the dequantised weights."""
    stock = {CLASSES[base]: base for base in reversed(CLASSES)}
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Int8Layer):
            weight, name = module.dequantised(), module.kept
            module.__class__ = stock[type(module)]
            del module.int8, module.scale
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return network


def graded(function, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for x, and the gradient of its product with noise."""
    x = x.clone().requires_grad_(True)
    y = function(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad((y * noise).sum(), x)[0]


def kept_numbers(function, x: Tensor) -> int:
    """Numbers that autograd saves for the gradient of x."""
    numbers: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        numbers.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        function(x.clone().requires_grad_(True))
    return sum(numbers)


@given(
    rows=st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_weight_is_within_half_a_scale(rows, dtype):
    """|w - int8 * scale| <= scale / 2 for every weight, and the largest of a channel has the largest int8 value."""
    weight = torch.tensor(rows).to(dtype)
    int8, scale = rounded(weight)
    difference = (weight.double() - int8.double() * scale.double()).abs()

    assert int8.dtype == torch.int8 and scale.shape == (len(rows), 1)
    assert (difference <= scale.double() * (0.5 + 1e-4)).all()
    usual = weight.abs().amax(1) > 1e-30
    assert (int8.abs().amax(1)[usual] == 127).all()


def test_a_channel_of_zeros_stays_zero():
    """A channel without weights has no scale of zero, so that nothing is divided by zero."""
    int8, scale = rounded(torch.zeros(2, 3))
    assert not int8.any() and (scale > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_that_of_its_dequantised_weight(kind, dtype):
    """Output and gradient of the input are those of PyTorch's layer with the dequantised weight; it saves no weight."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make().to(dtype), torch.randn(shape).to(dtype)
    exact = copy.deepcopy(layer)
    quantise(layer)
    output, gradient = graded(layer, x)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close((output, gradient), graded(dequantised(layer), x), rtol=tolerance, atol=tolerance)

    assert kept_numbers(layer, x) == 0
    assert relative_error(output, exact(x).detach()) < 0.01
    assert layer.weight.dtype == dtype and relative_error(layer.weight, exact.weight) < 0.01


MASKS = {
    "none": None,
    "causal": torch.full((6, 6), float("-inf")).triu(1),
    "boolean": torch.ones(6, 6, dtype=torch.bool).triu(1),
    "by head": torch.randn(3 * 4, 6, 6, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_an_attention_is_that_of_its_dequantised_weights(mask, batch_first):
    """Self-attention in both layouts, with every kind of mask, equals PyTorch's, and saves no weight of its own."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    quantise(attention)
    stock, x = dequantised(attention), torch.randn((3, 6, 16) if batch_first else (6, 3, 16))

    def attend(module: nn.Module):
        return lambda x: module(x, x, x, need_weights=False, attn_mask=MASKS[mask])[0]

    torch.testing.assert_close(graded(attend(attention), x), graded(attend(stock), x), rtol=1e-5, atol=1e-5)
    assert kept_numbers(attend(attention), x) < kept_numbers(attend(stock), x) - 3 * 16 * 16
    torch.testing.assert_close(attention(x, x, x), stock(x, x, x))  # with weights
    other = x + 1
    torch.testing.assert_close(attention(x, other, other), stock(x, other, other))


class Shared(nn.Module):
    """A network with a tied weight, layers that stay in float32, and one whose scales take what int8 saves."""

    _keep_in_fp32_modules = ("time",)

    def __init__(self) -> None:
        """Five layers."""
        super().__init__()
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.words.weight
        self.time, self.depthwise, self.layer = nn.Linear(8, 8), nn.Conv1d(8, 8, 1, groups=8), nn.Linear(8, 8)
        self.reflected = nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect")


def test_other_weights_stay_as_they_are():
    """Tied weights, layers kept in float32, tiny ones and unusual convolutions stay; what is saved is counted."""
    network = Shared()
    before = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert quantise(network) == 64 * 3 - 8 * 4
    assert [name for name, module in network.named_modules() if isinstance(module, Int8Layer)] == ["layer"]
    assert before - sum(tensor.nbytes for tensor in network.state_dict().values()) == saved(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert quantise(nn.LayerNorm(8)) == 0


def test_an_adapter_is_trained_beside_an_int8_layer():
    """A LoRA adapter over a layer in int8 has the gradient that it has over the dequantised one."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    quantise(network)
    config, x = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False), torch.randn(3, 8)
    results = []
    for base in (network, dequantised(network)):
        torch.manual_seed(1)
        adapted = inject_adapter_in_model(config, copy.deepcopy(base))
        trained = [p for p in adapted.parameters() if p.requires_grad]
        results.append(torch.autograd.grad(adapted(x).square().sum(), trained))
    assert len(results[0]) == 4
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["linear", "strided and grouped"])
def test_a_bias_can_be_trained(kind):
    """A bias that is trained afterwards has its gradient, and the input keeps its own; no rows are no error."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    quantise(layer)
    before = graded(layer, x)
    layer.bias.requires_grad_(True)
    torch.testing.assert_close(graded(layer, x), before)
    layer(x).sum().backward()
    assert layer.bias.grad is not None
    layer.requires_grad_(False)
    assert graded(layer, x[:0])[1].shape == x[:0].shape


def test_recomputed_and_autocast_layers_have_the_same_gradient():
    """A checkpoint around int8 layers, and autocast to bfloat16, change the gradient by their rounding alone."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), torch.randn(4, 8)
    quantise(network)
    plain = graded(network, x)
    torch.testing.assert_close(graded(lambda x: checkpoint(network, x, use_reentrant=False), x), plain)

    with torch.autocast("cpu", torch.bfloat16):
        output, gradient = graded(network, x)
    assert output.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    assert relative_error(gradient, plain[1]) < 0.02


@pytest.mark.parametrize("fast", ["no", "layers"])
def test_a_teacher_in_int8_is_a_copy_or_its_own(fast):
    """`accelerated` rounds a copy of the network, or in place; faster layers take it, and gradients are the same."""

    class Teacher:
        def __init__(self) -> None:
            self.network = tiny_unet("attention everywhere", torch.float32).requires_grad_(False)

        def fingerprint(self) -> str:
            return "0"

    teacher, batch = Teacher(), inputs(dtype=torch.float32)
    before = copy.deepcopy(teacher.network)
    with accelerated(teacher, fast=fast, precision="no", quantize="int8") as other:
        actual, stock = gradients(other.network, *batch), gradients(dequantised(in_int8(before)), *batch)
        assert relative_error(actual["z"], stock["z"]) < 1e-4
        assert saved(other.network) > 0
    assert not saved(teacher.network)
    assert_near(gradients(teacher.network, *batch), gradients(before, *batch), 1e-6)
    with accelerated(teacher, fast="no", precision="bf16", quantize="int8", in_place=True):
        pass
    assert saved(teacher.network) and teacher.network.conv_in.bias.dtype == torch.bfloat16


def in_int8(network: nn.Module) -> nn.Module:
    """A copy of a network in int8."""
    network = copy.deepcopy(network)
    quantise(network)
    return network


@pytest.mark.slow
def test_int8_layers_are_compiled(monkeypatch):
    """Compiled layers of a UNet in int8 have no graph breaks, and the gradients of the layers that are not compiled."""

    def compiled(function, mode):
        return torch.compile(function, dynamic=False, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(switch, "compiled", compiled)
    torch.compiler.reset()  # torch 2.8 counts what other tests of this process have compiled of the same functions
    stock, batch = in_int8(tiny_unet("attention everywhere")), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock), compile="blocks")
    assert_near(gradients(fast, *batch), gradients(stock, *batch))
