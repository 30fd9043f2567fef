"""Cost of preprocessing: each kind of pass of the teacher, counted once on the meta device.

Legend: B samples of a pass with gradient, R = 2 B rows of a pass without, L text tokens, D text width.
"""

from __future__ import annotations

from typing import Any, cast

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.int8 import quantise
from guidedcd.config.run import Run
from guidedcd.data.contract import is_encoded
from guidedcd.energies.traits import stored_part
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.gpus import Machine
from guidedcd.planning.meter import Cost, metered, size
from guidedcd.plugins.configs import DatasetConfig
from guidedcd.preprocessing.estimates import Passes, passes, reference_kinds

ROWS = 2
"""Rows of a pass without gradient, per sample of a pass with gradient."""


@attrs.define(kw_only=True)
class Teaching:
    """The costs of a run's preprocessing, by kind of pass."""

    run: Run
    encode: Cost
    """Latents of B videos."""
    embed: Cost
    """Conditioning of B captions."""
    forward: Cost
    """R rows without gradient."""
    guided: Cost | None
    """References, predictions and scores of B samples; None without energies."""
    resident: int
    """Bytes of the teacher."""
    latent: int
    """Numbers in the latents of one video."""
    left_out: str = ""
    """The reason where the energies are not counted in `guided`."""
    cond: dict[str, tuple[tuple[int, ...], int]]
    """Shape of one caption's conditioning, and bytes of a number, by key."""

    @property
    def batch(self) -> int:
        """B, the batch size of preprocessing."""
        return self.run.preprocess.batch_size

    @property
    def plain(self) -> float:
        """Share of the videos that the teacher encodes and whose captions it embeds; others are latents already."""
        shares = {is_encoded(chosen): 0.0 for chosen in self.run.data}
        for chosen in self.run.data:
            shares[is_encoded(chosen)] += cast(DatasetConfig, chosen.config).weight
        return shares.get(False, 0.0) / sum(shares.values()) if shares else 1.0

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        costs = (self.encode, self.embed, self.forward, self.guided)
        return self.resident + max(cost.peak for cost in costs if cost is not None)

    def flops(self, counted: Passes | None = None) -> float:
        """Operations per video."""
        return self._of(lambda cost: cost.flops, counted)

    def seconds(self, machine: Machine, counted: Passes | None = None) -> float:
        """Seconds per video."""
        return self._of(machine.seconds, counted)

    def _of(self, measure: Any, counted: Passes | None) -> float:
        counted = counted or passes(self.run)
        rows = counted.inversion + counted.scored + 2 * counted.plain
        total = self.plain * (measure(self.encode) + measure(self.embed)) / self.batch
        total += rows * measure(self.forward) / (ROWS * self.batch)
        if self.guided is not None:
            total += counted.scored * measure(self.guided) / self.batch
        return total


def teaching(run: Run, teacher: Teacher) -> Teaching:
    """Count the passes of a teacher on the meta device, at the run's batch size."""
    if run.preprocess.precision == "bf16":
        teacher.network.to(torch.bfloat16)
    if run.preprocess.quantize == "int8":
        quantise(teacher.network)
    geometry, batch = teacher.geometry, run.preprocess.batch_size
    with torch.no_grad():
        with metered() as encode:
            teacher.encode(empty(batch, *geometry.pixel_shape))
        with metered() as embed:
            cond = teacher.embed(["a"] * batch)
        z, t, text = inputs(teacher, ROWS * batch)
        with metered() as forward:
            teacher.net(z, t, text)
    scores, left_out = guided(run, teacher) if stored_part(run).energies else (None, "")
    return Teaching(
        run=run,
        encode=encode,
        embed=embed,
        forward=forward,
        guided=scores,
        left_out=left_out,
        resident=sum(size(getattr(teacher, name, None)) for name in ("network", "vae", "text"))
        + other_networks(teacher),
        latent=z[0].numel(),
        cond={key: (tuple(value.shape[1:]), value.element_size()) for key, value in cond.items()},
    )


def other_networks(teacher: Teacher) -> int:
    """Bytes of the networks besides `network` on which a teacher's predictions depend, such as another expert."""
    networks: Any = getattr(teacher, "networks", dict)
    return sum(size(network) for network in networks().values())


def guided(run: Run, teacher: Teacher) -> tuple[Cost, str]:
    """Count one batch of references, predictions and scores through the network.

    Energies that cannot run on the meta device are left out, and the reason is returned.
    """
    from guidedcd.energies.gradients import EnergyGradients

    run = stored_part(run)
    z, t, text = inputs(teacher, run.preprocess.batch_size)
    at = {kind: (z, t) for kind in reference_kinds(run).values()}
    try:
        with metered() as cost:
            for _ in EnergyGradients(run, teacher)(z, t, text, ["a"] * len(z), at, len(z)):
                pass
        return cost, ""
    except Exception as error:
        with metered() as cost:
            for _ in at:
                with torch.no_grad():
                    teacher.net(z, t, text)
            torch.autograd.backward(teacher.net(z.requires_grad_(), t, text).sum())
        return cost, f"they do not run on the meta device ({(str(error).splitlines() or [''])[0][:200]})"


def inputs(teacher: Teacher, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Latents, timesteps and conditioning of `rows` samples on the meta device."""
    text = {key: value[:1].expand(rows, *value.shape[1:]) for key, value in teacher.embed(["a"]).items()}
    return empty(rows, *teacher.geometry.latent_shape), torch.zeros(rows, dtype=torch.long, device="meta"), text


def empty(*shape: int) -> Tensor:
    """A float32 tensor on the meta device."""
    return torch.empty(*shape, device="meta")
