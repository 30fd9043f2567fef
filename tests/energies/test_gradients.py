"""Gradients of energies with respect to noisy latents."""

from __future__ import annotations

import pytest
import torch

from guidedcd.diffusion.randomness import noise
from guidedcd.energies.gradients import EnergyTerm, energy_gradients
from guidedcd.errors import GuidedCDError, NeedError
from guidedcd.testing.tiny_teacher import tiny_teacher


class Distance:
    """The squared distance of the predicted clean latents from the reference, to a power; it records nothing."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, seen, reference):
        return (seen.x0 - reference).square().flatten(1).mean(1).pow(self.power)


@pytest.fixture(scope="module")
def inputs():
    """A teacher, noisy latents of two samples, their timesteps, conditioning, and a reference."""
    teacher = tiny_teacher(frames=3)
    shape = (2, *teacher.geometry.latent_shape)
    return teacher, noise(0, 0, shape), torch.tensor([300, 700]), teacher.embed(["a", "b"]), noise(0, 1, shape)


def test_each_sample_gets_the_gradient_of_its_own_energy(inputs):
    """Two energies of two samples from one pass equal four passes of one energy and one sample each."""
    teacher, z, t, cond, reference = inputs
    energies = [Distance(), Distance(0.5)]
    terms = [EnergyTerm(name="distance", energy=energy, reference=reference) for energy in energies]
    calls = []
    handle = teacher.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    output, gradients = energy_gradients(teacher, z, t, cond, terms)
    handle.remove()

    assert calls == [2]
    assert not output.requires_grad and not any(gradient.requires_grad for gradient in gradients)
    torch.testing.assert_close(output, teacher.net(z, t, cond))
    for row in range(2):
        for energy, gradient in zip(energies, gradients, strict=True):
            leaf = z[[row]].clone().requires_grad_(True)
            seen = teacher.seen(leaf, t[[row]], {key: value[[row]] for key, value in cond.items()})
            energy(seen, reference[[row]]).sum().backward()
            torch.testing.assert_close(gradient[[row]], leaf.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (
            lambda seen, reference: seen.x0.mean(),
            r"a tensor \(\) for 2 samples; it must return one number each",
        ),
        (lambda seen, reference: seen.x0.mean((1, 3, 4)), r"a tensor \(2, 3\) for 2 samples"),
        (lambda seen, reference: 1.0, "returned float for 2 samples"),
        (lambda seen, reference: seen.x0.detach().mean((1, 2, 3, 4)), "does not depend on its first argument"),
    ],
    ids=["scalar", "by frame", "number", "detached"],
)
def test_an_energy_must_return_one_number_for_each_sample(inputs, energy, words):
    """A value of another form, or one without a gradient, is an error that names the energy."""
    teacher, z, t, cond, reference = inputs
    with pytest.raises(GuidedCDError, match=rf"energy 'mine' .*{words}"):
        energy_gradients(teacher, z, t, cond, [EnergyTerm(name="mine", energy=energy, reference=reference)])


def test_a_gradient_that_is_not_finite_is_an_error_that_names_its_sample(inputs):
    """The error names the energy and the caption, or the number of the sample where there are no captions."""
    teacher, z, t, cond, reference = inputs
    reference = reference.clone()
    reference[1] = torch.inf
    terms = [EnergyTerm(name="distance", energy=Distance(), reference=reference)]
    with pytest.raises(GuidedCDError, match=r"energy 'distance' gave a gradient that is not finite for sample 1\."):
        energy_gradients(teacher, z, t, cond, terms)
    with pytest.raises(GuidedCDError, match="not finite for 'b'"):
        energy_gradients(teacher, z, t, cond, terms, ["a", "b"])


def test_an_exception_of_an_energy_has_a_note_with_its_name_and_plugin(inputs):
    """Whoever reads the traceback learns which plugin failed."""
    teacher, z, t, cond, _ = inputs
    terms = [EnergyTerm(name="distance", energy=Distance(), reference="text", plugin="acme 1.0")]
    with pytest.raises(TypeError) as raised:
        energy_gradients(teacher, z, t, cond, terms)

    assert raised.value.__notes__ == ["in energy 'distance' of acme 1.0"]


def test_an_error_about_a_need_names_the_energies_that_have_it(inputs):
    """The need that cannot be recorded is an attribute of the error, so that no other energy is blamed."""
    teacher, z, t, cond, reference = inputs
    terms = []
    for name, needs in {"near": ("temporal-attention:near",), "plain": (), "wrong": ("wrong",)}.items():
        energy = Distance()
        energy.needs = needs
        terms.append(EnergyTerm(name=name, energy=energy, reference=reference))

    for chosen, need in ((terms, "temporal-attention:near"), (terms[1:], "wrong")):
        with pytest.raises(NeedError, match=f"^energy '{need.rpartition(':')[2]}': ") as raised:
            energy_gradients(teacher, z, t, cond, chosen)
        assert raised.value.need == need


def test_another_error_of_the_teacher_blames_no_energy(inputs, monkeypatch):
    """A sentence that happens to contain the words of a need stays as it is."""
    teacher, z, t, cond, reference = inputs
    energy = Distance()
    energy.needs = ("temporal-attention:official",)

    def seen(*args, **options):
        raise GuidedCDError("the option 'official' is unknown.")

    monkeypatch.setattr(teacher, "seen", seen)
    with pytest.raises(GuidedCDError, match=r"^the option 'official' is unknown\.$"):
        energy_gradients(teacher, z, t, cond, [EnergyTerm(name="near", energy=energy, reference=reference)])
