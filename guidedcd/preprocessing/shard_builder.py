"""The teacher's work: a handful of clips becomes the tensors of one shard of the latent store.

Every forward pass is as full as memory allows, and none is made twice. Of a scored draw with the reference `inversion`:
one inversion per video, shared by all of its draws; a pass for the reference, which ends at the last record; a pass
without a caption; and one with it, which gives both the prediction and, backwards, the score.

Legend: B rows of a forward pass, C, F, H, W latents, S solver steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guidedcd.acceleration.options import repeats_sizes
from guidedcd.acceleration.prefetch import prefetched
from guidedcd.config.run import Run
from guidedcd.data.clips import Clip, sample_of
from guidedcd.data.routing import Sample
from guidedcd.devices import blame_memory, dtype_of
from guidedcd.diffusion.guidance import draw_index, guided_from
from guidedcd.diffusion.randomness import Stream, clip_seed, random_stream
from guidedcd.energies import inversion
from guidedcd.energies.gradients import EnergyGradients
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import store
from guidedcd.preprocessing.shard_jobs import DrawJob, ShardJobs

ADVICE = "Lower --preprocess.batch-size"
ROWS = 2
"""Rows of a pass without gradient, per sample of one with: activations are dropped at once."""


class ShardBuilder:
    """Turns a handful of clips into the tensors of one shard; the same clips give the same shard, always."""

    def __init__(self, run: Run, teacher: Teacher) -> None:
        self.run, self.teacher = run, teacher
        self.schedule = teacher.schedule
        self.grid = self.schedule.grid(run.solver.steps)
        self.scores = EnergyGradients(run, teacher)
        self.first = guided_from(run.preprocess.window, run.solver.steps) if run.energies else run.solver.steps
        self.batch = run.preprocess.batch_size
        self.rows = ROWS * self.batch
        """Rows of a pass without gradient."""
        self.even = repeats_sizes(run.preprocess.fast, teacher.device)
        self.kinds = {config.reference for config in run.energies.values()}

    def shard(self, clips: Sequence[Clip], advance: Callable[[float], None]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Samples and tensors of one shard; `advance` is told the share of the shard done since the last call."""
        work = self.opened(clips)
        scored = [place for place, job in enumerate(work.jobs) if job.scored]
        plain = [place for place, job in enumerate(work.jobs) if not job.scored]
        wanted = self.wanted(work)
        passes = sum(max(some) + 1 for some in wanted if some) + 4 * len(scored) + 2 * len(plain)
        reached = self.inversions(work, wanted, lambda rows: advance(rows / passes))
        for places, eps, other in prefetched(self._noised(work), self._groups(scored, self.rows)):
            self.guided(work, places, eps, other, reached)
            advance(4 * len(places) / passes)
        for places, eps, _ in prefetched(self._noised(work), self._groups(plain, self.batch)):
            self.plain(work, places, eps)
            advance(2 * len(places) / passes)
        return [sample_of(clip) for clip in clips], self._tensors(work)

    def opened(self, clips: Sequence[Clip]) -> ShardJobs:
        """Clips as latents and conditioning, with the jobs that they make."""
        teacher = self.teacher
        with torch.no_grad(), blame_memory("the teacher's VAE and text encoder", ADVICE):
            groups = [torch.stack([clip.video for clip in some]) for some in _split(clips, self.batch)]
            z0 = torch.cat([teacher.encode(videos.to(teacher.device)).float() for videos in groups])
            cond = teacher.embed([clip.caption for clip in clips])
        seeds = [clip_seed(self.run.seed, clip.id) for clip in clips]
        scores: dict[str, dict[int, Tensor]] = {name: {} for name in self.run.energies}
        return ShardJobs(clips=clips, z0=z0, cond=cond, seeds=seeds, jobs=self.jobs(seeds), scores=scores)

    def jobs(self, seeds: Sequence[int]) -> list[DrawJob]:
        """Every (video, draw) with its solver index: stratified, so that few draws still cover the range."""
        steps, draws = self.run.solver.steps, self.run.preprocess.draws_per_video
        found = []
        for video, seed in enumerate(seeds):
            u = random_stream(Stream.SOLVER_INDEX, seed).random(draws)
            for draw in range(draws):
                index = int(draw_index((draw + u[draw]) * steps / draws, steps, self.run.preprocess.noise_range))
                found.append(DrawJob(video=video, draw=draw, index=index, scored=index >= self.first))
        return found

    def wanted(self, work: ShardJobs) -> list[set[int]]:
        """By video, where on its inversion the references of its draws lie."""
        found: list[set[int]] = [set() for _ in work.clips]
        if "inversion" in self.kinds:
            for job in work.jobs:
                if job.scored:
                    found[job.video].add(job.index)
        return found

    def inversions(
        self, work: ShardJobs, wanted: Sequence[set[int]], advance: Callable[[int], None]
    ) -> dict[tuple[int, int], Tensor]:
        """By (video, index), the latents of the DDIM inversion: one trajectory serves every draw of its video."""
        found: dict[tuple[int, int], Tensor] = {}
        teacher = PaddedTeacher(self.teacher, self.rows) if self.even else self.teacher
        with blame_memory("the DDIM inversion", ADVICE):
            for step in inversion.inversion_passes(
                teacher, work.z0, work.cond, self.run.solver.steps, wanted, self.rows
            ):
                rows = zip(step.videos, step.indices, step.latents, strict=True)
                found.update({(video, index): z.clone() for video, index, z in rows if index in wanted[video]})
                advance(len(step.videos))
        return found

    def guided(
        self,
        work: ShardJobs,
        places: Sequence[int],
        eps: Tensor,
        other: Tensor | None,
        reached: dict[tuple[int, int], Tensor],
    ) -> None:
        """Predictions and scores of draws within the window, at most `rows` of them."""
        t, text, clean = self._times(work, places), work.text(places), work.clean(places)
        z = self.schedule.add_noise(clean, eps.to(clean.device), t)
        at: dict[str, tuple[Tensor, Tensor]] = {}
        if "inversion" in self.kinds:
            at["inversion"] = torch.stack([reached[work.jobs[p].video, work.jobs[p].index] for p in places]), t
        if "single-step" in self.kinds:
            at["single-step"] = inversion.single_step(self.schedule, clean, other.to(clean.device), t)
        if "clean" in self.kinds:
            at["clean"] = inversion.clean(clean, t)
        with blame_memory("the teacher's prediction", ADVICE):
            with torch.no_grad():
                u = self.teacher.net(z, t, self._null(len(places))).float().cpu()
            work.uncond_output.update(zip(places, u, strict=True))
        with blame_memory("the energies' gradients", f"{ADVICE}, or set --preprocess.recompute cheap or most"):
            for start, said, found in self.scores(z, t, text, work.captions(places), at, self.batch):
                rows = places[start : start + len(said)]
                work.cond_output.update(zip(rows, said.cpu(), strict=True))
                for name, gradient in found.items():
                    work.scores[name].update(zip(rows, gradient.cpu(), strict=True))

    def plain(self, work: ShardJobs, places: Sequence[int], eps: Tensor) -> None:
        """Predictions of draws outside of the window, with and without caption in one pass."""
        t, text, clean = self._times(work, places), work.text(places), work.clean(places)
        z = self.schedule.add_noise(clean, eps.to(clean.device), t)
        null = self._null(len(places))
        both = {key: torch.cat([text[key], null[key]]) for key in text}
        with torch.no_grad(), blame_memory("the teacher's prediction", ADVICE):
            c, u = self.teacher.net(torch.cat([z, z]), torch.cat([t, t]), both).float().cpu().chunk(2)
        work.cond_output.update(zip(places, c, strict=True))
        work.uncond_output.update(zip(places, u, strict=True))

    def _noised(self, work: ShardJobs) -> Callable[[Sequence[int]], tuple[Sequence[int], Tensor, Tensor | None]]:
        """Makes the noise of a group, which a CPU does while the accelerator has the group before."""

        def make(places: Sequence[int]) -> tuple[Sequence[int], Tensor, Tensor | None]:
            other = "single-step" in self.kinds and work.jobs[places[0]].scored
            return places, work.noises(places), work.noises(places, Stream.REFERENCE_NOISE) if other else None

        return make

    def _groups(self, places: Sequence[int], size: int) -> list[list[int]]:
        """Jobs for one pass each; the last group may name its last job more than once."""
        groups = [list(group) for group in _split(places, size)]
        if self.even and groups:
            groups[-1] += groups[-1][-1:] * (-len(groups[-1]) % self.batch)
        return groups

    def _times(self, work: ShardJobs, places: Sequence[int]) -> Tensor:
        return self.grid[torch.tensor([work.jobs[p].index for p in places])].to(work.z0.device)

    def _tensors(self, work: ShardJobs) -> dict[str, Tensor]:
        """Everything as the store keeps it."""
        kept, videos, count = dtype_of(self.run.preprocess.dtype), len(work.clips), len(work.jobs)
        tensors: dict[str, Tensor] = {
            "z0": work.z0,
            "index": torch.tensor([job.index for job in work.jobs]).view(videos, -1),
            "noise_seed": torch.tensor(work.seeds),
            **{f"cond.{key}": value for key, value in work.cond.items()},
        }
        shape = (videos, count // videos, *work.z0.shape[1:])
        for key in ("cond_output", "uncond_output"):
            said = getattr(work, key)
            tensors[key] = torch.stack([said[p] for p in range(count)]).to(kept).view(shape)
        for name, rows in work.scores.items():
            row = torch.full((count,), -1)
            row[sorted(rows)] = torch.arange(len(rows))
            stacked = torch.stack([rows[p] for p in sorted(rows)]) if rows else torch.zeros(0, *work.z0.shape[1:])
            tensors[f"row.{name}"] = row.view(videos, -1)
            tensors[f"score.{name}"], tensors[f"rms.{name}"] = store.packed(stacked, kept)
        return tensors

    def _null(self, batch: int) -> dict[str, Tensor]:
        if not hasattr(self, "_empty"):
            self._empty = self.teacher.null(1)
        return {k: v.expand(batch, *v.shape[1:]) for k, v in self._empty.items()}


class PaddedTeacher:
    """A teacher whose forward passes have three sizes only, filled up with copies of the last row."""

    def __init__(self, teacher: Teacher, rows: int) -> None:
        self.teacher, self.schedule = teacher, teacher.schedule
        self.sizes = sorted({max(1, rows // 4), max(1, rows // 2), rows})

    def net(self, z: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """What the network says of (B, C, F, H, W), B at most `rows`."""
        size = next(size for size in self.sizes if size >= len(z))
        filled = [min(row, len(z) - 1) for row in range(size)]
        return self.teacher.net(z[filled], t[filled], {k: v[filled] for k, v in cond.items()})[: len(z)]


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
