"""The shares of energies of the output in the teacher's prediction, measured on some draws of a store.

Training computes the gradients of these energies from the same tensors, and logs their shares at every step. The
measured shares are kept in `STORE/shares/NAME-KEY.json` for `store show`; nothing else reads them.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator

import attrs
import numpy
import torch

from guidedcd.config.run import Run
from guidedcd.devices import blame_memory
from guidedcd.diffusion.guidance import TeacherStep, guided_from, moments
from guidedcd.energies.output import OutputGradients
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import score_sets
from guidedcd.preprocessing.identity import identify_scores
from guidedcd.preprocessing.shares import SHARES, Share, print_lines, share_of
from guidedcd.preprocessing.store import Draw, LatentStore

DRAWS = 128
"""At most this many draws of a store are measured."""


def print_shares(latents: LatentStore, run: Run, teacher: Teacher, outputs: OutputGradients) -> None:
    """Print the share of each of a run's energies of the output on a store, and keep it for `store show`."""
    for share in measured_shares(latents, run, teacher, outputs):
        print_lines(share.lines())
        scores, strength = identify_scores(run, share.energy), score_sets.strength_of(run, share.energy)
        path = score_sets.folder_of(latents.folder, {**scores, **strength}).name
        with contextlib.suppress(GuidedCDError, OSError):  # a store of several users can be read-only
            finite = {key: value for key, value in attrs.asdict(share).items() if value != math.inf}
            content = {"scores": scores, "strength": strength, "share": finite}
            write_json(latents.folder / SHARES / f"{path}.json", content)


def measured_shares(latents: LatentStore, run: Run, teacher: Teacher, outputs: OutputGradients) -> list[Share]:
    """The share of each of a run's energies of the output, at the middle of its range of omega.

    Args:
        latents: The run's store.
        run: The configuration.
        teacher: The run's teacher on its device.
        outputs: The run's energies of the output.

    Raises:
        GuidedCDError: An energy breaks its contract.
    """
    names, steps = list(outputs.energies), run.solver.steps
    if not names:
        return []
    first = {name: guided_from(run.energies[name].fraction, steps) for name in names}
    measured: dict[str, list[tuple[float, float, numpy.ndarray]]] = {name: [] for name in names}
    for draw in _some_draws(latents):
        if draw.index < min(first.values()):
            continue
        step, z0 = _step(draw, run, teacher)
        with blame_memory("the energies' gradients"):
            gradients = outputs(step, z0, [draw.sample.caption], check=True)
        values = moments(teacher.schedule, step)[0].cpu().numpy()
        for name, gradient in gradients.items():
            if draw.index >= first[name]:
                measured[name].append((draw.index / steps, float(gradient.square().mean().sqrt()), values))
    shares = []
    for name, rows in measured.items():
        levels, rms, values = (numpy.array([row[column] for row in rows]) for column in range(3))
        shares.append(share_of(name, levels, rms, values, score_sets.strength_of(run, name)))
    return [share for share in shares if share is not None]


def _some_draws(latents: LatentStore) -> Iterator[Draw]:
    """Draws of a store, chosen at random, but always the same ones."""
    count = len(latents)
    for position in sorted(random.Random(0).sample(range(count), min(count, DRAWS))):
        yield latents[position]


def _step(draw: Draw, run: Run, teacher: Teacher) -> tuple[TeacherStep, torch.Tensor]:
    """The start of a stored draw's guided step, as a batch of one, and its clean latents."""
    schedule, device = teacher.schedule, teacher.device
    z0, noise, o_c, o_u = (one[None].to(device) for one in (draw.z0, draw.noise, draw.cond_output, draw.uncond_output))
    t = schedule.grid(run.solver.steps)[draw.index : draw.index + 1].to(device)
    omega = torch.full((1,), sum(run.solver.omega) / 2, device=device)
    return TeacherStep(schedule.add_noise(z0, noise, t), t, o_c, o_u, omega, run.solver.guider), z0
