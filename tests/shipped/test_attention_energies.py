"""The energies `amf` and `pta-3d` against plain loops, and on a tiny transformer."""

from __future__ import annotations

import copy
import math
import types

import pytest
import torch
from guidedcd_attention_energies import AMFConfig, PTA3DConfig
from guidedcd_attention_energies.displacements import AMF, Displacements
from guidedcd_attention_energies.neighbourhoods import PTA3D, over_frames
from hypothesis import given, settings
from hypothesis import strategies as st

import guidedcd
from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.randomness import noise
from guidedcd.energies.gradients import EnergyTerm, energy_gradients
from guidedcd.errors import GuidedCDError
from guidedcd.testing.tiny_teacher import tiny_teacher
from guidedcd.testing.tiny_transformer import tiny_transformer_teacher

NEED = "self-attention"
SIZES = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)
)
"""Batch, heads, frames, height, width, width of a head."""
BOTH = pytest.mark.parametrize("energy", [AMF(AMFConfig()), PTA3D(PTA3DConfig())], ids=["amf", "pta-3d"])


def recorded(queries: torch.Tensor, keys: torch.Tensor):
    """What an energy reads of a forward pass with these queries and keys."""
    return types.SimpleNamespace(records={NEED: {"queries": queries, "keys": keys}})


