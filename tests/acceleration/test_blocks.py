"""Fast paths through transformers of diffusers: the stock values, one compilation, and what is recomputed."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from guidedcd import acceleration
from guidedcd.acceleration import attention_backend, blocks, options, switch
from guidedcd.acceleration.activation_checkpointing import checkpoint_layers

LAYERS = 3


def wan() -> tuple[nn.Module, dict[str, Any]]:
    """A tiny `WanTransformer3DModel` and arguments for it."""
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=LAYERS,
    )
    return network, {
        "hidden_states": torch.randn(2, 4, 3, 4, 4),
        "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
    }


def cogvideox() -> tuple[nn.Module, dict[str, Any]]:
    """A tiny `CogVideoXTransformer3DModel`, whose blocks take text and video tokens."""
    from diffusers import CogVideoXTransformer3DModel

    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=LAYERS,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=6,
    )
    return network, {
        "hidden_states": torch.randn(2, 3, 4, 4, 4),
        "timestep": torch.tensor([300, 700]),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }


def ltx() -> tuple[nn.Module, dict[str, Any]]:
    """A tiny `LTXVideoTransformer3DModel`, whose cross-attention has a mask."""
    from diffusers import LTXVideoTransformer3DModel

    network = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=LAYERS,
        caption_channels=16,
    )
    return network, {
        "hidden_states": torch.randn(2, 3 * 4 * 4, 4),
        "timestep": torch.tensor([300.0, 700.0])[:, None],
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "num_frames": 3,
        "height": 4,
        "width": 4,
    }


FAMILIES = {
    "wan": (wan, "WanTransformerBlock"),
    "cogvideox": (cogvideox, "CogVideoXBlock"),
    "ltx": (ltx, "LTXVideoTransformerBlock"),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """(stock network, its arguments, names of its blocks) of every family."""
    torch.manual_seed(0)
    build, block = FAMILIES[request.param]
    return *build(), (block,)


@pytest.fixture
def counters(monkeypatch):
    """Counts of compiled functions, by function, with a compiler that needs no toolchain."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counts: dict[Any, Any] = {}

    @functools.cache
    def compiled(function, mode):
        counts[function] = CompileCounterWithBackend("aot_eager")
        return torch.compile(function, dynamic=False, backend=counts[function], fullgraph=True)

    monkeypatch.setattr(switch, "compiled", compiled)
    torch._dynamo.reset()
    return counts


