"""What the frozen teacher has to say about a few clips: one shard of the latent store.

Legend: B pairs of a forward pass, C, F, H, W latents, S solver steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy
import torch
from torch import Tensor

from guidedcd import references, store
from guidedcd.data import Clip
from guidedcd.devices import part
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest
from guidedcd.guidance import guided_from
from guidedcd.noise import noise
from guidedcd.routes import Sample
from guidedcd.run import Run

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ADVICE = "Lower --preprocess.batch-size"


@attrs.frozen(kw_only=True)
class Job:
    """What one pair of a video and a noise draw needs from the teacher."""

    video: int
    draw: int
    index: int
    scored: bool


class Worker:
    """Turns a handful of clips into the tensors of one shard; the same clips give the same shard, always."""

    def __init__(self, run: Run, teacher: Any) -> None:
        self.run, self.teacher = run, teacher
        self.schedule = teacher.schedule
        self.grid = self.schedule.grid(run.solver.steps)
        self.energies = run.build("energy")
        self.needs = tuple(dict.fromkeys(need for energy in self.energies.values() for need in energy.needs))
        self.first = guided_from(run.preprocess.window, run.solver.steps) if self.energies else run.solver.steps
        self.batch = run.preprocess.batch_size

    def shard(self, clips: Sequence[Clip], advance: Callable[[float], None]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Samples and tensors of one shard; `advance` is told the share of the shard done since the last call."""
        teacher, kept = self.teacher, DTYPES[self.run.preprocess.dtype]
        videos = torch.stack([clip.video for clip in clips])
        with torch.no_grad(), part("the teacher's VAE and text encoder", ADVICE):
            z0 = torch.cat([teacher.encode(v.to(teacher.device)).float() for v in videos.split(self.batch)])
            cond = teacher.embed([clip.caption for clip in clips])
        seeds = [clip_seed(self.run.seed, clip.id) for clip in clips]
        jobs = self.jobs(seeds)
        trajectory = self._inversions(z0, cond, jobs, advance)
        tensors: dict[str, Tensor] = {
            "z0": z0,
            "index": torch.tensor([job.index for job in jobs]).view(len(clips), -1),
            "noise_seed": torch.tensor(seeds),
            **{f"cond.{key}": value for key, value in cond.items()},
        }
        said: dict[int, tuple[Tensor, Tensor]] = {}
        scores: dict[str, dict[int, Tensor]] = {name: {} for name in self.energies}
        # Pairs that need a gradient run apart from those that do not; the order within each is fixed.
        for scored in (True, False):
            chosen = [place for place, job in enumerate(jobs) if job.scored is scored]
            for start in range(0, len(chosen), self.batch):
                places = chosen[start : start + self.batch]
                self._pairs([jobs[p] for p in places], places, z0, cond, seeds, trajectory, said, scores, clips)
                advance(0.5 * len(places) / len(jobs))
        shape = (len(clips), self.run.preprocess.draws_per_video, *z0.shape[1:])
        for key, which in (("cond_output", 0), ("uncond_output", 1)):
            tensors[key] = torch.stack([said[p][which] for p in range(len(jobs))]).to(kept).view(shape)
        for name, rows in scores.items():
            row = torch.full((len(jobs),), -1)
            row[sorted(rows)] = torch.arange(len(rows))
            stacked = torch.stack([rows[p] for p in sorted(rows)]) if rows else torch.zeros(0, *z0.shape[1:])
            tensors[f"row.{name}"] = row.view(len(clips), -1)
            tensors[f"score.{name}"], tensors[f"rms.{name}"] = store.packed(stacked, kept)
        return [_sample(clip) for clip in clips], tensors

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """Every (video, draw) with its solver index: stratified over the grid, so that few draws still cover it."""
        steps, draws = self.run.solver.steps, self.run.preprocess.draws_per_video
        found = []
        for video, seed in enumerate(seeds):
            u = numpy.random.Generator(numpy.random.Philox(key=[seed, 2**32])).random(draws)
            for draw in range(draws):
                index = min(int((draw + u[draw]) * steps / draws), steps - 1)
                found.append(Job(video=video, draw=draw, index=index, scored=index >= self.first))
        return found

    def _inversions(
        self, z0: Tensor, cond: dict[str, Tensor], jobs: Sequence[Job], advance: Callable[[float], None]
    ) -> dict[tuple[int, int], Tensor]:
        """By (video, index), the latents of the DDIM inversion: one trajectory serves every draw of its video."""
        wanted: dict[int, set[int]] = {}
        if any(config.reference == "inversion" for config in self.run.energies.values()):
            for job in jobs:
                if job.scored:
                    wanted.setdefault(job.video, set()).add(job.index)
        found: dict[tuple[int, int], Tensor] = {}
        videos = sorted(wanted, key=lambda v: (-max(wanted[v]), v))
        with torch.no_grad(), part("the DDIM inversion", ADVICE):
            for start in range(0, len(videos), self.batch):
                group = videos[start : start + self.batch]
                last = [max(wanted[v]) for v in group]
                for index, latents in references.invert(
                    self.teacher, z0[group], {k: v[group] for k, v in cond.items()}, self.run.solver.steps, last
                ):
                    for place, video in enumerate(group):
                        if index in wanted[video] and place < len(latents):
                            found[video, index] = latents[place].clone()
                    advance(0.5 * len(group) / len(videos) / (max(last) + 1))
        if not videos:
            advance(0.5)
        return found

    def _pairs(
        self,
        jobs: Sequence[Job],
        places: Sequence[int],
        z0: Tensor,
        cond: dict[str, Tensor],
        seeds: Sequence[int],
        trajectory: dict[tuple[int, int], Tensor],
        said: dict[int, tuple[Tensor, Tensor]],
        scores: dict[str, dict[int, Tensor]],
        clips: Sequence[Clip],
    ) -> None:
        teacher, where = self.teacher, [job.video for job in jobs]
        t = self.grid[torch.tensor([job.index for job in jobs])].to(z0.device)
        eps = torch.stack([noise(seeds[job.video], job.draw, z0.shape[1:]) for job in jobs]).to(z0.device)
        clean, text = z0[where], {k: v[where] for k, v in cond.items()}
        z = self.schedule.add_noise(clean, eps, t)
        with part("the teacher's prediction", ADVICE):
            if not jobs[0].scored:
                null = self._null(len(jobs))
                both = {key: torch.cat([text[key], null[key]]) for key in text}
                with torch.no_grad():
                    c, u = teacher.net(torch.cat([z, z]), torch.cat([t, t]), both).float().chunk(2)
            else:
                with torch.no_grad():
                    u = teacher.net(z, t, self._null(len(jobs))).float()
                captions = [clips[v].caption for v in where]
                c = self._scores(jobs, places, z, t, clean, text, seeds, trajectory, scores, captions)
        for row, place in enumerate(places):
            said[place] = (c[row].cpu(), u[row].cpu())

    def _scores(self, jobs, places, z, t, clean, text, seeds, trajectory, scores, captions) -> Tensor:
        """Gradients of all energies at z, from one forward pass per kind of reference; returns the prediction."""
        teacher = self.teacher
        seen_of: dict[str, Any] = {}
        for kind in dict.fromkeys(config.reference for config in self.run.energies.values()):
            if kind == "inversion":
                at = torch.stack([trajectory[job.video, job.index] for job in jobs])
                when = t
            elif kind == "single-step":
                # Another stream than the draw's own noise: equal noise would make energy and gradient zero.
                other = [noise(seeds[job.video], job.draw + 2**31, clean.shape[1:]) for job in jobs]
                at, when = self.schedule.add_noise(clean, torch.stack(other).to(clean.device), t), t
            else:
                at, when = clean, torch.zeros_like(t)
            with torch.no_grad():
                seen_of[kind] = teacher.seen(at, when, text, needs=self.needs, captions=captions)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            seen = teacher.seen(z, t, text, needs=self.needs, captions=captions)
            for number, (name, energy) in enumerate(self.energies.items()):
                try:
                    value = energy(seen, seen_of[self.run.energies[name].reference])
                    (gradient,) = torch.autograd.grad(value.sum(), z, retain_graph=number + 1 < len(self.energies))
                except Exception as error:
                    error.add_note(f"in energy '{name}' of {self.run.component('energy', name).plugin}")
                    raise
                if not torch.isfinite(gradient).all():
                    bad = [f"{captions[i]!r}" for i in range(len(jobs)) if not torch.isfinite(gradient[i]).all()]
                    raise GuidedCDError(f"energy '{name}' gave a gradient that is not finite for {', '.join(bad)}.")
                for row, place in enumerate(places):
                    scores[name][place] = gradient[row].float().cpu()
        return seen.output.detach().float()

    def _null(self, batch: int) -> dict[str, Tensor]:
        if not hasattr(self, "_empty"):
            self._empty = self.teacher.null(1)
        return {k: v.expand(batch, *v.shape[1:]) for k, v in self._empty.items()}


def clip_seed(seed: int, clip: str) -> int:
    """The noise seed of one clip, from the run's seed and the clip's id: independent of order and of sharding."""
    return int(digest([seed, clip])[:8], 16)


def _sample(clip: Clip) -> Sample:
    return Sample(
        id=clip.id,
        dataset=clip.dataset,
        caption=clip.caption,
        short_caption=clip.short_caption,
        tags=dict(clip.tags),
        motion=clip.motion,
    )
