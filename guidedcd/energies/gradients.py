"""Gradients of energies at noisy latents, and the prediction that the same forward pass gives.

Legend: N samples, B of them with a gradient at once; latents (N, C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from guidedcd.acceleration.activation_checkpointing import recomputing
from guidedcd.config.run import Run
from guidedcd.errors import GuidedCDError
from guidedcd.models.attention_probes import recorded_layers, temporal_layers


class EnergyGradients:
    """The energies of a run.

    An energy that sets `records_only` reads nothing of a pass but its records: the passes of references then end at the
    last record, and what follows it has no gradient. An energy with `keep(reference)` is given, as its reference, what
    that returned right after the reference's pass; it should hold little memory.
    """

    def __init__(self, run: Run, teacher: Any) -> None:
        self.run, self.teacher = run, teacher
        self.energies = run.build("energy")
        self.needs = tuple(dict.fromkeys(need for energy in self.energies.values() for need in energy.needs))
        self.recompute = run.preprocess.recompute
        self.reference_of = {name: config.reference for name, config in run.energies.items()}
        self.tails = getattr(teacher, "tails", False)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        text: dict[str, Tensor],
        captions: Sequence[str],
        at: Mapping[str, tuple[Tensor, Tensor]],
        batch: int,
    ) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """Scores of N samples; references take one pass of all N for each kind, gradients come `batch` at a time.

        Args:
            z: Noisy latents.
            t: Training timesteps (N,).
            text: Conditioning of the captions, first dimension N.
            captions: N of them.
            at: By kind of reference, its latents like `z` and their timesteps (N,).
            batch: The most samples B of a pass with gradient.

        Yields:
            (first sample, prediction (B, C, F, H, W), by energy its gradient like it), float32.

        Raises:
            GuidedCDError: A gradient is not finite.
        """
        theirs = self._references(at, text, captions, batch)
        for number, start in enumerate(range(0, len(z), batch)):
            rows = slice(start, start + batch)
            some = {key: value[rows] for key, value in text.items()}
            mine = {name: kept[number] for name, kept in theirs.items()}
            yield start, *self._gradients(z[rows], t[rows], some, captions[rows], mine)

    def _references(
        self, at: Mapping[str, tuple[Tensor, Tensor]], text: dict[str, Tensor], captions: Sequence[str], batch: int
    ) -> dict[str, list[Any]]:
        """By energy, what it is given as reference for each group of `batch` samples."""
        found: dict[str, list[Any]] = {name: [] for name in self.energies}
        for kind, (latents, when) in at.items():
            asking = [name for name in self.energies if self.reference_of[name] == kind]
            needs = tuple(dict.fromkeys(need for name in asking for need in self.energies[name].needs))
            options = {"tail": "none"} if self._records_only(asking) and needs else {}
            with torch.no_grad():
                seen = self.teacher.seen(latents, when, text, needs=needs, captions=captions, **options)
                for start in range(0, len(latents), batch):
                    rows = seen.rows(start, start + batch)
                    for name in asking:
                        keep = getattr(self.energies[name], "keep", None)
                        found[name].append(rows if keep is None else keep(rows))
        return found

    def _gradients(
        self, z: Tensor, t: Tensor, text: dict[str, Tensor], captions: Sequence[str], theirs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction at `z`, and the gradient of every energy there."""
        options: dict[str, Any] = {}
        if self.tails:
            options = {"tail": "detached" if self._records_only(self.energies) else "whole"}
            options["recompute"] = self.recompute != "nothing"
        found: dict[str, Tensor] = {}
        with torch.enable_grad(), self._recomputing():
            z = z.detach().requires_grad_(True)
            seen = self.teacher.seen(z, t, text, needs=self.needs, captions=captions, **options)
            for number, (name, energy) in enumerate(self.energies.items()):
                try:
                    value = energy(seen, theirs[name])
                    more = number + 1 < len(self.energies)
                    (found[name],) = torch.autograd.grad(value.sum(), z, retain_graph=more)
                except Exception as error:
                    error.add_note(f"in energy '{name}' of {self.run.component('energy', name).plugin}")
                    raise
                if not torch.isfinite(found[name]).all():
                    bad = [repr(c) for c, g in zip(captions, found[name], strict=True) if not torch.isfinite(g).all()]
                    raise GuidedCDError(f"energy '{name}' gave a gradient that is not finite for {', '.join(bad)}.")
        return seen.output.detach().float(), {name: gradient.float() for name, gradient in found.items()}

    def _recomputing(self) -> AbstractContextManager[None]:
        """The context in which gradients are taken: fewer activations are kept, see `preprocess.recompute`."""
        if self.recompute == "nothing":
            return nullcontext()
        network = self.teacher.network
        temporal, recorded = temporal_layers(network).values(), recorded_layers(network, self.needs)
        return recomputing(network, self.recompute, temporal=temporal, keep=recorded)

    def _records_only(self, names: Any) -> bool:
        return self.tails and all(getattr(self.energies[name], "records_only", False) for name in names)
