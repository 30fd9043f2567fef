"""The latents of a reference video at the noise level of a guided step.

Legend: V videos, R rows of a forward pass, C channels, F frames, H/W latent size. An index counts the points of the
solver's grid from the clean end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule, expand, to_x0_eps
from guidedcd.models.teachers.protocol import Cond


class Predictor(Protocol):
    """The part of a teacher that an inversion uses."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels and prediction type."""

    def net(self, z: Tensor, t: Tensor, cond: Cond, /) -> Tensor:
        """The network's prediction at `z` (R, C, F, H, W) and `t` (R,), like `z`."""


@attrs.frozen(kw_only=True, eq=False)
class InversionPass:
    """The latents that one forward pass of an inversion reached."""

    videos: Sequence[int]
    """The video of each row (R)."""
    indices: Sequence[int]
    """The grid point that each row reached (R)."""
    latents: Tensor
    """(R, C, F, H, W), float32 at least."""


def inversion_passes(
    teacher: Predictor, z0: Tensor, cond: Cond, steps: int, indices: Sequence[Collection[int]], rows: int
) -> Iterator[InversionPass]:
    """DDIM inversion of clean latents along the solver's grid, with the caption and without guidance.

    Step i takes the latents at grid point i - 1 (clean latents count as timestep 0) to point i, with the network
    evaluated at the target timestep (Song et al. 2021, Equation 13 backwards). One trajectory serves all noise draws
    of its video.

    A video that is finished makes room for the next one, so the rows of one pass may stand at different grid points.
    The longest trajectories start first, which keeps the passes full.

    Args:
        teacher: Predicts along the trajectory.
        z0: Clean latents (V, C, F, H, W); computed in float32 at least, whatever the network's dtype.
        cond: Conditioning of the videos' own captions, first dimension V.
        steps: Points of the grid.
        indices: By video, the grid points to reach, in [0, steps - 1]. The trajectory ends at the largest one; a video
            without any takes no pass.
        rows: The most rows R of a forward pass, at least 1.

    Yields:
        Every forward pass, with all grid points on the way.
    """
    schedule = teacher.schedule
    grid = schedule.grid(steps).to(z0.device)
    last = [max(some, default=-1) for some in indices]
    waiting = sorted((video for video, index in enumerate(last) if index >= 0), key=lambda video: (last[video], -video))
    z0 = z0.to(torch.promote_types(z0.dtype, torch.float32))
    active: list[tuple[int, int, Tensor]] = []
    while waiting or active:
        while waiting and len(active) < rows:
            video = waiting.pop()
            active.append((video, 0, z0[video]))
        videos, reached = [video for video, _, _ in active], [index for _, index, _ in active]
        t = grid[reached]
        z = torch.stack([latents for _, _, latents in active])
        with torch.no_grad():
            output = teacher.net(z, t, {key: value[videos] for key, value in cond.items()})
            z = _step_up(schedule, z, output, t, schedule.previous(t, steps))
        yield InversionPass(videos=videos, indices=reached, latents=z)
        rows_reached = zip(videos, reached, z, strict=True)
        active = [(video, index + 1, latents) for video, index, latents in rows_reached if index < last[video]]


def invert(teacher: Predictor, z0: Tensor, cond: Cond, steps: int, last_index: int) -> Iterator[tuple[int, Tensor]]:
    """DDIM inversion of all videos at once, from the clean end to grid point `last_index`; see `inversion_passes`.

    Yields:
        (index, latents at grid[index] like `z0`), index from 0 to `last_index`.
    """
    for step in inversion_passes(teacher, z0, cond, steps, [range(last_index + 1)] * len(z0), rows=len(z0)):
        yield step.indices[0], step.latents


def inverse_step(schedule: NoiseSchedule, z: Tensor, eps: Tensor, t: Tensor, t_previous: Tensor) -> Tensor:
    """One DDIM step from latents at `t_previous` (R,) to latents at the noisier `t` (R,), with `eps` like `z`."""
    x0, _ = to_x0_eps(z, eps, *schedule.alpha_sigma(t_previous, z.dtype), "eps")
    return schedule.add_noise(x0, eps, t)


def _step_up(schedule: NoiseSchedule, z: Tensor, output: Tensor, t: Tensor, t_previous: Tensor) -> Tensor:
    """`inverse_step` with the network's output at `t`, of any prediction type."""
    # The output is converted with the levels of t, the network's input; the latents themselves are at t_previous.
    if schedule.prediction == "flow":
        sigma, sigma_previous = (expand(schedule.alpha_sigma(at)[1], z) for at in (t, t_previous))
        return z + (sigma - sigma_previous) * output
    _, eps = schedule.to_x0_eps(z, output, t)
    return inverse_step(schedule, z, eps, t, t_previous)


def single_step(schedule: NoiseSchedule, z0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents with noise added once: (latents at `t`, `t`).

    `noise` must differ from the noise of the guided sample: with equal noise and caption the energy and its gradient
    are exactly zero.
    """
    return schedule.add_noise(z0, noise, t), t


def clean(z0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents without noise: (z0, timesteps 0 like `t`)."""
    return z0, torch.zeros_like(t)
