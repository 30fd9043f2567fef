"""The samples of each step and their random numbers: functions of (seed, step), so resuming needs no state.

Legend: G samples of a step over all processes, B of this process, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import numpy
import torch
from torch import Tensor

from guidedcd.data.routing import Reader, Route, Router, RoutingRule, Sample
from guidedcd.devices import to_device
from guidedcd.diffusion.guidance import guided_from
from guidedcd.diffusion.randomness import Stream, random_stream
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.preprocessing.store import Draw

SLIDER_OFF = 0.1
"""Probability that a sample is not guided at all, for an energy with a range of scales."""


def strengths(config: EnergyConfig, random: numpy.random.Generator, count: int) -> numpy.ndarray:
    """An energy's strength for each of `count` samples (count,): its scale (or relative), or draws from its range.

    Args:
        config: Options of the energy.
        random: Two numbers per sample are drawn from it, whether or not the energy has a range.
        count: Number of samples.
    """
    uniform, is_on = random.random(count), random.random(count) >= SLIDER_OFF
    if config.scale_range is None:
        return numpy.full(count, config.strength)
    low, high = config.scale_range
    return (low + (high - low) * uniform) * is_on


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """This process's samples of one step, on the training device."""

    ids: Sequence[str]
    """Names for logs and errors."""
    samples: Sequence[Sample]
    routes: Sequence[Route]
    index: Tensor
    """Solver index of the source point (B,), int64."""
    z0: Tensor
    """Clean latents (B, C, F, H, W)."""
    noise: Tensor
    """Standard normal, like z0."""
    cond: dict[str, Tensor]
    cond_output: Tensor
    """The teacher's prediction with the caption, like z0."""
    uncond_output: Tensor
    """The teacher's prediction without a caption, like z0."""
    scores: dict[str, Tensor]
    """By energy with scores in the store, its gradient at z_t like z0; zero where it was not computed."""
    omega: Tensor
    """Guidance strength (B,)."""
    strengths: Tensor
    """Each energy's scale or relative strength (B, E): 0 outside of its fraction and where the route excludes it."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, without waiting for a GPU."""
        move = functools.partial(to_device, device=device)
        return attrs.evolve(
            self,
            index=move(self.index),
            z0=move(self.z0),
            noise=move(self.noise),
            cond={key: move(value) for key, value in self.cond.items()},
            cond_output=move(self.cond_output),
            uncond_output=move(self.uncond_output),
            scores={name: move(score) for name, score in self.scores.items()},
            omega=move(self.omega),
            strengths=move(self.strengths),
        )


class Draws(Protocol):
    """What batches are read from: a latent store, or several."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """With the number of points of the solver's grid as "steps"."""

    @property
    def scores(self) -> Mapping[str, Any]:
        """By energy with stored gradients."""

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of draws whose latents have one size, in the order of the draws."""

    def __len__(self) -> int:
        """Number of draws."""

    def __getitem__(self, position: int) -> Draw:
        """The draw at `position`."""


class Batches:
    """The batches of a run for one of its processes.

    Args:
        store: The draws; a batch has draws of one size.
        readers: The run's rewards as readers of text, by name.
        rules: Routing rules by their description for errors, applied left to right.
        energies: The run's energies, in the order of the columns of `Batch.strengths`.
        size: Samples per process and batch.
        omega: Range [low, high] of the guidance strength.
        seed: The run's seed.
        process: Number of this process, from 0.
        processes: Number of processes, each of which takes its own samples of a batch.
    """

    def __init__(
        self,
        store: Draws,
        *,
        readers: Mapping[str, Reader],
        rules: Mapping[str, RoutingRule] | Sequence[RoutingRule],
        energies: Mapping[str, EnergyConfig],
        size: int,
        omega: tuple[float, float],
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.store, self.energies = store, energies
        self.routed = Router(rules, readers, energies)
        self.stored = [name for name in energies if name in store.scores]
        self.size, self.omega, self.seed = size, omega, seed
        self.process, self.processes = process, processes
        self._epoch = -1
        self._order = numpy.empty(0, dtype=numpy.int64)
        self._ends = numpy.cumsum(store.sizes)

    def __call__(self, number: int) -> Batch:
        """Batch `number` of the run (from 0) for this process."""
        total = self.size * self.processes
        own = slice(self.process * self.size, (self.process + 1) * self.size)
        if len(self._ends) > 1:
            positions = self._positions_of_one_size(number, total)[own]
        else:
            positions = [self._store_position(number * total + i) for i in range(total)][own]
        # Numbers are drawn for all processes and then sliced, so two processes train on the samples of one process
        # with twice the batch size.
        random = random_stream(Stream.GUIDANCE, self.seed, number)
        low, high = self.omega
        omega = low + (high - low) * random.random(total)
        scales = numpy.stack(
            [*(strengths(config, random, total) for config in self.energies.values()), numpy.zeros(total)],
            axis=1,
        )[:, :-1]
        return self._assemble([self.store[position] for position in positions], omega[own], scales[own])

    def _store_position(self, number: int) -> int:
        """The position in the store of the run's sample `number`: a new permutation of all draws every epoch."""
        epoch, position = divmod(number, len(self.store))
        if self._epoch != epoch:
            self._epoch = epoch
            random = random_stream(Stream.EPOCH_ORDER, self.seed, epoch)
            self._order = random.permutation(len(self.store))
        return int(self._order[position])

    def _positions_of_one_size(self, number: int, total: int) -> list[int]:
        """The positions of batch `number`, all in one of several stores.

        Every epoch has a new permutation of the draws of each store, cut into whole batches, and the batches of all
        stores in random order. Draws that are left over are in another epoch. A store with less than one batch gives
        one, in which draws occur several times.
        """
        sizes = self.store.sizes
        counts = [max(1, size // total) for size in sizes]
        epoch, position = divmod(number, sum(counts))
        if self._epoch != epoch:
            self._epoch = epoch
            random = random_stream(Stream.EPOCH_ORDER, self.seed, epoch)
            batches = []
            for size, count, end in zip(sizes, counts, self._ends, strict=True):
                order = numpy.resize(random.permutation(size), max(size, total))
                batches.append(order[: count * total].reshape(count, total) + (end - size))
            self._order = random.permutation(numpy.concatenate(batches))
        return [int(one) for one in self._order[position]]

    def _assemble(self, draws: Sequence[Draw], omega: numpy.ndarray, scales: numpy.ndarray) -> Batch:
        routed = [self.routed(draw.sample) for draw in draws]
        index = torch.tensor([draw.index for draw in draws])
        active = torch.from_numpy(scales).float()
        for column, config in enumerate(self.energies.values()):
            active[:, column] *= index >= guided_from(config.fraction, self.store.identity["steps"])
        active *= torch.tensor([[float(one.is_guided_by(name)) for name in self.energies] for _, one in routed])
        z0 = torch.stack([draw.z0 for draw in draws])
        blank = torch.zeros_like(z0[0])
        return Batch(
            ids=[draw.id for draw in draws],
            samples=[sample for sample, _ in routed],
            routes=[chosen for _, chosen in routed],
            index=index,
            z0=z0,
            noise=torch.stack([draw.noise for draw in draws]),
            cond={key: torch.stack([draw.cond[key] for draw in draws]) for key in draws[0].cond},
            cond_output=torch.stack([draw.cond_output for draw in draws]),
            uncond_output=torch.stack([draw.uncond_output for draw in draws]),
            scores={name: torch.stack([d.scores.get(name, blank) for d in draws]) for name in self.stored},
            omega=torch.from_numpy(omega).float(),
            strengths=active,
        )
