"""Gradients of energies with respect to noisy latents, and the prediction of the same forward pass.

Legend: N samples, B of them in a pass with a gradient; latents (N, C, F, H, W).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.activation_checkpointing import recomputing
from guidedcd.config.run import Run
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.traits import check_traits, is_reference_free
from guidedcd.errors import GuidedCDError, NeedError
from guidedcd.models.attention_probes import recorded_layers, temporal_layers
from guidedcd.models.self_attention_probes import recorded_blocks
from guidedcd.models.teachers.protocol import Cond, Teacher
from guidedcd.plugins import process_state
from guidedcd.plugins.registry import blame

Reference = Any
"""What an energy compares against: a `Seen`, what the energy's own `keep` made of one, or None if it is
`reference_free`."""


class Energy(Protocol):
    """A scalar function of what a network predicts and of a reference.

    Its attribute `needs`, a tuple such as ("temporal-attention:official",) or ("self-attention:14",), names the
    activations to record. An energy without it reads none. `guidedcd.plugins.optional.OptionalEnergy` lists the other
    attributes that it may have.
    """

    def __call__(self, seen: Seen, reference: Reference) -> Tensor:
        """The energy of each sample (B,), differentiable in `seen.z`."""


@attrs.frozen(kw_only=True, eq=False)
class EnergyTerm:
    """An energy with its reference."""

    name: str
    """For errors."""
    energy: Energy
    reference: Reference
    plugin: str | None = None
    """The plugin that the energy comes from, for errors."""

    @property
    def whose(self) -> str:
        """The energy in errors: "energy 'smooth' of acme/smooth"."""
        return f"energy '{self.name}'" + (f" of {self.plugin}" if self.plugin else "")


def needs_of(energies: Iterable[Energy]) -> tuple[str, ...]:
    """The activations that energies read, each once."""
    return tuple(dict.fromkeys(need for energy in energies for need in getattr(energy, "needs", ())))


def kept(energy: Energy, reference: Seen) -> Reference:
    """What an energy takes as its reference: the forward pass, or what its own `keep` makes of it."""
    keep = getattr(energy, "keep", None)
    return reference if keep is None else keep(reference)


def _read_records_only(energies: Iterable[Energy]) -> bool:
    """Whether energies read nothing of a pass but its records."""
    return all(getattr(one, "records_only", False) for one in energies)


def observed(
    teacher: Teacher, z: Tensor, t: Tensor, cond: Cond, energies: Sequence[Energy], captions: Sequence[str]
) -> Seen:
    """A forward pass for energies of which no gradient is taken; it ends at the last record if they read no more."""
    needs = needs_of(energies)
    is_short = getattr(teacher, "tails", False) and _read_records_only(energies)
    options: dict[str, Any] = {"tail": "none"} if is_short and needs else {}
    forward: Any = teacher.seen  # `options` of a teacher with `tails` go beyond the protocol
    return forward(z, t, cond, needs=needs, captions=captions, **options)


def _versions(*passes: Any) -> list[tuple[Tensor, int]]:
    """The tensors of forward passes, each with the count of its changes in place."""
    seen = [one for one in passes if isinstance(one, Seen)]
    tensors = [tensor for one in seen for tensor in (one.z, one.t, one.alpha, one.sigma, one.output)]
    tensors += [tensor for one in seen for layers in one.records.values() for tensor in layers.values()]
    return [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]


def _is_changed(*passes: Any) -> bool:
    """Whether latents of a pass that are computed when they are first read were changed in place."""
    seen = [one for one in passes if isinstance(one, Seen)]
    computed = [(one, tensor) for one in seen for tensor in vars(one).get("_converted", ())]
    computed += [(one, vars(one)["guided"]) for one in seen if "guided" in vars(one)]
    return any(tensor is not one.output and not tensor.is_inference() and tensor._version for one, tensor in computed)


def energy_values(term: EnergyTerm, seen: Seen) -> Tensor:
    """The energies (B,) of a term, if a gradient can be taken of them.

    A single number for a whole batch would have a gradient too, but one that depends on the size of the batch.

    Raises:
        GuidedCDError: The energy returned something else, has no gradient, or changed its arguments.
    """
    rows, versions = len(seen.z), _versions(seen, term.reference)
    with process_state.restored(process_state.NUMERIC) as changes:
        value: Any = term.energy(seen, term.reference)
    if changes:
        raise GuidedCDError(f"{term.whose} changed {', '.join(changes)}, which all code shares.")
    is_changed = any(tensor._version != version for tensor, version in versions)
    if is_changed or _is_changed(seen, term.reference):
        raise GuidedCDError(
            f"{term.whose} changed a tensor of its arguments in place, which other energies read too; "
            "it must work on a copy."
        )
    actual = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.shape != (rows,):
        raise GuidedCDError(
            f"{term.whose} returned {actual} for {rows} samples; it must return one number each, ({rows},)."
        )
    if value.is_complex():
        raise GuidedCDError(f"{term.whose} returned complex numbers; it must return real ones.")
    if not value.requires_grad:
        raise GuidedCDError(f"{term.whose} does not depend on its first argument, so that it has no gradient.")
    return value


@contextmanager
def blamed(term: EnergyTerm) -> Iterator[None]:
    """As `blame`; an error that the energy raises itself also has a note with the energy and its plugin."""
    try:
        with blame(term.whose):
            yield
    except GuidedCDError as error:
        error.add_note(f"in {term.whose}")
        raise


def check_finite(term: EnergyTerm, gradient: Tensor, captions: Sequence[str]) -> None:
    """Check the gradient of an energy (B, ...).

    Raises:
        GuidedCDError: That of a sample is not finite.
    """
    # A plan runs this on the meta device, whose tensors have no values to check.
    finite = [] if gradient.is_meta else gradient.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        rows = [row for row, is_finite in enumerate(finite) if not is_finite]
        samples = ", ".join(repr(captions[row]) if captions else f"sample {row}" for row in rows)
        raise GuidedCDError(f"{term.whose} gave a gradient that is not finite for {samples}.")


@contextmanager
def _naming_needs(energies: Mapping[str, Energy]) -> Iterator[None]:
    """An error of a teacher about activations that it cannot record names the energies, by description, that need them.

    Raises:
        NeedError: The teacher raised it.
    """
    try:
        yield
    except NeedError as error:
        needing = [whose for whose, energy in energies.items() if error.need in getattr(energy, "needs", ())]
        if not needing:
            raise
        raise NeedError(f"{' and '.join(needing)}: {error}", need=error.need) from error


def energy_gradients(
    teacher: Teacher,
    z: Tensor,
    t: Tensor,
    cond: Cond,
    terms: Sequence[EnergyTerm],
    captions: Sequence[str] = (),
    *,
    recompute: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The prediction at `z`, and each energy's gradient with respect to `z`, from one forward pass.

    The gradient of the energy's sum over samples gives each sample its own gradient: no sample's prediction depends on
    another's latents. This is the score of the paper's Equation 2 without its scale.

    Args:
        teacher: Predicts at `z`.
        z: Noisy latents (B, C, F, H, W).
        t: Training timesteps (B,).
        cond: Conditioning with first dimension B.
        terms: The energies with their references.
        captions: B texts that the energies receive.
        recompute: As that of `LatentTeacher.seen`, for a teacher with `tails`. With such a teacher, and energies that
            read records only, the layers behind the last record have no gradient.

    Returns:
        (prediction like `z`, one gradient like `z` per term), both without a gradient of their own.

    Raises:
        GuidedCDError: An energy returned something else than (B,) numbers with a gradient, changed its arguments, or
            a gradient is not finite.
    """
    needs = needs_of(term.energy for term in terms)
    gradients: list[Tensor] = []
    options: dict[str, Any] = {}
    if getattr(teacher, "tails", False):
        is_short = _read_records_only(term.energy for term in terms)
        options = {"tail": "detached" if is_short else "whole", "recompute": recompute}
    forward: Any = teacher.seen  # `options` of a teacher with `tails` go beyond the protocol
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        with _naming_needs({term.whose: term.energy for term in terms}):
            seen = forward(z, t, cond, needs=needs, captions=captions, **options)
        for number, term in enumerate(terms, 1):
            with blamed(term):
                value = energy_values(term, seen)
                (gradient,) = torch.autograd.grad(value.sum(), z, retain_graph=number < len(terms))
            check_finite(term, gradient, captions)
            gradients.append(gradient.detach())
    return seen.output.detach(), gradients


