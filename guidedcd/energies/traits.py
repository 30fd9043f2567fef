"""What the engine reads of an energy before it computes anything: what its gradient passes through. No torch.

Energies of the network have scores in the latent store. Energies of the output are functions of the predicted clean
latents, which the store has, so that the training step computes their scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import attrs

from guidedcd.config.run import Run
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import EnergyConfig, OutputEnergyConfig
from guidedcd.plugins.objects import ObjectComponent

NETWORK, OUTPUT = "network", "output"
"""Values of `through`, what the gradient of an energy passes through."""
IN_TRAINING = ("prediction", "clean")
"""References that a training step has, from the store: other ones take passes of the teacher."""


@attrs.frozen
class Traits:
    """Attributes of an energy that decide which passes of the teacher it takes."""

    is_of_output: bool
    is_reference_free: bool


def is_reference_free(energy: Any) -> bool:
    """Whether an energy compares with nothing; it then receives None as its reference."""
    return bool(getattr(energy, "reference_free", False))


def is_of_output(energy: Any) -> bool:
    """Whether the gradient of an energy passes through the output alone, and not through the network."""
    return getattr(energy, "through", NETWORK) == OUTPUT


def needs_video(energy: Any, config: EnergyConfig) -> bool:
    """Whether a sampler needs a reference video for an energy.

    It needs none for an energy of the output with the reference `prediction`: the sample's own prediction without
    guidance takes its place, as in training.
    """
    return not is_reference_free(energy) and not (is_of_output(energy) and config.reference == "prediction")


def check_traits(energy: Any, config: EnergyConfig, whose: str) -> None:
    """Check the attributes of an energy that the engine reads, and that its options suit them.

    Raises:
        GuidedCDError: `needs` or `through` has another form, or the reference is for the other kind of energy.
    """
    needs, through = getattr(energy, "needs", ()), getattr(energy, "through", NETWORK)
    if isinstance(needs, str):
        raise GuidedCDError(f"{whose}: `needs` is the text {needs!r}; it must be a tuple, ({needs!r},) with a comma.")
    if not isinstance(needs, Sequence) or not all(isinstance(need, str) for need in needs):
        raise GuidedCDError(f"{whose}: `needs` must be a tuple of texts (got {needs!r}).")
    if through not in (NETWORK, OUTPUT):
        raise GuidedCDError(f"{whose}: `through` must be {NETWORK!r} or {OUTPUT!r} (got {through!r}).")
    if through == OUTPUT and needs:
        raise GuidedCDError(
            f"{whose}: `through` is {OUTPUT!r}, so that the network records nothing, but `needs` is {tuple(needs)!r}. "
            f"Remove one of the two."
        )
    if through == NETWORK and isinstance(config, OutputEnergyConfig):
        raise GuidedCDError(
            f"{whose}: its options derive from OutputEnergyConfig, but it does not state `through = {OUTPUT!r}`."
        )
    if through == NETWORK and config.reference == "prediction" and not is_reference_free(energy):
        raise GuidedCDError(
            f"{whose}: the reference 'prediction' is for energies of the output; use inversion, single-step or clean."
        )


def check_reference(config: EnergyConfig, name: str, whose: str) -> None:
    """Check that a training step has the reference of an energy of the output.

    Raises:
        GuidedCDError: It takes passes of the teacher.
    """
    if config.reference not in IN_TRAINING:
        raise GuidedCDError(
            f"{whose}: the reference '{config.reference}' of an energy of the output takes passes of the teacher, "
            f"which training does not have. Use --energies.{name}.reference prediction or clean; `guidedcd try energy "
            f"{name}` and `guidedcd sample --teacher` have the others, too."
        )


def check_references(run: Run) -> None:
    """Check the references of a run's energies before its teacher is built.

    Raises:
        GuidedCDError: As `check_reference`.
    """
    for name, config in run.energies.items():
        own = traits(run, name)
        if own.is_of_output and not own.is_reference_free:
            check_reference(config, name, str(run.component("energy", name)))


def traits(run: Run, name: str) -> Traits:
    """The traits of a run's energy, as its class states them or its constructor sets them.

    An energy that cannot be built, as its weights are missing, has those of its class; whoever needs it, reports it.
    """
    component, config = run.component("energy", name), run.energies[name]
    target = component.load()
    if isinstance(component, ObjectComponent) and not inspect.isclass(target):
        return _traits(target(config))  # the object exists already
    key = (target, repr(config), _traits(target))
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _traits(component.build(config))
        except Exception:
            return _traits(target)
    return _KNOWN[key]


_KNOWN: dict[Any, Traits] = {}
"""By class, options and traits of the class, the traits of an energy: building one may load weights."""


def _traits(energy: Any) -> Traits:
    return Traits(is_of_output=is_of_output(energy), is_reference_free=is_reference_free(energy))


def output_names(run: Run) -> list[str]:
    """The names of a run's energies of the output."""
    return [name for name in run.energies if traits(run, name).is_of_output]


def stored_part(run: Run) -> Run:
    """The run without its energies of the output: a latent store depends on no more of it."""
    of_output = output_names(run)
    if not of_output:
        return run
    return attrs.evolve(run, energies={n: config for n, config in run.energies.items() if n not in of_output})