def predict(network: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """The network's prediction."""
    output: Tensor = network(**arguments, return_dict=False)[0]
    return output


def gradients(network: nn.Module, arguments: dict[str, Any]) -> list[Tensor]:
    """The prediction, and the gradient of each weight that has one."""
    network.zero_grad()
    output = predict(network, arguments)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def assert_equal(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-5) -> None:
    """Both are equal up to a tolerance relative to the largest value: the gradient of a key's bias is 0 but for
    rounding."""
    assert len(first) == len(second) > 0
    largest = max(one.abs().max() for one in second)
    for one, other in zip(first, second, strict=True):
        assert (one - other).abs().max() <= tolerance * largest


class Attentions(TorchDispatchMode):
    """Counts the fused attentions that are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        self.count += "_scaled_dot_product" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


def test_nothing_changes_without_a_compiler(family):
    """On a CPU `layers` gives the stock prediction and gradients, and `restore` removes it."""
    stock, arguments, names = family
    fast = acceleration.speed_up(copy.deepcopy(stock), repeated=names)

    assert acceleration.is_fast(fast)
    assert_equal(gradients(fast, arguments), gradients(stock, arguments))
    assert not acceleration.is_fast(acceleration.restore(fast))
    assert not any("forward" in vars(module) for module in fast.modules())


@pytest.mark.slow
def test_one_compilation_serves_all_blocks(family, counters):
    """Compiled blocks have no graph breaks, are compiled once, and give the stock prediction and gradients.

    CogVideoX's first block receives slices of a tensor, and is compiled for itself.
    """
    stock, arguments, names = family
    fast = acceleration.speed_up(copy.deepcopy(stock), compile="blocks", repeated=names)

    assert_equal(gradients(fast, arguments), gradients(stock, arguments))
    compilations = 2 if names == ("CogVideoXBlock",) else 1
    assert [counter.frame_count for counter in counters.values()] == [compilations]
    copied = copy.deepcopy(fast)
    assert_equal(gradients(copied, arguments), gradients(stock, arguments))
    assert [counter.frame_count for counter in counters.values()] == [compilations]


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "most"])
@pytest.mark.parametrize("compile", [None, "blocks"])
def test_recomputed_blocks_have_the_same_gradients(family, counters, layers, compile):
    """With all or most of a block recomputed, compiled or not, the gradients are the stock network's."""
    stock, arguments, names = family
    fast = acceleration.speed_up(copy.deepcopy(stock), compile=compile, repeated=names)
    checkpoint_layers(fast, layers, names)

    assert_equal(gradients(fast, arguments), gradients(stock, arguments))
    with torch.no_grad():
        assert_equal([predict(fast, arguments)], [predict(stock, arguments)])
    assert all(counter.frame_count < LAYERS for counter in counters.values())


@pytest.mark.parametrize(("layers", "repeated"), [("all", True), ("most", False)])
def test_most_keeps_the_attention(layers, repeated):
    """Of a block, "most" recomputes all but its fused attentions, and "all" recomputes these too."""
    torch.manual_seed(0)
    stock, arguments = wan()
    for network in (stock, acceleration.speed_up(copy.deepcopy(stock))):
        checkpoint_layers(network, layers, ("WanTransformerBlock",))
        with Attentions() as attentions:
            output = predict(network, arguments)
            assert attentions.count == 2 * LAYERS
            output.sum().backward()
        assert attentions.count == (4 if repeated else 2) * LAYERS


def test_a_hook_inside_a_block_is_called(counters):
    """Compiled code would skip a hook, so that a block with hooks is not compiled."""
    torch.manual_seed(0)
    network, arguments = wan()
    fast, inputs = acceleration.speed_up(network, compile="blocks"), []
    for block in fast.blocks:
        block.attn1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    predict(fast, arguments)

    assert len(inputs) == LAYERS and not counters


@pytest.mark.slow
def test_adapters_learn_in_compiled_blocks(counters):
    """With peft's adapters in every block, their gradients are the stock network's; the frozen weights have none."""
    torch.manual_seed(0)
    stock, arguments = wan()
    stock = inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"]), stock.requires_grad_(False))
    for name, parameter in stock.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    fast = acceleration.speed_up(copy.deepcopy(stock), compile="blocks")
    checkpoint_layers(fast, "most", ("WanTransformerBlock",))

    assert_equal(gradients(fast, arguments), gradients(stock, arguments))


def test_the_kernel_is_chosen_once_per_size(monkeypatch):
    """A block's largest attention decides for all blocks of its size, with and without gradient; values stay."""
    torch.manual_seed(0)
    stock, arguments = wan()
    fast, sizes, entered = acceleration.speed_up(copy.deepcopy(stock)), [], []
    monkeypatch.setattr(attention_backend, "_FASTEST", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    monkeypatch.setattr(
        attention_backend, "fastest", lambda tensors, *how: sizes.append((*tensors[0].shape, how[1])) or "cudnn"
    )
    order = attention_backend.first
    monkeypatch.setattr(attention_backend, "first", lambda name: entered.append(name) or order(name))
    expected = gradients(stock, arguments)

    for _ in range(2):
        assert_equal(gradients(fast, arguments), expected)
    with torch.no_grad():
        predict(fast, arguments)
    assert sizes == [(2, 2, 12, 12, True), (2, 2, 12, 12, False)]
    assert entered == ["cudnn"] * 3 * LAYERS
    checkpoint_layers(fast, "all", ("WanTransformerBlock",))
    entered.clear()
    gradients(fast, arguments)
    assert len(entered) >= 2 * LAYERS  # the backward pass chooses the same kernels again


def test_the_option_selects_blocks():
    """`layers` serves a network of diffusers with repeated blocks, those that a teacher names first; `no` none."""
    torch.manual_seed(0)
    network, _ = wan()
    assert options.choose("auto", network) is None
    assert options.choose("no", network) is None
    assert options.choose("layers", network) == options.Paths(repeated=("WanTransformerBlock",))
    assert options.choose("graphs", network).graphs
    assert options.choose("blocks", network).compile is None  # on a CPU
    assert options.choose("layers", network, ("FeedForward",)).repeated == ("FeedForward",)
    assert options.choose("layers", cogvideox()[0]) is None  # diffusers names no blocks of it; its teacher does
    assert options.choose("layers", nn.Sequential(nn.Linear(2, 2))) is None


@pytest.mark.gpu
def test_compiled_blocks_on_a_gpu(family):
    """In bfloat16 the compiled blocks differ from the stock network, both against float32, by no more than it does."""
    stock, arguments, names = family
    stock = stock.cuda()
    arguments = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    exact = predict(stock, arguments).float()
    narrow = {
        name: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() and name != "timestep" else x
        for name, x in arguments.items()
    }
    from guidedcd.acceleration.precision import cast

    cast(stock, torch.bfloat16)
    fast = acceleration.speed_up(copy.deepcopy(stock), compile="blocks", repeated=names)
    errors = [(predict(network, narrow).float() - exact).norm() / exact.norm() for network in (stock, fast)]
    assert errors[1] < 2 * errors[0] + 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("layers", ["all", "most"])
@pytest.mark.parametrize("compile", [None, "blocks"])
def test_recomputed_blocks_have_the_same_gradients_on_a_gpu(layers, compile):
    """In bfloat16, every gradient of adapters and of tables of shifts and scales is as near float32's as a stock one.

    There are as many tokens as make Inductor fuse the tables' reductions, if it may.
    """
    from diffusers import WanTransformer3DModel

    from guidedcd.acceleration.precision import cast

    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=128, text_dim=64, ffn_dim=1024, num_layers=LAYERS
    )
    adapters = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    network = inject_adapter_in_model(adapters, network.requires_grad_(False)).cuda()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
        parameter.requires_grad_(parameter.requires_grad or "time_proj" in name or "scale_shift_table" in name)
    arguments = {
        "hidden_states": torch.randn(1, 16, 21, 48, 64, device="cuda"),
        "timestep": torch.tensor([300.0], device="cuda"),
        "encoder_hidden_states": torch.randn(1, 64, 64, device="cuda"),
    }
    exact = gradients(network, arguments)[1:]
    cast(network, torch.bfloat16)
    narrow = {name: x if name == "timestep" else x.bfloat16() for name, x in arguments.items()}
    fast = acceleration.speed_up(copy.deepcopy(network), compile=compile, repeated=("WanTransformerBlock",))
    checkpoint_layers(fast, layers, ("WanTransformerBlock",))
    for own, usual, reference in zip(gradients(fast, narrow)[1:], gradients(network, narrow)[1:], exact, strict=True):
        errors = [float((one.float() - reference).norm() / reference.norm()) for one in (own, usual)]
        assert errors[0] < 2 * errors[1] + 1e-2


def test_each_order_of_kernels_is_compiled_for_itself(counters, monkeypatch):
    """Compiled code keeps the kernels that came first when it was compiled, so that another order is another code."""
    torch.manual_seed(0)
    stock, arguments = wan()
    fast, order = acceleration.speed_up(copy.deepcopy(stock), compile="blocks"), ["usual"]
    monkeypatch.setattr(blocks, "_order", lambda *call: order[0])
    with torch.no_grad():
        for order[0], compilations in (("usual", 1), ("math", 2), ("usual", 2), ("math", 2)):
            assert_equal([predict(fast, arguments)], [predict(stock, arguments)])
            assert sum(counter.frame_count for counter in counters.values()) == compilations


def test_a_fusion_with_wrong_gradients_is_off():
    """No mode of compilation lets Inductor fuse reductions over rows with those over columns, and each keeps its own
    options."""
    import torch._inductor as inductor

    for mode in filter(None, switch.MODES.values()):
        choices = switch.inductor_options(mode)
        assert choices.pop(switch.WRONG_FUSION, False) is False
        assert choices == inductor.list_mode_options(mode)
        assert (switch.WRONG_FUSION in switch.inductor_options(mode)) == (
            switch.WRONG_FUSION in inductor.list_options()
        )
