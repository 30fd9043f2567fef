"""Queries and keys of a transformer's block, and passes that end there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from guidedcd.acceleration.activation_checkpointing import recomputing
from guidedcd.acceleration.switch import speed_up
from guidedcd.diffusion.randomness import noise
from guidedcd.errors import GuidedCDError
from guidedcd.models.self_attention_probes import middle, queries_and_keys, recorded_blocks, token_grid
from guidedcd.planning.meter import metered
from guidedcd.testing.tiny_transformer import tiny_transformer_teacher

T, CAPTIONS = torch.tensor([700, 900]), ["a red ball", "two boats"]


@pytest.fixture(scope="module")
def teacher():
    """One tiny transformer for all tests."""
    return tiny_transformer_teacher()


def look(teacher, need: str, tail: str = "whole", recompute: str = "nothing"):
    """(the pass, the gradient of its keys, numbers kept for it, blocks that ran)."""
    z = noise(0, 0, (2, *teacher.geometry.latent_shape)).requires_grad_()
    weights = {p.data_ptr() for p in teacher.network.parameters()}
    saved: dict[int, int] = {}
    ran: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.data_ptr()] = x.numel()
        return x

    handles = [
        block.norm1.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(teacher.network.blocks)
    ]
    cond = teacher.embed(CAPTIONS)
    keep = recorded_blocks(teacher.network, teacher.blocks, (need,))
    with recomputing(teacher.network, recompute, keep=keep, blocks=teacher.blocks):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            seen = teacher.seen(z, T, cond, (need,), tail=tail)
        (gradient,) = torch.autograd.grad(seen.records[need]["keys"].square().sum(), z)
    for handle in handles:
        handle.remove()
    return seen, gradient, sum(count for at, count in saved.items() if at not in weights), ran


def test_a_pass_ends_at_the_block(teacher):
    """With the tail "none" no later block runs; records and their gradient are those of the whole pass, bit for bit."""
    need = "self-attention:1"
    passes = {tail: look(teacher, need, tail) for tail in ("whole", "detached", "none")}
    whole = passes["whole"]
    assert [ran for *_, ran in passes.values()] == [[0, 1, 2], [0, 1, 2], [0, 1]]
    for seen, gradient, _, _ in passes.values():
        assert gradient.any() and torch.equal(gradient, whole[1])
        for name, value in seen.records[need].items():
            assert value.shape == (2, 2, 3, 3, 4, 12)
            assert torch.equal(value, whole[0].records[need][name])
    assert torch.equal(passes["detached"][0].output, whole[0].output)
    assert not passes["detached"][0].output.requires_grad and not passes["none"][0].output.numel()
    # One of three blocks, and the attention of the second, need a gradient.
    assert passes["none"][2] < passes["detached"][2] * 1.2 < 0.6 * whole[2]
    assert torch.is_grad_enabled()


def test_recomputed_blocks_are_not_kept():
    """Blocks before the recorded one may be computed again: gradients stay the same bit for bit, less is kept."""
    deep = tiny_transformer_teacher(blocks=9)
    plain, cheap, most = (look(deep, "self-attention:7", "detached", what) for what in ("nothing", "cheap", "most"))
    for seen, gradient, _, _ in (cheap, most):
        assert torch.equal(gradient, plain[1])
        assert torch.equal(seen.output, plain[0].output)
    assert cheap[2] < 0.9 * plain[2] and most[2] < 0.3 * plain[2]
    assert most[3] == [*range(9), *range(6, -1, -1)]  # block 7 ran once


def test_a_reference_costs_less_than_half_of_a_pass():
    """Up to the block at half the depth a pass takes less than half of the operations of the whole, counted."""
    deep = tiny_transformer_teacher(blocks=12).to("meta")
    z = torch.empty(2, *deep.geometry.latent_shape, device="meta")
    t, cond = torch.zeros(2, dtype=torch.long, device="meta"), deep.embed(CAPTIONS)
    with torch.no_grad():
        with metered() as whole:
            deep.net(z, t, cond)
        with metered() as reference:
            deep.seen(z, t, cond, ("self-attention",), tail="none")
    assert 0.3 * whole.flops < reference.flops < 0.5 * whole.flops


@pytest.mark.parametrize("compile", [None, pytest.param("blocks", marks=pytest.mark.slow)])
def test_fast_networks_record_the_same(teacher, compile):
    """The probe works on the fast paths of transformers, which leave a recorded block to its stock code."""
    fast = copy.deepcopy(teacher)
    speed_up(fast.network, compile=compile, repeated=fast.blocks)
    expected, own = (look(one, "self-attention:1", "detached") for one in (teacher, fast))
    for name, value in expected[0].records["self-attention:1"].items():
        torch.testing.assert_close(own[0].records["self-attention:1"][name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own[1], expected[1], rtol=1e-3, atol=1e-3)


def test_the_attention_of_the_block_itself_does_not_run(teacher):
    """With the tail "none" the recorded attention is not computed, only its queries and keys."""
    attention, ran = teacher.network.blocks[1].attn1, []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in (("queries", attention.to_q), ("values", attention.to_v))
    ]
    with torch.no_grad():
        look_at = noise(0, 0, (2, *teacher.geometry.latent_shape))
        teacher.seen(look_at, T, teacher.embed(CAPTIONS), ("self-attention:1",), tail="none")
    for handle in handles:
        handle.remove()
    assert ran == ["queries"]


def test_each_need_has_the_record_of_its_block(teacher):
    """Each need has the record of its own block, and the pass ends at the last of them."""
    z = noise(0, 0, (2, *teacher.geometry.latent_shape))
    needs = ("self-attention:2", "self-attention:0", "self-attention")
    records = teacher.seen(z, T, teacher.embed(CAPTIONS), needs, tail="none").records
    for need, number in zip(needs, (2, 0, 1), strict=True):
        own = teacher.seen(z, T, teacher.embed(CAPTIONS), (f"self-attention:{number}",)).records
        assert torch.equal(records[need]["keys"], own[f"self-attention:{number}"]["keys"])
    assert not torch.equal(records[needs[0]]["keys"], records[needs[1]]["keys"])


def test_rows_select_the_records_of_samples(teacher):
    """`rows` of what was seen are the records of these samples."""
    seen = teacher.seen(
        noise(0, 0, (2, *teacher.geometry.latent_shape)), T, teacher.embed(CAPTIONS), ("self-attention",)
    )
    cut = seen.rows(1, 2).records["self-attention"]
    assert torch.equal(cut["queries"], seen.records["self-attention"]["queries"][1:])


@pytest.mark.parametrize(
    ("need", "match"),
    [
        ("self-attention:3", "with 3 blocks records no 'self-attention:3'. Use a block from 0 to 2"),
        ("self-attention:-1", "records no 'self-attention:-1'"),
        ("self-attention:last", "records no 'self-attention:last'"),
        ("temporal-attention:official", "joins space and time"),
    ],
)
def test_unknown_needs_are_refused(teacher, need, match):
    """A block that the network lacks, and attention over frames, are errors that name what there is."""
    with pytest.raises(GuidedCDError, match=match):
        teacher.seen(torch.zeros(1, *teacher.geometry.latent_shape), T[:1], teacher.null(1), (need,))


def test_a_pass_that_leaves_out_the_attention_is_an_error(monkeypatch):
    """If a faster path does not call the attention module, the missing record is an error and not an empty one."""
    teacher = tiny_transformer_teacher()
    monkeypatch.setattr(teacher.network.blocks[1], "forward", lambda hidden, *_: hidden)
    with pytest.raises(GuidedCDError, match="did not run what 'self-attention' reads"):
        teacher.seen(torch.zeros(1, *teacher.geometry.latent_shape), T[:1], teacher.null(1), ("self-attention",))


def test_the_default_block_is_at_half_the_depth():
    """The default is the middle: block 14 of Wan 1.3B (30), 19 of Wan 14B (40), 20 of CogVideoX 5B (42)."""
    assert [middle(count) for count in (30, 40, 42, 28, 3, 2, 1)] == [14, 19, 20, 13, 1, 0, 0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"patch_size": (1, 2, 2)}, (6, 4, 5)),
        ({"patch_size": 2, "patch_size_t": None}, (6, 4, 5)),
        ({"patch_size": 2, "patch_size_t": 2}, (3, 4, 5)),
        ({"patch_size": 1}, (6, 8, 10)),
    ],
)
def test_the_grid_of_tokens_follows_the_patch_sizes(config, expected):
    """The grid follows the patch sizes in each of the forms that diffusers' configurations have."""

    class Config(dict):
        __getattr__ = dict.__getitem__

    assert token_grid(Config(config), (2, 4, 6, 8, 10)) == expected


def test_unknown_attention_is_refused():
    """Attention of an unknown class is an error that lists the known ones, and a derived class is known."""
    with pytest.raises(GuidedCDError, match="recorded of a Linear; those of WanAttention, LTXAttention, Attention"):
        queries_and_keys(nn.Linear(2, 2), (), {})
    from diffusers.models.transformers.transformer_wan import WanAttention

    class Own(WanAttention):
        pass

    hidden = torch.randn(1, 5, 8)
    queries, keys = queries_and_keys(Own(8, heads=2, dim_head=4), (hidden,), {})
    assert queries.shape == keys.shape == (1, 2, 5, 4)