class EnergyGradients:
    """The gradients of a run's energies through the network; those of the output are in `guidedcd.energies.output`.

    An energy that sets `records_only` reads nothing of a pass but its records: the passes of references then end at the
    last record, and the layers behind it have no gradient. An energy with `keep(reference)` receives as its reference
    what `keep` returned right after the reference's pass, which should take little memory. An energy that sets
    `reference_free` receives None.
    """

    def __init__(self, run: Run, teacher: Teacher) -> None:
        """Build the energies of `run` for a teacher on its device."""
        self.run, self.teacher = run, teacher
        self.energies: dict[str, Energy] = run.build("energy")
        self.plugins = {name: str(run.component("energy", name).plugin) for name in self.energies}
        for name, energy in self.energies.items():
            check_traits(energy, run.energies[name], f"energy '{name}' of {self.plugins[name]}")
        self.needs = needs_of(self.energies.values())
        self.recompute = run.preprocess.recompute
        self.kind_of = {
            name: config.reference
            for name, config in run.energies.items()
            if not is_reference_free(self.energies[name])
        }
        """By energy with a reference, its kind."""

    def subset(self, names: Collection[str]) -> EnergyGradients:
        """The gradients of some of the energies, which are not built again."""
        gradients = copy.copy(self)
        gradients.energies = {name: energy for name, energy in self.energies.items() if name in names}
        gradients.needs = needs_of(gradients.energies.values())
        gradients.kind_of = {name: kind for name, kind in self.kind_of.items() if name in names}
        return gradients

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        cond: Cond,
        captions: Sequence[str],
        references: Mapping[str, tuple[Tensor, Tensor]],
        batch_size: int,
    ) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """Predictions and gradients of N samples.

        Each kind of reference takes one pass of all N samples; passes with a gradient have `batch_size` samples.

        Args:
            z: Noisy latents.
            t: Training timesteps (N,).
            cond: Conditioning of the captions, first dimension N.
            captions: N texts.
            references: By kind of reference, its latents like `z` and their timesteps (N,).
            batch_size: The most samples B of a pass with a gradient.

        Yields:
            (first sample, prediction (B, C, F, H, W), by energy its gradient like the prediction), float32.

        Raises:
            GuidedCDError: A gradient is not finite.
        """
        kept = self._references(references, cond, captions, batch_size)
        for group, start in enumerate(range(0, len(z), batch_size)):
            rows = slice(start, start + batch_size)
            terms = [
                EnergyTerm(
                    name=name,
                    energy=energy,
                    reference=kept[name][group] if name in kept else None,
                    plugin=self.plugins[name],
                )
                for name, energy in self.energies.items()
            ]
            own = {key: value[rows] for key, value in cond.items()}
            with self._recomputing():
                output, gradients = energy_gradients(
                    self.teacher, z[rows], t[rows], own, terms, captions[rows], recompute=self.recompute != "nothing"
                )
            by_name = zip(self.energies, gradients, strict=True)
            yield start, output.float(), {name: gradient.float() for name, gradient in by_name}

    def _references(
        self, references: Mapping[str, tuple[Tensor, Tensor]], cond: Cond, captions: Sequence[str], batch_size: int
    ) -> dict[str, list[Reference]]:
        """By energy with a reference, its reference for each group of `batch_size` samples."""
        by_energy: dict[str, list[Reference]] = {name: [] for name in self.kind_of}
        for kind, (latents, t) in references.items():
            names = [name for name, own in self.kind_of.items() if own == kind]
            with torch.no_grad():
                energies = [self.energies[name] for name in names]
                with _naming_needs(self._by_description):
                    seen = observed(self.teacher, latents, t, cond, energies, captions)
                for start in range(0, len(latents), batch_size):
                    rows = seen.rows(start, start + batch_size)
                    for name in names:
                        by_energy[name].append(kept(self.energies[name], rows))
        return by_energy

    @property
    def _by_description(self) -> dict[str, Energy]:
        """The energies by their names in errors."""
        return {f"energy '{name}' of {self.plugins[name]}": energy for name, energy in self.energies.items()}

    def _recomputing(self) -> AbstractContextManager[None]:
        """The context in which gradients are taken: fewer activations are kept, see `preprocess.recompute`."""
        if self.recompute == "nothing":
            return nullcontext()
        network, blocks = self.teacher.network, getattr(self.teacher, "blocks", ())
        with _naming_needs(self._by_description):
            recorded = recorded_layers(network, self.needs) | recorded_blocks(network, blocks, self.needs)
        temporal = temporal_layers(network).values()
        return recomputing(network, self.recompute, temporal=temporal, keep=recorded, blocks=blocks)
