"""Computes the tensors of one shard of the latent store from its clips.

Every forward pass is as full as memory allows, and none is computed twice. A scored draw with the reference `inversion`
takes one inversion per video, shared by all of its draws; a pass for the reference, which ends at the last record; a
pass without the caption; and one with it, which gives both the prediction and, backwards, the score.

Legend: B rows of a forward pass; C, F, H, W latents; jobs are numbered as in `ShardJobs.jobs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.options import repeats_sizes
from guidedcd.acceleration.prefetch import prefetched
from guidedcd.config.run import Run
from guidedcd.data.clips import Clip, sample_of
from guidedcd.data.routing import Sample
from guidedcd.devices import blame_memory, dtype_of
from guidedcd.diffusion.guidance import TeacherStep, draw_index, guided_from, moments
from guidedcd.diffusion.randomness import Stream, clip_seed, random_stream
from guidedcd.energies import inversion
from guidedcd.energies.gradients import EnergyGradients
from guidedcd.models.teachers.contract import check_latents
from guidedcd.models.teachers.protocol import Cond, Teacher
from guidedcd.preprocessing.encoding import clean_latents, conditioning
from guidedcd.preprocessing.padding import PaddedTeacher
from guidedcd.preprocessing.ragged import trimmed
from guidedcd.preprocessing.shard_files import Inverted, packed
from guidedcd.preprocessing.shard_jobs import DrawJob, ShardJobs

ADVICE = "Lower --preprocess.batch-size"
ROWS = 2
"""Rows of a pass without a gradient, per row of one with a gradient: its activations are freed at once."""

Noised = tuple[Sequence[int], Tensor, Tensor | None]
"""(numbers of jobs, their noise (B, C, F, H, W), noise of their single-step references or None), on the CPU."""
Item = TypeVar("Item")


class ShardBuilder:
    """Computes the tensors of shards; the same clips always give the same shard.

    Args:
        run: The configuration.
        teacher: On its device; predicts, encodes and embeds.
    """

    def __init__(self, run: Run, teacher: Teacher) -> None:
        self.run, self.teacher = run, teacher
        self.schedule = teacher.schedule
        self.grid = self.schedule.grid(run.solver.steps)
        self.scores = EnergyGradients(run, teacher)
        self.first = guided_from(run.preprocess.fraction, run.solver.steps) if run.energies else run.solver.steps
        """The smallest grid index of a scored draw."""
        self.batch_size = run.preprocess.batch_size
        self.rows = ROWS * self.batch_size
        """Rows of a pass without a gradient."""
        self.pads = repeats_sizes(run.preprocess.fast, teacher.device)
        """Whether passes are padded to a few sizes, for which a network is compiled."""
        self.references = set(self.scores.kind_of.values())
        """The kinds of reference that the energies compare with."""

    def of_energies(self, names: Collection[str]) -> ShardBuilder:
        """A builder of the scores of some of the run's energies, which shares the teacher and the energies."""
        builder = copy.copy(self)
        builder.run = attrs.evolve(self.run, energies={n: c for n, c in self.run.energies.items() if n in names})
        builder.scores = self.scores.subset(names)
        builder.references = set(builder.scores.kind_of.values())
        return builder

    def rehearse(self) -> None:
        """Take the gradient of every energy once, on noise, so that a wrong energy stops the run before the store.

        Raises:
            GuidedCDError: An energy breaks its contract, or reads what the teacher does not record.
        """
        if not self.run.energies or self.first >= self.run.solver.steps:
            return
        rows = self.rows if self.pads else 1  # a compiled network takes few sizes only
        device = self.teacher.device
        t = self.grid[-1:].to(device).expand(rows)
        generator = torch.Generator().manual_seed(self.run.seed)
        z, other = (
            torch.randn(rows, *self.teacher.geometry.latent_shape, generator=generator).to(device) for _ in range(2)
        )
        captions = ["a ball rolls to the left"] * rows
        cond = self.teacher.embed(captions)
        references = {kind: (other, t) for kind in self.references}
        with blame_memory("the energies' gradients", f"{ADVICE}, or set --preprocess.recompute cheap or most"):
            for _ in self.scores(z, t, cond, captions, references, self.batch_size):
                pass

    def shard(self, clips: Sequence[Clip], advance: Callable[[float], None]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Compute a shard.

        Args:
            clips: The clips of the shard, at least one.
            advance: Called with the share of the shard that was computed since the last call; the shares add up to 1.

        Returns:
            (samples, tensors by name), as `shard_files.save_shard` takes them.

        Raises:
            GuidedCDError: The memory is exhausted, or a gradient is not finite.
        """
        work = self.shard_jobs(clips)
        scored = [number for number, job in enumerate(work.jobs) if job.scored]
        unscored = [number for number, job in enumerate(work.jobs) if not job.scored]
        indices = self.reference_indices(work)
        passes = sum(max(some) + 1 for some in indices if some) + 4 * len(scored) + 2 * len(unscored)
        inverted = self.invert(work, indices, lambda rows: advance(rows / passes))
        for numbers, noise, reference_noise in prefetched(self._noised(work), self._groups(scored, self.rows)):
            self.scored_draws(work, numbers, noise, reference_noise, inverted)
            advance(4 * len(numbers) / passes)
        for numbers, noise, _ in prefetched(self._noised(work), self._groups(unscored, self.batch_size)):
            self.unscored_draws(work, numbers, noise)
            advance(2 * len(numbers) / passes)
        return [sample_of(clip) for clip in clips], self._tensors(work) | self._part_tensors(work, inverted)

    def extend(
        self,
        samples: Sequence[Sample],
        tensors: Mapping[str, Tensor],
        inverted: Inverted,
        advance: Callable[[float], None],
    ) -> dict[str, Tensor]:
        """Compute the scores of this builder's energies for a stored shard.

        Args:
            samples: The samples of the shard, at least one.
            tensors: Its "z0", "noise_seed" and "cond.KEY".
            inverted: The inverted latents that the store keeps; they are computed again if some are missing.
            advance: As in `shard`.

        Returns:
            Tensors by name, as `shard_files.save_parts` takes them.

        Raises:
            GuidedCDError: As `shard`.
        """
        device, seeds = self.teacher.device, tensors["noise_seed"].tolist()
        work = ShardJobs(
            clips=samples,
            z0=tensors["z0"].to(device),
            cond={k.removeprefix("cond."): v.to(device) for k, v in tensors.items() if k.startswith("cond.")},
            seeds=seeds,
            jobs=self.jobs(seeds),
            scores={name: {} for name in self.run.energies},
        )
        scored = [number for number, job in enumerate(work.jobs) if job.scored]
        indices = self.reference_indices(work)
        is_kept = all((video, index) in inverted for video, some in enumerate(indices) for index in some)
        inverting = 0 if is_kept else sum(max(some) + 1 for some in indices if some)
        passes = max(inverting + 3 * len(scored), 1)
        if is_kept:
            inverted = {key: latents.to(device) for key, latents in inverted.items()}
        else:
            inverted = self.invert(work, indices, lambda rows: advance(rows / passes))
        for numbers, noise, reference_noise in prefetched(self._noised(work), self._groups(scored, self.rows)):
            self.scored_draws(work, numbers, noise, reference_noise, inverted, predicts=False)
            advance(3 * len(numbers) / passes)
        return self._part_tensors(work, {} if is_kept else inverted)

    def shard_jobs(self, clips: Sequence[Clip]) -> ShardJobs:
        """The latents and conditioning of clips, with their draws."""
        teacher = self.teacher
        with torch.no_grad(), blame_memory("the teacher's VAE and text encoder", ADVICE):
            z0 = clean_latents(teacher, clips, self.batch_size)
            check_latents(z0, teacher.geometry, len(clips))
            cond = conditioning(teacher, clips)
        seeds = [clip_seed(self.run.seed, clip.id) for clip in clips]
        scores: dict[str, dict[int, Tensor]] = {name: {} for name in self.run.energies}
        return ShardJobs(clips=clips, z0=z0, cond=cond, seeds=seeds, jobs=self.jobs(seeds), scores=scores)

    def jobs(self, seeds: Sequence[int]) -> list[DrawJob]:
        """The draws of videos with these noise seeds; grid indices are stratified, so that few cover the range."""
        steps, draws = self.run.solver.steps, self.run.preprocess.draws_per_video
        jobs = []
        for video, seed in enumerate(seeds):
            u = random_stream(Stream.SOLVER_INDEX, seed).random(draws)
            for draw in range(draws):
                index = int(draw_index((draw + u[draw]) * steps / draws, steps, self.run.preprocess.noise_range))
                jobs.append(DrawJob(video=video, draw=draw, index=index, scored=index >= self.first))
        return jobs

    def reference_indices(self, work: ShardJobs) -> list[set[int]]:
        """By video, the grid indices at which its draws need the video's inversion."""
        indices: list[set[int]] = [set() for _ in work.clips]
        if "inversion" in self.references:
            for job in work.jobs:
                if job.scored:
                    indices[job.video].add(job.index)
        return indices

    def invert(self, work: ShardJobs, indices: Sequence[set[int]], advance: Callable[[int], None]) -> Inverted:
        """The latents of the DDIM inversion, rounded as the store keeps them; `advance` gets the rows of each pass."""
        latents: Inverted = {}
        teacher = PaddedTeacher(self.teacher, self.rows) if self.pads else self.teacher
        steps = self.run.solver.steps
        with blame_memory("the DDIM inversion", ADVICE):
            for step in inversion.inversion_passes(teacher, work.z0, work.cond, steps, indices, self.rows):
                rows = zip(step.videos, step.indices, step.latents, strict=True)
                latents.update(
                    {(video, index): self._rounded(z) for video, index, z in rows if index in indices[video]}
                )
                advance(len(step.videos))
        return latents

    def scored_draws(
        self,
        work: ShardJobs,
        numbers: Sequence[int],
        noise: Tensor,
        reference_noise: Tensor | None,
        inverted: Inverted,
        predicts: bool = True,
    ) -> None:
        """Add the predictions and scores of at most `rows` draws within the window to `work`.

        Args:
            work: The shard.
            numbers: Numbers of the jobs (B).
            noise: (B, C, F, H, W).
            reference_noise: Likewise, for single-step references; None without these.
            inverted: As `invert` returns it.
            predicts: Whether the predictions are added as well.
        """
        t, text, clean = self._timesteps(work, numbers), work.text(numbers), work.clean(numbers)
        z = self.schedule.add_noise(clean, noise.to(clean.device), t)
        references: dict[str, tuple[Tensor, Tensor]] = {}
        if "inversion" in self.references:
            jobs = [work.jobs[number] for number in numbers]
            references["inversion"] = torch.stack([inverted[job.video, job.index] for job in jobs]), t
        if reference_noise is not None:
            references["single-step"] = inversion.single_step(self.schedule, clean, reference_noise.to(clean.device), t)
        if "clean" in self.references:
            references["clean"] = inversion.clean(clean, t)
        uncond = None
        if predicts:
            with torch.no_grad(), blame_memory("the teacher's prediction", ADVICE):
                uncond = self.teacher.net(z, t, self._null(len(numbers))).float()
            work.uncond_output.update(zip(numbers, uncond.cpu(), strict=True))
        captions = work.captions(numbers)
        with blame_memory("the energies' gradients", f"{ADVICE}, or set --preprocess.recompute cheap or most"):
            for start, output, gradients in self.scores(z, t, text, captions, references, self.batch_size):
                some = numbers[start : start + len(output)]
                if uncond is not None:
                    rows = slice(start, start + len(output))
                    work.cond_output.update(zip(some, output.cpu(), strict=True))
                    step = TeacherStep(z[rows], t[rows], output, uncond[rows], t[rows])
                    work.moments.update(zip(some, moments(self.schedule, step).cpu(), strict=True))
                for name, gradient in gradients.items():
                    work.scores[name].update(zip(some, gradient.cpu(), strict=True))

    def unscored_draws(self, work: ShardJobs, numbers: Sequence[int], noise: Tensor) -> None:
        """Add the predictions of draws outside of the window to `work`, with and without the caption in one pass."""
        t, text, clean = self._timesteps(work, numbers), work.text(numbers), work.clean(numbers)
        z = self.schedule.add_noise(clean, noise.to(clean.device), t)
        null = self._null(len(numbers))
        both = {key: torch.cat([text[key], null[key]]) for key in text}
        with torch.no_grad(), blame_memory("the teacher's prediction", ADVICE):
            output = self.teacher.net(torch.cat([z, z]), torch.cat([t, t]), both).float()
        cond, uncond = output.chunk(2)
        step_moments = moments(self.schedule, TeacherStep(z, t, cond, uncond, t))
        work.moments.update(zip(numbers, step_moments.cpu(), strict=True))
        work.cond_output.update(zip(numbers, cond.cpu(), strict=True))
        work.uncond_output.update(zip(numbers, uncond.cpu(), strict=True))

    def _noised(self, work: ShardJobs) -> Callable[[Sequence[int]], Noised]:
        """A function that draws the noise of a group, on the CPU while the accelerator computes the group before."""

        def draw(numbers: Sequence[int]) -> Noised:
            single_step = "single-step" in self.references and work.jobs[numbers[0]].scored
            reference_noise = work.noise(numbers, Stream.REFERENCE_NOISE) if single_step else None
            return numbers, work.noise(numbers), reference_noise

        return draw

    def _groups(self, numbers: Sequence[int], size: int) -> list[list[int]]:
        """Jobs for one pass each; the last group may repeat its last job for padding."""
        groups = [list(group) for group in _split(numbers, size)]
        if self.pads and groups:
            groups[-1] += groups[-1][-1:] * (-len(groups[-1]) % self.batch_size)
        return groups

    def _timesteps(self, work: ShardJobs, numbers: Sequence[int]) -> Tensor:
        return self.grid[torch.tensor([work.jobs[number].index for number in numbers])].to(work.z0.device)

    def _tensors(self, work: ShardJobs) -> dict[str, Tensor]:
        """The tensors of a computed shard, as the store keeps them."""
        dtype, videos, count = dtype_of(self.run.preprocess.dtype), len(work.clips), len(work.jobs)
        tensors: dict[str, Tensor] = {
            "z0": work.z0,
            "index": torch.tensor([job.index for job in work.jobs]).view(videos, -1),
            "noise_seed": torch.tensor(work.seeds),
            **trimmed(work.cond),
        }
        shape = (videos, count // videos, *work.z0.shape[1:])
        for key, outputs in (("cond_output", work.cond_output), ("uncond_output", work.uncond_output)):
            tensors[key] = torch.stack([outputs[number] for number in range(count)]).to(dtype).view(shape)
        tensors["moments"] = torch.stack([work.moments[number] for number in range(count)]).view(*shape[:2], -1)
        return tensors

    def _part_tensors(self, work: ShardJobs, inverted: Inverted) -> dict[str, Tensor]:
        """The scores of a shard, and its inversions unless there are none or the run keeps none."""
        dtype, videos, count = dtype_of(self.run.preprocess.dtype), len(work.clips), len(work.jobs)
        tensors: dict[str, Tensor] = {}
        if inverted and self.run.preprocess.keep_inversions:
            tensors["inversion.index"] = torch.tensor(sorted(inverted))
            latents = torch.stack([inverted[key].cpu() for key in sorted(inverted)])
            tensors["inversion.latents"] = latents.to(self._kept_dtype)
        for name, scores in work.scores.items():
            row = torch.full((count,), -1)
            row[sorted(scores)] = torch.arange(len(scores))
            empty = torch.zeros(0, *work.z0.shape[1:])
            stacked = torch.stack([scores[number] for number in sorted(scores)]) if scores else empty
            tensors[f"row.{name}"] = row.view(videos, -1)
            tensors[f"score.{name}"], tensors[f"rms.{name}"] = packed(stacked, dtype)
        return tensors

    @property
    def _kept_dtype(self) -> torch.dtype:
        """The dtype in which inverted latents are kept; float16 has three bits more than bfloat16."""
        return torch.float32 if self.run.preprocess.dtype == "float32" else torch.float16

    def _rounded(self, latents: Tensor) -> Tensor:
        """A copy of inverted latents, as a store keeps them: scores are the same, computed now or from the store."""
        if not self.run.preprocess.keep_inversions:
            return latents.clone()
        return latents.to(self._kept_dtype).to(latents.dtype, copy=True)

    def _null(self, batch: int) -> Cond:
        if not hasattr(self, "_empty"):
            self._empty = self.teacher.null(1)
        return {key: value.expand(batch, *value.shape[1:]) for key, value in self._empty.items()}


def _split(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
