"""The losses of a batch of stored draws: distances of the student's predictions from the teacher's (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guidedcd.config.sections import Solver
from guidedcd.diffusion.consistency import Network, gap, sample_gaps, sides
from guidedcd.diffusion.guidance import Rule, TeacherStep, guidance_term, guided_share, guided_step, lambda_input
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.energies.output import OutputGradients
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.training.batches import Batch

NOISE_LEVELS = 4
"""Parts of the solver's grid for which the consistency loss is logged."""


class NoisyBatch:
    """A batch with noise added, the teacher's guided step from there, and the student's prediction there.

    Objectives share it, so that the student's forward pass with a gradient is computed once.

    Args:
        student: The network in training.
        schedule: Noise levels.
        batch: See `guidedcd.training.batches.Batch`; its strengths are already 0 where a sample is not guided.
        grid: The solver's timesteps.
        solver: Options of the guided step.
        energies: In the order of the columns of `batch.strengths`.
        outputs: Computes the gradients of the energies of the output, which are not in `batch.scores`.
    """

    def __init__(
        self,
        student: Network,
        schedule: NoiseSchedule,
        batch: Batch,
        *,
        grid: Tensor,
        solver: Solver,
        energies: Mapping[str, EnergyConfig],
        outputs: OutputGradients | None = None,
    ) -> None:
        self.student, self.schedule, self.batch = student, schedule, batch
        self.solver, self.energies, self.outputs = solver, energies, outputs
        self.t = grid.to(batch.index.device)[batch.index]
        self.z = schedule.add_noise(batch.z0, batch.noise, self.t)
        # The store may keep half precision; the step is computed in the dtype of the latents.
        cond, uncond = batch.cond_output.to(self.z.dtype), batch.uncond_output.to(self.z.dtype)
        self._step = TeacherStep(self.z, self.t, cond, uncond, batch.omega, solver.guider)
        inputs = [
            lambda_input(strength, config.is_relative)
            for config, strength in zip(energies.values(), batch.strengths.unbind(dim=1), strict=True)
        ]
        self.lambdas = torch.stack(inputs, dim=1) if inputs else None
        """Energy inputs of the student (B, E), or None for a student without energies."""
        self._prediction: Tensor | None = None
        self.shares: dict[str, Tensor] = {}
        """By energy, its guided term as a share of the prediction: the mean over guided samples, NaN without any, and
        infinite where a gradient is not finite."""
        self.shares_by_noise: dict[str, list[Tensor]] = {}
        """By energy, the same share in each quarter of the solver's grid; see `by_noise`."""
        self.by_noise: list[Tensor] = []
        """The consistency loss by noise level: its mean over the samples in each quarter of the solver's grid, the
        cleanest first, NaN without any; empty until it is computed."""

    @property
    def prediction(self) -> Tensor:
        """The student's prediction of the clean latents (B, C, F, H, W), with a gradient; computed once."""
        if self._prediction is None:
            output = self.student(self.z, self.t, self.batch.cond, self.batch.omega, self.lambdas)
            self._prediction = self.schedule.consistency(self.z, output, self.t)
        return self._prediction

    def consistency_loss(self, *, target: Network | None = None, loss: str = "huber", huber_c: float = 0.001) -> Tensor:
        """Distance of the student's predictions at both ends of the teacher's guided step; options of `distance`."""
        t_next = self.schedule.previous(self.t, self.solver.steps)
        rule = Rule(self.solver.rule, self.solver.noise_factor)
        terms, scores = [], {**self.batch.scores, **self._output_scores()}
        for (name, config), strength in zip(self.energies.items(), self.batch.strengths.unbind(dim=1), strict=True):
            score, relative = scores[name].to(self.z.dtype), config.is_relative
            terms.append(guidance_term(self.schedule, self._step, score, strength, relative, rule))
            share = guided_share(self.schedule, self._step, terms[-1], rule)
            if name not in self.batch.scores:  # stored scores are finite
                share = torch.where(score.flatten(1).isfinite().all(1), share, torch.inf)
            guided = torch.where(strength > 0, share, torch.nan)
            self.shares[name], self.shares_by_noise[name] = guided.nanmean(), self._by_noise(guided)
        z_next = guided_step(self.schedule, self._step, t_next, terms, rule)
        batch = self.batch
        self._prediction, goal = sides(
            self.student,
            self.schedule,
            self.z,
            self.t,
            z_next,
            t_next,
            batch.cond,
            batch.omega,
            self.lambdas,
            target=target,
        )
        with torch.no_grad():
            self.by_noise = self._by_noise(sample_gaps(self._prediction, goal, loss, huber_c))
        return gap(self._prediction, goal, loss, huber_c)

    def _by_noise(self, samples: Tensor) -> list[Tensor]:
        """The means of values (B,) in each quarter of the solver's grid, without NaN; NaN without any."""
        quarter = self.batch.index.to(samples.device) * NOISE_LEVELS // self.solver.steps
        return [torch.where(quarter == one, samples, torch.nan).nanmean() for one in range(NOISE_LEVELS)]

    def _output_scores(self) -> dict[str, Tensor]:
        """By energy of the output, its gradient at z like z."""
        if self.outputs is None:
            return {}
        return self.outputs(self._step, self.batch.z0, [sample.caption for sample in self.batch.samples])

    def guided_prediction_loss(self, *, loss: str = "huber", huber_c: float = 0.001) -> Tensor:
        """Distance of the student's prediction from the teacher's guided one, as clean latents; calls no network."""
        target = self.schedule.consistency(self.z, self._step.output, self.t)
        return gap(self.prediction, target, loss, huber_c)


def consistency(
    student: Network,
    schedule: NoiseSchedule,
    batch: Batch,
    *,
    grid: Tensor,
    solver: Solver,
    energies: Mapping[str, EnergyConfig],
    guided: float = 0.0,
    target: Network | None = None,
    outputs: OutputGradients | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The consistency loss of a batch, and `guided` times its guided-prediction loss.

    Args:
        student: The network in training.
        schedule: Noise levels.
        batch: See `NoisyBatch`.
        grid: The solver's timesteps.
        solver: How the step is guided.
        energies: In the order of the columns of `batch.strengths`.
        guided: Weight of the guided-prediction loss, at least 0.
        target: The network of the second side; None takes the student itself.
        outputs: See `NoisyBatch`.
        options: `loss` and `huber_c`, see `distance`.

    Returns:
        (loss scalar, predicted clean latents (B, C, F, H, W)).
    """
    noisy = NoisyBatch(student, schedule, batch, grid=grid, solver=solver, energies=energies, outputs=outputs)
    loss = noisy.consistency_loss(target=target, **options)
    if guided:
        loss = loss + guided * noisy.guided_prediction_loss(**options)
    return loss, noisy.prediction