def tokens(seed: int, size: tuple[int, ...], scale: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Random queries and keys (B, N, F, h, w, D), float64."""
    return tuple(scale * noise(seed, name, size).double() for name in (1, 2))


def logit(queries, keys, b, f, p, g, q):
    """The mean over heads of q_f(p) k_g(q) / sqrt(D), one number."""
    products = [
        sum(queries[b, n, f, *p, d].item() * keys[b, n, g, *q, d].item() for d in range(queries.shape[-1]))
        for n in range(queries.shape[1])
    ]
    return sum(products) / len(products) / math.sqrt(queries.shape[-1])


def looped_amf(sample, reference, span: int, temperature: float) -> list[float]:
    """The energy of attention motion flow, number by number."""
    batch, _, frames, height, width, _ = sample[0].shape
    positions = [(row, column) for row in range(height) for column in range(width)]
    energies = []
    for b in range(batch):
        terms = []
        for f in range(frames):
            for g in range(frames):
                if f == g or abs(f - g) > span:
                    continue
                for p in positions:
                    of_sample = [temperature * logit(*sample, b, f, p, g, q) for q in positions]
                    of_reference = [logit(*reference, b, f, p, g, q) for q in positions]
                    top = max(of_sample)
                    weights = [math.exp(one - top) for one in of_sample]
                    target = positions[of_reference.index(max(of_reference))]
                    shift = [target[axis] - p[axis] for axis in (0, 1)]
                    if shift == [0, 0]:
                        continue
                    own = [
                        sum(weight * (q[axis] - p[axis]) for weight, q in zip(weights, positions, strict=True))
                        / sum(weights)
                        for axis in (0, 1)
                    ]
                    terms.append(sum((own[axis] - shift[axis]) ** 2 for axis in (0, 1)))
        energies.append(sum(terms) / len(terms) if terms else 0.0)
    return energies


def looped_pta(sample, reference, size: int) -> list[float]:
    """The energy of primary attention over frames, number by number."""
    batch, heads, frames, height, width, depth = sample[0].shape

    def row(queries, keys, b, n, f, y, x):
        near = [
            (y + j, x + i)
            for j in range(-(size // 2), size // 2 + 1)
            for i in range(-(size // 2), size // 2 + 1)
            if 0 <= y + j < height and 0 <= x + i < width
        ]
        logits = [
            sum(queries[b, n, f, y, x, d].item() * keys[b, n, g, *at, d].item() for at in near for d in range(depth))
            / math.sqrt(depth)
            for g in range(frames)
        ]
        weights = [math.exp(one - max(logits)) for one in logits]
        return [weight / sum(weights) for weight in weights]

    energies = []
    for b in range(batch):
        squares = []
        for n in range(heads):
            for f in range(frames):
                for y in range(height):
                    for x in range(width):
                        of_reference = row(*reference, b, n, f, y, x)
                        g = of_reference.index(max(of_reference))
                        squares.append((row(*sample, b, n, f, y, x)[g] - of_reference[g]) ** 2)
        energies.append(sum(squares) / len(squares))
    return energies


@given(size=SIZES, seed=st.integers(0, 99), span=st.integers(1, 5), temperature=st.sampled_from([1.0, 2.0, 5.0]))
@settings(max_examples=25, deadline=None)
def test_amf_equals_a_plain_loop(size, seed, span, temperature):
    """The energy equals the formula written out with loops, for all sizes, spans and temperatures."""
    energy = AMF(AMFConfig(span=span, temperature=temperature))
    sample, reference = tokens(seed, size), tokens(seed + 100, size)
    expected = torch.tensor(looped_amf(sample, reference, span, temperature), dtype=torch.float64)
    torch.testing.assert_close(energy(recorded(*sample), recorded(*reference)), expected, rtol=1e-9, atol=1e-9)


@given(size=SIZES, seed=st.integers(0, 99), neighbourhood=st.sampled_from([1, 3, 5]))
@settings(max_examples=25, deadline=None)
def test_pta_3d_equals_a_plain_loop(size, seed, neighbourhood):
    """The energy equals the formula written out with loops, for all sizes and neighbourhoods."""
    energy = PTA3D(PTA3DConfig(neighbourhood=neighbourhood))
    sample, reference = tokens(seed, size), tokens(seed + 100, size)
    expected = torch.tensor(looped_pta(sample, reference, neighbourhood), dtype=torch.float64)
    torch.testing.assert_close(energy(recorded(*sample), recorded(*reference)), expected, rtol=1e-9, atol=1e-9)


@BOTH
def test_gradients_equal_finite_differences(energy):
    """In float64, autograd passes torch's check with respect to queries and keys."""
    size = (2, 2, 3, 2, 3, 3)
    reference = energy.keep(recorded(*tokens(9, size)))
    inputs = [x.requires_grad_() for x in tokens(0, size, 1.0)]
    assert torch.autograd.gradcheck(lambda q, k: energy(recorded(q, k), reference), inputs)


def moving(step: tuple[int, int], frames: int = 3, sharp: float = 400.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a 4 x 5 grid whose attention from frame f to g moves cyclically by (g - f) `step`."""
    height, width = 4, 5
    eye = torch.eye(height * width, dtype=torch.float64).reshape(height, width, -1)
    keys = torch.stack([eye.roll((step[0] * f, step[1] * f), (0, 1)) for f in range(frames)])
    return sharp * keys[None, None], keys[None, None]


@given(step=st.tuples(st.integers(-1, 1), st.integers(-2, 2)))
@settings(max_examples=15, deadline=None)
def test_a_shift_of_attention_is_the_displacement(step):
    """Attention that moves by a constant has this constant as its displacement, at positions that do not wrap."""
    sample = moving(step)
    values = AMF(AMFConfig(span=2)).keep(recorded(*sample)).values.reshape(1, 6, 4, 5, 2)
    distances = (-2, -1, -1, 1, 1, 2)
    for pair, distance in enumerate(distances):
        for row in range(4):
            for column in range(5):
                target = [row + distance * step[0], column + distance * step[1]]
                wrapped = [target[0] % 4 - row, target[1] % 5 - column]
                assert values[0, pair, row, column].tolist() == wrapped


def test_energies_of_shifts_are_squared_distances():
    """A sample that moves as its reference has no energy and no gradient; one at rest has the squared displacement."""
    energy = AMF(AMFConfig(span=1))
    reference = energy.keep(recorded(*moving((0, 1))))
    queries, keys = (x.requires_grad_() for x in moving((0, 1)))
    same = energy(recorded(queries, keys), reference)
    gradients = torch.autograd.grad(same.sum(), (queries, keys))
    assert same.item() < 1e-12 and all(gradient.abs().max() < 1e-12 for gradient in gradients)
    still = energy(recorded(*moving((0, 0))), reference)
    # Of the five columns four move by 1, and one wraps by 4.
    torch.testing.assert_close(still, torch.tensor([(4 * 1 + 16) / 5], dtype=torch.float64))


def test_a_reference_without_displacement_has_no_energy():
    """Where the reference's attention stays everywhere, nothing is compared: energy and gradient are 0, not nan."""
    energy = AMF(AMFConfig())
    sample = [x.requires_grad_() for x in tokens(0, (1, 1, 3, 4, 5, 20))]
    value = energy(recorded(*sample), recorded(*moving((0, 0))))
    assert value.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(value.sum(), sample))


def test_pta_3d_is_zero_at_its_reference():
    """At the reference itself the energy and its gradient are exactly 0."""
    energy, sample = PTA3D(PTA3DConfig()), [x.requires_grad_() for x in tokens(0, (2, 2, 3, 3, 4, 4))]
    value = energy(recorded(*sample), energy.keep(recorded(*sample)))
    assert not value.any()
    assert all(not gradient.any() for gradient in torch.autograd.grad(value.sum(), sample))


def test_one_position_is_the_diagonal_of_the_full_attention():
    """With a neighbourhood of 1, rows are those of the whole attention at the same position, normalised again."""
    queries, keys = tokens(0, (1, 2, 3, 2, 2, 4))
    logits = torch.einsum("bnfhwd,bngyxd->bnhwfgyx", queries, keys) / 2
    whole = logits.flatten(-3).softmax(-1).reshape(logits.shape)
    same = torch.stack([torch.stack([whole[:, :, y, x, :, :, y, x] for x in range(2)], 2) for y in range(2)], 2)
    torch.testing.assert_close(over_frames(queries, keys, 1), same / same.sum(-1, keepdim=True))


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_extreme_logits_stay_finite(energy, scale):
    """Nearly uniform and nearly one-hot attention have finite energies and gradients in float32."""
    size = (1, 2, 3, 3, 3, 8)
    sample = [x.float().requires_grad_() for x in tokens(0, size, scale)]
    value = energy(recorded(*sample), recorded(*(x.float() for x in tokens(5, size, scale))))
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value.sum(), sample))


