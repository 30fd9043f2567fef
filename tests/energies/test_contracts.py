"""Contracts of energies hold where the engine calls them, and the error names the energy."""

from __future__ import annotations

import types

import pytest
import torch

from guidedcd.energies.gradients import EnergyTerm, energy_gradients
from guidedcd.energies.traits import check_traits, is_reference_free
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import EnergyConfig


def gradients(teacher, energy, reference=None):
    """The energy's gradient at noise for one sample."""
    z = torch.randn(1, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(0))
    term = EnergyTerm(name="mine", energy=energy, reference=reference)
    return energy_gradients(teacher, z, torch.tensor([700]), teacher.embed(["a ball"]), [term])


def test_needs_that_are_a_text_lack_a_comma():
    """A text alone would be read letter by letter; the error shows the tuple."""
    energy = types.SimpleNamespace(needs="temporal-attention:official")

    with pytest.raises(GuidedCDError, match=r"energy 'x' of acme: .*\('temporal-attention:official',\) with a comma"):
        check_traits(energy, EnergyConfig(), "energy 'x' of acme")
    with pytest.raises(GuidedCDError, match="a tuple of texts"):
        check_traits(types.SimpleNamespace(needs=(3,)), EnergyConfig(), "energy 'x'")


def test_an_energy_that_changes_its_arguments_is_an_error(tiny_teacher):
    """Other energies read the same tensors."""

    def energy(seen, reference):
        value = seen.x0.square().flatten(1).mean(1)
        with torch.no_grad():
            seen.output.mul_(2)
        return value

    with pytest.raises(GuidedCDError, match="energy 'mine' changed a tensor of its arguments in place"):
        gradients(tiny_teacher, energy)


def test_a_reference_free_energy_receives_none(tiny_teacher):
    """An energy may compare with nothing."""

    class Bright:
        reference_free = True

        def __call__(self, seen, reference):
            assert reference is None
            return -seen.x0.flatten(1).mean(1)

    assert is_reference_free(Bright())
    assert gradients(tiny_teacher, Bright())[1][0].abs().max() > 0
