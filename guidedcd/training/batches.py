"""Which samples a step trains on, and its random numbers: functions of (seed, step), so resuming needs no state.

Legend: G samples of a step over all processes, B of this process, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy
import torch
from torch import Tensor

from guidedcd.data.routing import Route, RoutingRule, Sample, route
from guidedcd.diffusion.guidance import guided_from
from guidedcd.diffusion.randomness import Stream, random_stream
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.preprocessing.store import Draw, LatentStore

SLIDER_OFF = 0.1
"""With a scale range, the share of samples that are not guided at all."""


def strengths(config: EnergyConfig, random: numpy.random.Generator, count: int) -> numpy.ndarray:
    """How strong an energy is for each of `count` samples: its scale (or relative), or one drawn from its range."""
    value = config.scale if config.relative is None else config.relative
    drawn, on = random.random(count), random.random(count) >= SLIDER_OFF
    if config.scale_range is None:
        return numpy.full(count, value)
    low, high = config.scale_range
    return (low + (high - low) * drawn) * on


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
    """By energy, its gradient at z_t like z0; zero where it was not computed."""
    omega: Tensor
    """Guidance strength (B,)."""
    strengths: Tensor
    """Each energy's scale or relative strength (B, E): 0 outside of its window and where the route forbids it."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {k: move(v) for k, v in value.items()} if isinstance(value, Mapping) else value

        return Batch(**{a.name: move(getattr(self, a.name)) for a in attrs.fields(Batch)})


class Batches:
    """The batches of a run.

    Args:
        store: Where the draws are.
        readers: The run's rewards as readers of text, by name.
        rules: Routing rules, applied left to right.
        energies: The run's energies, in a fixed order.
        size: Samples per process and step.
        omega: Range of the guidance strength.
        seed: Of the run.
    """

    def __init__(
        self,
        store: LatentStore,
        *,
        readers: Mapping[str, object],
        rules: Sequence[RoutingRule],
        energies: Mapping[str, EnergyConfig],
        size: int,
        omega: tuple[float, float],
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.store, self.readers, self.rules, self.energies = store, readers, rules, energies
        self.size, self.omega, self.seed = size, omega, seed
        self.process, self.processes = process, processes
        self._routes: dict[tuple, tuple[Sample, Route]] = {}

    def __call__(self, number: int) -> Batch:
        """Batch `number` of the run (from 0) for this process."""
        everyone = self.size * self.processes
        mine = slice(self.process * self.size, (self.process + 1) * self.size)
        places = [self._place(number * everyone + i) for i in range(everyone)][mine]
        # Numbers are drawn for all processes and then sliced: two processes see what one with twice the batch sees.
        random = random_stream(Stream.GUIDANCE, self.seed, number)
        low, high = self.omega
        omega = low + (high - low) * random.random(everyone)
        scales = numpy.stack(
            [*(strengths(config, random, everyone) for config in self.energies.values()), numpy.zeros(everyone)],
            axis=1,
        )[:, :-1]
        return self._assemble([self.store[p] for p in places], omega[mine], scales[mine])

    def _place(self, position: int) -> int:
        """The store position of the run's sample `position`: a new permutation of all draws every epoch."""
        epoch, place = divmod(position, len(self.store))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            random = random_stream(Stream.EPOCH_ORDER, self.seed, epoch)
            self._order = random.permutation(len(self.store))
        return int(self._order[place])

    def _assemble(self, draws: Sequence[Draw], omega: numpy.ndarray, scales: numpy.ndarray) -> Batch:
        routed = [self.routed(draw.sample) for draw in draws]
        index = torch.tensor([draw.index for draw in draws])
        active = torch.from_numpy(scales).float()
        for column, config in enumerate(self.energies.values()):
            active[:, column] *= index >= guided_from(config.fraction, self.store.identity["steps"])
        active *= torch.tensor([[float(found.guided)] for _, found in routed])
        z0 = torch.stack([draw.z0 for draw in draws])
        blank = torch.zeros_like(z0[0])
        return Batch(
            ids=[draw.id for draw in draws],
            samples=[sample for sample, _ in routed],
            routes=[found for _, found in routed],
            index=index,
            z0=z0,
            noise=torch.stack([draw.noise for draw in draws]),
            cond={key: torch.stack([draw.cond[key] for draw in draws]) for key in draws[0].cond},
            cond_output=torch.stack([draw.cond_output for draw in draws]),
            uncond_output=torch.stack([draw.uncond_output for draw in draws]),
            scores={name: torch.stack([d.scores.get(name, blank) for d in draws]) for name in self.energies},
            omega=torch.from_numpy(omega).float(),
            strengths=active,
        )

    def routed(self, sample: Sample) -> tuple[Sample, Route]:
        """The sample with this run's readers, and its route; remembered, because it never changes."""
        # Two datasets may number their clips alike.
        key = (sample.dataset, sample.id, sample.caption, sample.short_caption)
        if key not in self._routes:
            known = attrs.evolve(sample, readers=self.readers)
            self._routes[key] = (known, route(known, self.rules))
        return self._routes[key]