@pytest.fixture(scope="module")
def teacher():
    """One tiny transformer for all tests."""
    return tiny_transformer_teacher()


def seen(teacher, seed: int, energy, z: torch.Tensor | None = None, **options):
    """What the teacher records of two random samples, or of `z`."""
    z = noise(seed, 0, (2, *teacher.geometry.latent_shape)) if z is None else z
    t, cond = torch.tensor([700, 900]), teacher.embed(["a red ball", "two boats"])
    return teacher.seen(z.to(teacher.dtype), t, cond, energy.needs, **options)


@BOTH
def test_a_guided_step_lowers_it(teacher, energy):
    """The displacement of one guided step with a small strength lowers the energy of both samples."""
    reference = energy.keep(seen(teacher, 1, energy))
    z = noise(0, 0, (2, *teacher.geometry.latent_shape))
    t, cond = torch.tensor([700, 900]), teacher.embed(["a red ball", "two boats"])
    term = EnergyTerm(name="energy", energy=energy, reference=reference)
    output, (score,) = energy_gradients(teacher, z, t, cond, [term])
    assert score.isfinite().all() and score.flatten(1).any(1).all()
    assert torch.equal(output, teacher.net(z, t, cond))

    step = (teacher.schedule, TeacherStep(z, t, output, output, torch.zeros(2)), t - 20)
    strength = 0.05 / score.flatten(1).norm(dim=1)
    moved = guided_step(*step, [(score, strength)]) - guided_step(*step)
    with torch.no_grad():
        before, after = (energy(seen(teacher, 0, energy, at), reference) for at in (z, z + moved))
    assert (after < before).all()


