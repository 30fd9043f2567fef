"""Videos that the student makes itself from noise, for the rewards alone: prompts without clips.

What a noised clip shows follows its caption, so that a reward finds little to correct there, and only for the few
captions of the store. Here the student starts from noise as it does in use (Clark et al. 2023, DRaFT-1, at a random
step), and only the last pass before the rewards has a gradient.
Legend: R videos of this process and step, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from guidedcd.config.run import Run
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.data.routing import Route, Sample
from guidedcd.diffusion.guidance import lambda_input
from guidedcd.diffusion.randomness import Stream, noise, random_stream
from guidedcd.diffusion.sampler import lambdas_at, multistep_consistency_sampling, multistep_timesteps
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.training.batches import strengths

DATASET = "prompts"
"""What routes are told as the dataset of such a sample."""


def listed(run: Run) -> list[Prompt]:
    """The prompts of the run's file; none where it has no file, or nothing to use it for.

    Raises:
        GuidedCDError: The file cannot be read.
    """
    given = run.train.rollouts.prompts
    if not (given and run.train.rollouts.videos and run.rewards):
        return []
    return prompts.read(Path(given.removeprefix("@")).expanduser())


class Rollouts:
    """The student's own videos of every step, a function of (seed, step) and of the student.

    Args:
        run: How many, in how many steps, and with which prompts.
        teacher: Embeds prompts; for its schedule and geometry.
        clips: What is known of the store's clips: their captions are the prompts where there are no others.
        routed: Says where a sample goes; prompts that no reward reads are left out.
        process: Number of this process.
        processes: How many share a step.

    Raises:
        GuidedCDError: The file of prompts cannot be read, or the routes let no prompt through to a reward.
    """

    def __init__(
        self,
        run: Run,
        teacher: Teacher,
        clips: Iterable[Sample] = (),
        *,
        routed: Callable[[Sample], tuple[Sample, Route]],
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.run, self.teacher = run, teacher
        settings = run.train.rollouts
        self.everyone = settings.videos * processes
        self.mine = slice(process * settings.videos, (process + 1) * settings.videos)
        self.times = multistep_timesteps(settings.steps, timesteps=len(teacher.schedule))
        found = listed(run) or prompts.training(teacher)
        own = [Sample(id=f"prompt-{i}", dataset=DATASET, caption=prompt.text) for i, prompt in enumerate(found)]
        samples = own or list(clips)
        self.prompts = [one for one in map(routed, samples) if one[1].rewards]
        if not self.prompts:
            raise GuidedCDError(
                f"--train.rollouts.videos: none of {len(samples)} prompts goes to a reward, for the routes "
                f"({', '.join(run.routes) or 'none'}) let none through. Give shorter ones with "
                "--train.rollouts.prompts FILE, or --train.rollouts.videos 0."
            )

    def chosen(self, number: int) -> list[tuple[Sample, Route]]:
        """The prompts of batch `number` for this process, with their routes."""
        places = random_stream(Stream.ROLLOUT_PROMPTS, self.run.seed, number).integers(
            len(self.prompts), size=self.everyone
        )
        return [self.prompts[place] for place in places[self.mine]]

    def __call__(self, model: Callable[..., Tensor], number: int) -> tuple[Tensor, list[Route]]:
        """Clean latents (R, C, F, H, W) that the student predicts in the last of its passes, and their routes.

        How many passes there are, 1 to `train.rollouts.steps`, is drawn once for all videos of a step.

        Args:
            model: The student, called as model(z, t, cond, omega, lambdas).
            number: Of the batch.
        """
        chosen, random = self.chosen(number), random_stream(Stream.ROLLOUTS, self.run.seed, number)
        # As in `Batches`, numbers are drawn for all processes and then sliced.
        last = int(random.integers(len(self.times)))
        seeds = random.integers(2**62, size=self.everyone)[self.mine]
        low, high = self.run.solver.omega
        omega = low + (high - low) * random.random(self.everyone)
        told = [
            lambda_input(torch.from_numpy(strengths(config, random, self.everyone)), config.relative is not None)
            for config in self.run.energies.values()
        ]
        fractions = [config.fraction for config in self.run.energies.values()]
        schedule, device, shape = self.teacher.schedule, self.teacher.device, self.teacher.geometry.latent_shape
        at = torch.from_numpy(omega[self.mine]).float().to(device)
        lambdas = torch.stack(told, dim=1)[self.mine].float().to(device) if told else None
        with torch.no_grad():
            cond = self.teacher.embed([sample.caption for sample, _ in chosen])

        def noises(draw: int) -> Tensor:
            return torch.stack([noise(int(seed), draw, shape) for seed in seeds]).to(device)

        def say(z: Tensor, t: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and int(t[0]) == self.times[last]):
                return model(z, t, cond, at, lambdas_at(int(t[0]), lambdas, fractions, len(schedule)))

        steps = multistep_consistency_sampling(say, schedule, noises(0), self.times, lambda i: noises(1 + i))
        predicted = next(step.denoised for i, step in enumerate(steps) if i == last)
        return predicted, [route for _, route in chosen]
