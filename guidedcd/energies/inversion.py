"""What an energy compares against: latents of the reference video at some noise level.

Legend: B batch, C channels, F frames, H/W latent size; `index` counts points of the solver's grid from the clean end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule, expand, to_x0_eps


def invert(
    teacher: Any, z0: Tensor, cond: dict[str, Tensor], steps: int, last_index: int | Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """DDIM inversion of clean latents along the solver's grid, with the caption and without guidance.

    Step i takes the latents at grid point i - 1 (clean latents count as timestep 0) to point i, with the network
    evaluated at the TARGET timestep. One trajectory serves every noise draw of its video.

    Args:
        teacher: Whose ODE is followed.
        z0: Clean latents (B, C, F, H, W); computed in float32 at least, whatever the network's dtype.
        cond: Conditioning of the videos' own captions, first dimension B.
        steps: Points of the grid.
        last_index: Where to stop, in [0, steps - 1], one for all videos or one each; a finished video costs nothing.

    Yields:
        (index, latents at grid[index] like `z0`), index from 0; rows of finished videos keep their last value.
    """
    schedule: NoiseSchedule = teacher.schedule
    grid = schedule.grid(steps)
    last = torch.as_tensor(last_index).expand(z0.shape[0])
    z = z0.to(torch.promote_types(z0.dtype, torch.float32)).clone()
    for index in range(int(last.max()) + 1):
        rows = (last >= index).nonzero().flatten().to(z.device)
        t = grid[index].expand(len(rows)).to(z.device)
        with torch.no_grad():
            output = teacher.net(z[rows], t, {key: value[rows] for key, value in cond.items()})
            z = z.index_copy(0, rows, _inverse_step(schedule, z[rows], output, t, schedule.previous(t, steps)))
        yield index, z


def inversions(
    teacher: Any, z0: Tensor, cond: dict[str, Tensor], steps: int, wanted: Sequence[Collection[int]], rows: int
) -> Iterator[list[tuple[int, int, Tensor]]]:
    """DDIM inversions of many videos, as `invert` has each, with every forward pass as full as can be.

    A video that is done makes room for the next one: rows of one pass stand at different points of the grid. The
    longest go first, so that the last passes are few.

    Args:
        teacher: Whose ODE is followed.
        z0: Clean latents (V, C, F, H, W).
        cond: Conditioning of the videos' own captions, first dimension V.
        steps: Points of the grid.
        wanted: By video, the grid indices whose latents are asked for; none makes the video cost nothing.
        rows: The most rows of a forward pass.

    Yields:
        After every forward pass (video, index, latents (C, F, H, W)) of each of its rows, float32 at least; the ones
        not wanted are there to be counted.
    """
    schedule: NoiseSchedule = teacher.schedule
    grid = schedule.grid(steps).to(z0.device)
    waiting = sorted((v for v, some in enumerate(wanted) if some), key=lambda v: (max(wanted[v]), -v))
    z0 = z0.to(torch.promote_types(z0.dtype, torch.float32))
    active: list[tuple[int, int, Tensor]] = []
    while waiting or active:
        while waiting and len(active) < rows:
            video = waiting.pop()
            active.append((video, 0, z0[video]))
        videos = [video for video, _, _ in active]
        t = grid[[index for _, index, _ in active]]
        z = torch.stack([latents for _, _, latents in active])
        with torch.no_grad():
            output = teacher.net(z, t, {key: value[videos] for key, value in cond.items()})
            z = _inverse_step(schedule, z, output, t, schedule.previous(t, steps))
        reached = [(video, index, latents) for (video, index, _), latents in zip(active, z, strict=True)]
        yield reached
        active = [(video, index + 1, one) for video, index, one in reached if index < max(wanted[video])]


def inverse_step(schedule: NoiseSchedule, z: Tensor, eps: Tensor, t: Tensor, t_previous: Tensor) -> Tensor:
    """From latents at `t_previous` (B,) to latents at the noisier `t` (B,), given `eps` like `z`."""
    x0, _ = to_x0_eps(z, eps, *schedule.alpha_sigma(t_previous, z.dtype), "eps")
    return schedule.add_noise(x0, eps, t)


def _inverse_step(schedule: NoiseSchedule, z: Tensor, output: Tensor, t: Tensor, t_previous: Tensor) -> Tensor:
    # The network was told t, so its output is read at t's levels; the latents themselves are at t_previous.
    if schedule.prediction == "flow":
        ahead, behind = (expand(schedule.alpha_sigma(at)[1], z) for at in (t, t_previous))
        return z + (ahead - behind) * output
    _, eps = schedule.to_x0_eps(z, output, t)
    return inverse_step(schedule, z, eps, t, t_previous)


def single_step(schedule: NoiseSchedule, z0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents noised once, (latents at `t`, `t`).

    `noise` must differ from the noise of the sample that is guided: with equal noise and caption the energy and its
    gradient are exactly zero.
    """
    return schedule.add_noise(z0, noise, t), t


def clean(z0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents as they are, (z0, timesteps 0 like `t`)."""
    return z0, torch.zeros_like(t)