@BOTH
def test_attention_energies_of_a_bfloat16_network_are_float32(teacher, energy):
    """With a network in bfloat16, energies are float32 numbers near those of float32, with a finite gradient."""
    rough = copy.deepcopy(teacher).to("cpu", torch.bfloat16)
    values = []
    for network in (teacher, rough):
        reference = energy.keep(seen(network, 1, energy))
        z = noise(0, 0, (2, *network.geometry.latent_shape)).to(network.dtype).requires_grad_()
        value = energy(seen(network, 0, energy, z), reference)
        assert value.dtype == torch.float32
        (score,) = torch.autograd.grad(value.sum(), z)
        assert score.isfinite().all() and score.flatten(1).any(1).all()
        values.append(value.detach())
    torch.testing.assert_close(*values, rtol=0.2, atol=0.05)


def test_the_displacements_of_a_reference_are_small(teacher):
    """`keep` leaves two bytes per coordinate of a displacement, and no queries or keys."""
    energy = AMF(AMFConfig(span=1))
    kept = energy.keep(seen(teacher, 1, energy))
    assert isinstance(kept, Displacements)
    assert kept.values.dtype == torch.int16 and kept.values.shape == (2, 4, 12, 2)


def test_a_single_latent_frame_is_refused():
    """`amf` of one latent frame is an error that recommends more frames."""
    energy, single = AMF(AMFConfig()), tiny_transformer_teacher(latent_frames=1)
    with pytest.raises(GuidedCDError, match="use more frames"):
        energy.keep(seen(single, 1, energy))


@BOTH
def test_the_proving_grounds_transformer_has_them(energy):
    """The teacher `shapes-dit` records its own grid of tokens, and a small guided step of its weights lowers each."""
    teacher = guidedcd.load_teacher("shapes-dit", device="cpu").teacher
    z, other = (noise(seed, 0, (1, *teacher.geometry.latent_shape)) for seed in (0, 1))
    t, cond = torch.tensor([900]), teacher.embed(["a red circle moving left"])
    with torch.no_grad():
        kept = teacher.seen(other, t, cond, energy.needs, tail="none")
    assert kept.records[NEED]["keys"].shape[2:5] == (8, 6, 6)
    reference = energy.keep(kept)
    _, (score,) = energy_gradients(teacher, z, t, cond, [EnergyTerm(name="x", energy=energy, reference=reference)])
    with torch.no_grad():
        before, after = (
            energy(teacher.seen(at, t, cond, energy.needs, tail="none"), reference)
            for at in (z, z - 0.1 * score / score.norm())
        )
    assert after < before


def test_the_option_block_chooses_the_block(teacher):
    """`block` names the block that is read; by default it is the one at half the depth."""
    assert AMF(AMFConfig()).needs == PTA3D(PTA3DConfig()).needs == ("self-attention",)
    assert AMF(AMFConfig(block=2)).needs == PTA3D(PTA3DConfig(block=2)).needs == ("self-attention:2",)
    default, one = (seen(teacher, 0, energy) for energy in (AMF(AMFConfig()), AMF(AMFConfig(block=1))))
    assert torch.equal(default.records["self-attention"]["queries"], one.records["self-attention:1"]["queries"])


@BOTH
def test_unets_refuse_attention_energies(energy):
    """A UNet, whose layers attend within frames or over frames, refuses the energies in a sentence."""
    unet = tiny_teacher()
    with pytest.raises(GuidedCDError, match="either within frames or over frames"):
        unet.seen(torch.zeros(1, *unet.geometry.latent_shape), torch.tensor([700]), unet.null(1), energy.needs)


@pytest.mark.parametrize("value", [0, 2, -1])
def test_even_neighbourhoods_are_refused(value):
    """A neighbourhood without a middle is refused."""
    with pytest.raises(ValueError, match="odd number"):
        PTA3DConfig(neighbourhood=value)
