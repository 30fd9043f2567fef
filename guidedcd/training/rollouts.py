"""Videos that the student samples from noise during training, for the rewards alone: prompts without clips.

A noised clip already shows what its caption describes, so a reward has little to improve there, and only for the few
captions of the store. Here the student starts from pure noise, as in use, and only its last pass before the rewards has
a gradient (DRaFT-1 of Clark et al. 2023, at a random step).

Legend: R videos of this process and step, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from guidedcd.config.run import Run
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.data.routing import PROMPTS, Route, Sample
from guidedcd.devices import to_device
from guidedcd.diffusion.guidance import lambda_input
from guidedcd.diffusion.randomness import Stream, noise, random_stream
from guidedcd.diffusion.sampler import lambdas_at, multistep_consistency_sampling, multistep_timesteps
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.rewards.latents import StudentPredictions
from guidedcd.training.batches import strengths


def listed(run: Run) -> list[Prompt]:
    """The prompts of the run's file, or none without a file, rollouts or rewards.

    Raises:
        GuidedCDError: The file cannot be read.
    """
    file = run.train.rollouts.prompts
    if not (file and run.train.rollouts.videos and run.rewards):
        return []
    return prompts.read(Path(file.removeprefix("@")).expanduser())


def own_prompts(run: Run, teacher: Teacher) -> list[Sample]:
    """The prompts of the run's file or of the teacher; none where the captions of the clips are the prompts."""
    texts = [prompt.text for prompt in listed(run) or prompts.training(teacher)]
    return [Sample(id=f"prompt-{number}", dataset=PROMPTS, caption=text) for number, text in enumerate(texts)]


def scored(
    run: Run, samples: Sequence[Sample], routed: Callable[[Sample], tuple[Sample, Route]]
) -> list[tuple[Sample, Route]]:
    """The prompts that a reward scores, with their routes.

    Raises:
        GuidedCDError: The routes let no prompt through to a reward, or a rule returns a wrong route.
    """
    result = [one for one in map(routed, samples) if one[1].rewards]
    if not result:
        raise GuidedCDError(
            f"--train.rollouts.videos: none of {len(samples)} prompts goes to a reward, for the routes "
            f"({', '.join(run.routes) or 'none'}) let none through. Give shorter ones with "
            "--train.rollouts.prompts FILE, or --train.rollouts.videos 0."
        )
    return result


class Rollouts:
    """The student's own videos of every step, a function of (seed, step) and of the student.

    Args:
        run: Number of videos, sampling steps and prompts.
        teacher: Embeds prompts; its schedule and geometry are the student's.
        clips: The samples of the store, whose captions are the prompts where there are no others.
        routed: Routes a sample to rewards; prompts that no reward scores are left out.
        process: Number of this process, from 0.
        processes: Number of processes that share a step.

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
        self.total = settings.videos * processes
        """Videos of a step in all processes."""
        self.own = slice(process * settings.videos, (process + 1) * settings.videos)
        """The videos of this process among them."""
        self.timesteps = multistep_timesteps(settings.steps, timesteps=len(teacher.schedule))
        self.prompts = scored(run, own_prompts(run, teacher) or list(clips), routed)

    def chosen(self, number: int) -> list[tuple[Sample, Route]]:
        """The prompts of batch `number` for this process, with their routes."""
        positions = random_stream(Stream.ROLLOUT_PROMPTS, self.run.seed, number).integers(
            len(self.prompts), size=self.total
        )
        return [self.prompts[position] for position in positions[self.own]]

    def __call__(
        self, model: Callable[..., Tensor], number: int, shape: Sequence[int] | None = None
    ) -> StudentPredictions:
        """Clean latents (R, C, F, H, W) that the student predicts in the last of its passes, and their routes.

        The number of passes, from 1 to `train.rollouts.steps`, is drawn once for all videos of a step.

        Args:
            model: The student, called as model(z, t, cond, omega, lambdas).
            number: Number of the batch, from 0.
            shape: Of one video's latents (C, F, H, W); by default that of the teacher's.
        """
        chosen, random = self.chosen(number), random_stream(Stream.ROLLOUTS, self.run.seed, number)
        # As in `Batches`, numbers are drawn for all processes and then sliced.
        last = int(random.integers(len(self.timesteps)))
        seeds = random.integers(2**62, size=self.total)[self.own]
        low, high = self.run.solver.omega
        drawn_omega = low + (high - low) * random.random(self.total)
        inputs = [
            lambda_input(torch.from_numpy(strengths(config, random, self.total)), config.is_relative)
            for config in self.run.energies.values()
        ]
        fractions = [config.fraction for config in self.run.energies.values()]
        schedule, device = self.teacher.schedule, self.teacher.device
        size = self.teacher.geometry.latent_shape if shape is None else shape
        omega = to_device(torch.from_numpy(drawn_omega[self.own]).float(), device)
        lambdas = to_device(torch.stack(inputs, dim=1)[self.own].float(), device) if inputs else None
        with torch.no_grad():
            cond = self.teacher.embed([sample.caption for sample, _ in chosen])

        def noises(draw: int) -> Tensor:
            return to_device(torch.stack([noise(int(seed), draw, size) for seed in seeds]), device)

        def predict(z: Tensor, t: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and int(t[0]) == self.timesteps[last]):
                return model(z, t, cond, omega, lambdas_at(int(t[0]), lambdas, fractions, len(schedule)))

        z = noises(0)
        steps = multistep_consistency_sampling(predict, schedule, z, self.timesteps, lambda i: noises(1 + i))
        for step in itertools.islice(steps, last):
            z = step.z
        t = torch.full((len(z),), self.timesteps[last], device=z.device)
        return StudentPredictions(latents=next(steps).denoised, routes=[route for _, route in chosen], z=z, t=t)
