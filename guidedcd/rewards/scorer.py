"""Rewards of a training step: choosing frames, decoding each choice once, scoring the routed samples.

Legend: B samples, C channels, F frames, h/w latent size, k chosen frames, b samples routed to one reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidedcd.data.routing import Reader, Route
from guidedcd.devices import blame_memory, tensor_like
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import decoded_frames
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import RewardConfig
from guidedcd.rewards import contract
from guidedcd.rewards.latents import StudentPredictions, reads_latents, scores_own_videos
from guidedcd.rewards.meter import RewardMeter


def frame_indices(
    config: RewardConfig, frames: int, generator: torch.Generator | None = None, *, fps: float = 8.0
) -> list[int]:
    """The indices of the frames that a reward receives, ascending.

    Their number k is `config.count(frames, fps)`. `random`: k without replacement, all sets equally likely. `strided`:
    every (frames // k)-th, from a start drawn below that stride. `even`: k times in equal steps from the first to the
    last, rounded half to even in float32.

    Args:
        config: The reward's `count` and `pick`.
        frames: Frames of the video.
        generator: Random numbers; None uses torch's global generator.
        fps: Frames per second of the video, which a reward may read to choose their number.

    Raises:
        GuidedCDError: The video has fewer frames than the reward needs.
    """
    count = config.count(frames, fps)
    if count < 1:
        raise GuidedCDError(f"it can score no video of {frames} frames; raise its option frames, or use longer videos")
    if count > frames:
        raise GuidedCDError(
            f"{count} frames are wanted of videos with {frames}; lower its option frames to {frames} or less"
        )
    device = generator.device if generator is not None else None
    if config.pick == "even":
        return even_indices(frames, count)
    if config.pick == "random":
        return sorted(torch.randperm(frames, generator=generator, device=device)[:count].tolist())
    stride = frames // count
    start = int(torch.randint(0, stride, (1,), generator=generator, device=device))
    return [start + stride * i for i in range(count)]


def even_indices(frames: int, count: int) -> list[int]:
    """`count` indices in equal steps from the first to the last frame, rounded half to even in float32."""
    return torch.linspace(0, frames - 1, count, dtype=torch.float32, device="cpu").round().long().tolist()


def _rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, ascending, of a tensor (B, ...)."""
    if len(rows) == len(tensor):
        return tensor
    return tensor[tensor_like(rows, tensor, torch.long)]


@attrs.frozen(eq=False)
class RewardScores:
    """The scores of one reward for one batch."""

    scores: Tensor
    """(b,), higher is better; differentiable unless the reward's weight is 0."""
    samples: tuple[int, ...]
    """The positions of the scored samples in the batch, b integers in [0, B), ascending."""


class RewardScorer:
    """Scores a student's predictions with every reward, on the samples routed to it.

    Rewards with the same number of frames and the same option `pick` share the choice and the decoding. Samples without
    rewards are not decoded, and a reward of weight 0 needs no gradient.

    Args:
        rewards: By name, the module and its config (weight, frames, pick).
        teacher: Decodes latents.
        whose: By name, the reward's description in errors, for example "reward 'hps' of guidedcd/hps".
        low_memory: Save few activations of the decoder and decode again in the backward pass, frame by frame or by the
            teacher's method `decode_recomputing`.
        exact: Decode all frames of a video by the autoencoder, whatever the teacher decodes for rewards in training.
    """

    def __init__(
        self,
        rewards: Mapping[str, tuple[Any, RewardConfig]],
        teacher: Teacher,
        *,
        whose: Mapping[str, str] | None = None,
        low_memory: bool = False,
        exact: bool = False,
    ) -> None:
        self.modules = {name: module for name, (module, _) in rewards.items()}
        self.configs = {name: config for name, (_, config) in rewards.items()}
        self.teacher, self.low_memory, self.meter = teacher, low_memory, RewardMeter()
        self.exact = exact
        self._decoder = getattr(teacher, "decode_exactly", teacher.decode) if exact else teacher.decode
        self.whose = {name: (whose or {}).get(name, f"reward '{name}'") for name in rewards}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rewards, in order."""
        return tuple(self.modules)

    @property
    def scores_own_videos(self) -> bool:
        """Whether a reward can score videos that the student samples itself."""
        return any(scores_own_videos(module) for module in self.modules.values())

    @property
    def readers(self) -> dict[str, Reader]:
        """The rewards as readers of text, for routing."""
        return {n: Reader(max_tokens=m.max_tokens, count=m.count_tokens) for n, m in self.modules.items()}

    def __call__(
        self,
        predicted: Tensor,
        routes: Sequence[Route],
        generator: torch.Generator | None = None,
        *,
        limit: int | None = None,
        sources: Sequence[StudentPredictions] = (),
    ) -> dict[str, Tensor]:
        """Scores (b,) of each reward on the samples routed to it; see `score`."""
        scored = self.score(predicted, routes, generator, limit=limit, sources=sources)
        return {name: one.scores for name, one in scored.items()}

    def score(
        self,
        predicted: Tensor,
        routes: Sequence[Route],
        generator: torch.Generator | None = None,
        *,
        limit: int | None = None,
        sources: Sequence[StudentPredictions] = (),
    ) -> dict[str, RewardScores]:
        """The scores of each reward for the samples routed to it.

        Args:
            predicted: Clean latents that the student predicts (B, C, F, h, w).
            routes: One per sample: which rewards, and the caption they read.
            generator: Random numbers for frames and crops; the same state gives the same scores.
            limit: The largest number of samples that are decoded for one choice of frames; the first ones are used.
            sources: The same samples with their noise levels and clips, for rewards that read latents.

        Returns:
            Scores by name, for every reward; empty if no sample is routed to it.

        Raises:
            ValueError: There are more or fewer routes than samples, or a reward reads latents and `sources` are others.
            GuidedCDError: A reward breaks its contract (see `contract.call`), or memory ran out.
        """
        if len(routes) != len(predicted):
            raise ValueError(f"{len(predicted)} samples need as many routes, not {len(routes)}")
        scores = {name: RewardScores(predicted.new_zeros(0), ()) for name in self.names}
        # All frames are drawn first, so that they do not depend on where the samples are routed.
        for names, indices in self.choices(generator, predicted.shape):
            samples = [i for i, route in enumerate(routes) if route.rewards.intersection(names)][:limit]
            if not samples:
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(self.configs[n].weight > 0 for n in names)):
                with blame_memory(
                    "decoding frames for rewards", "Use --train.reward-batch 1, or fewer frames per reward."
                ):
                    video = self.decode(_rows(predicted, samples), indices)
                for name in names:
                    scores[name] = self._scores(name, video, samples, routes, generator) or scores[name]
        for name in self.names:
            if reads_latents(self.modules[name]) and any(name in route.rewards for route in routes):
                if sum(len(source.routes) for source in sources) != len(routes):
                    raise ValueError(f"{self.whose[name]} reads latents and needs the sources of {len(routes)} samples")
                scores[name] = self._latent_scores(name, sources, generator) or scores[name]
        return scores

    def total(self, scored: Mapping[str, Tensor | RewardScores]) -> Tensor | float:
        """The sum over rewards of weight times mean score, which training maximises; 0.0 without scores."""
        total: Tensor | float = 0.0
        for name, one in scored.items():
            scores = one.scores if isinstance(one, RewardScores) else one
            if len(scores):
                total = total + self.configs[name].weight * scores.mean()
        return total

    def _choices(self, frames: int) -> list[list[str]]:
        """Names of the rewards that share frames, in order of first appearance."""
        geometry = self.teacher.geometry
        groups: dict[tuple[int, str], list[str]] = {}
        for name, config in self.configs.items():
            if reads_latents(self.modules[name]):
                continue
            count = config.count(frames, geometry.fps)
            groups.setdefault((count, config.pick), []).append(name)
        return list(groups.values())

    def _indices(self, names: Sequence[str], frames: int, generator: torch.Generator | None) -> list[int]:
        try:
            geometry = self.teacher.geometry
            return frame_indices(self.configs[names[0]], frames, generator, fps=geometry.fps)
        except GuidedCDError as error:
            raise GuidedCDError(f"{self.whose[names[0]]}: {error}") from error

    def frames(self, shape: Sequence[int] | None = None) -> int:
        """Number of a video's first frames from which the rewards' frames are chosen.

        Args:
            shape: Of the latents (..., F, h, w); by default that of the teacher's videos.
        """
        if not self.exact:
            return decoded_frames(self.teacher, shape)
        geometry = self.teacher.geometry
        return geometry.frames if shape is None else geometry.of_latents(shape).frames

    def choices(
        self, generator: torch.Generator | None = None, shape: Sequence[int] | None = None
    ) -> list[tuple[list[str], list[int]]]:
        """The names of rewards that share frames, and the indices of these frames, drawn with `generator`.

        Args:
            generator: As in `score`.
            shape: Of the latents (..., F, h, w); by default that of the teacher's videos.
        """
        frames = self.frames(shape)
        return [(names, self._indices(names, frames, generator)) for names in self._choices(frames)]

    def decode(self, latents: Tensor, indices: Sequence[int]) -> Tensor:
        """Pixels (n, k, 3, H, W) of latents (n, C, F, h, w)."""
        if not (self.low_memory and torch.is_grad_enabled() and latents.requires_grad):
            return self._decoder(latents, indices)
        recomputing = getattr(self.teacher, "decode_recomputing", None)
        if recomputing is not None:
            return torch.cat([recomputing(z, indices) for z in latents.split(1)])

        def frame(z: Tensor, index: int) -> Tensor:
            return checkpoint(self._decoder, z, [index], use_reentrant=False, preserve_rng_state=False)

        return torch.cat([torch.cat([frame(z, index) for index in indices], dim=1) for z in latents.split(1)])

    def _scores(
        self,
        name: str,
        video: Tensor,
        decoded: Sequence[int],
        routes: Sequence[Route],
        generator: torch.Generator | None,
    ) -> RewardScores | None:
        """One reward's scores for its samples among the decoded ones; None if there are none."""
        rows = [row for row, sample in enumerate(decoded) if name in routes[sample].rewards]
        if not rows:
            return None
        samples = tuple(decoded[row] for row in rows)
        module, whose = self.modules[name], self.whose[name]
        grad = torch.is_grad_enabled() and self.configs[name].weight > 0
        frames = _rows(video, rows)
        advice = "Use --train.reward-batch 1, or the reward's options dtype and gradient_checkpointing."
        captions = [routes[sample].caption_of(name) for sample in samples]
        with blame_memory(whose, advice), torch.set_grad_enabled(grad), contract.drawing(module, generator):
            frames = self.meter.watch(name, frames) if grad else frames.detach()
            with self.meter.part(name):
                scores = contract.call(module, frames, captions, whose)
        return RewardScores(scores, samples)

    def _latent_scores(
        self, name: str, sources: Sequence[StudentPredictions], generator: torch.Generator | None
    ) -> RewardScores | None:
        """The scores of a reward that reads latents; None if it has no samples.

        Videos without a clip are left out if it compares with one.
        """
        module, whose = self.modules[name], self.whose[name]
        grad = torch.is_grad_enabled() and self.configs[name].weight > 0
        scores, samples, first = [], [], 0
        for source in sources:
            rows = [row for row, route in enumerate(source.routes) if name in route.rewards]
            if source.clips is None and not scores_own_videos(module):
                rows = []
            if rows:
                captions = [source.routes[row].caption_of(name) for row in rows]
                one = source if grad else attrs.evolve(source, latents=source.latents.detach())
                with blame_memory(whose), torch.set_grad_enabled(grad), contract.drawing(module, generator):
                    inputs = one.inputs(rows, captions, module, self.teacher)
                    with self.meter.part(name):
                        scores.append(contract.call_latents(module, inputs, whose))
            samples += [first + row for row in rows]
            first += len(source.routes)
        return RewardScores(torch.cat(scores), tuple(samples)) if scores else None
