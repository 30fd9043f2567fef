"""The reward side of a training step: frame choices, one decode per choice, scores of the routed samples.

Legend: B samples, C channels, F frames, h/w latent size, k chosen frames, b samples routed to one reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidedcd.data.routing import Reader, Route
from guidedcd.devices import blame_memory
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import RewardConfig
from guidedcd.plugins.registry import blame


def frame_indices(config: RewardConfig, frames: int, generator: torch.Generator | None = None) -> list[int]:
    """Which of a video's frames a reward sees, ascending.

    `random`: `config.frames` of them without replacement, all sets equally likely. `strided`: every
    (frames // config.frames)-th, from a start drawn below that stride.

    Args:
        config: The reward's `frames` and `pick`.
        frames: Frames of the video.
        generator: Draws; None uses torch's global one.

    Raises:
        GuidedCDError: The video has fewer frames than the reward wants.
    """
    wanted = config.frames
    if wanted > frames:
        raise GuidedCDError(
            f"{wanted} frames are wanted of videos with {frames}; lower its option frames to {frames} or less"
        )
    device = generator.device if generator is not None else None
    if config.pick == "random":
        return sorted(torch.randperm(frames, generator=generator, device=device)[:wanted].tolist())
    stride = frames // wanted
    start = int(torch.randint(0, stride, (1,), generator=generator, device=device))
    return [start + stride * i for i in range(wanted)]


@attrs.frozen(eq=False)
class RewardScores:
    """What one reward said of one batch."""

    scores: Tensor
    """(b,), higher is better; differentiable unless the reward's weight is 0."""
    samples: tuple[int, ...]
    """Which samples of the batch, b positions in [0, B), ascending."""


class RewardScorer:
    """Scores a student's predictions with every reward, on the samples routed to it.

    Rewards that want equally many frames, picked alike, share the choice and the decode. A sample that goes to no
    reward is not decoded, and a reward of weight 0 costs no gradient.

    Args:
        rewards: By name, the module and its config (weight, frames, pick).
        teacher: Decodes latents.
        whose: By name, what to call the reward in errors, for example "reward 'hps' of guidedcd/hps".
        low_memory: Decode frame by frame and again in the backward pass, keeping no activations of the decoder.
    """

    def __init__(
        self,
        rewards: Mapping[str, tuple[Any, RewardConfig]],
        teacher: Teacher,
        *,
        whose: Mapping[str, str] | None = None,
        low_memory: bool = False,
    ) -> None:
        self.modules = {name: module for name, (module, _) in rewards.items()}
        self.configs = {name: config for name, (_, config) in rewards.items()}
        self.teacher, self.low_memory = teacher, low_memory
        self.whose = {name: (whose or {}).get(name, f"reward '{name}'") for name in rewards}

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards, in the order given."""
        return tuple(self.modules)

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
    ) -> dict[str, Tensor]:
        """Scores (b,) of each reward on the samples routed to it; see `score`."""
        return {name: one.scores for name, one in self.score(predicted, routes, generator, limit=limit).items()}

    def score(
        self,
        predicted: Tensor,
        routes: Sequence[Route],
        generator: torch.Generator | None = None,
        *,
        limit: int | None = None,
    ) -> dict[str, RewardScores]:
        """What each reward says of the samples routed to it.

        Args:
            predicted: Clean latents that the student predicts (B, C, F, h, w).
            routes: One per sample: which rewards, and the caption they read.
            generator: Draws frames and crops; the same state gives the same scores.
            limit: At most this many samples are decoded for one choice of frames, the first ones routed there.

        Returns:
            By name, for every reward, also when nothing was routed to it.

        Raises:
            GuidedCDError: A reward does not keep to its contract, or memory ran out; names the reward.
        """
        if len(routes) != len(predicted):
            raise ValueError(f"{len(predicted)} samples need as many routes, not {len(routes)}")
        found = {name: RewardScores(predicted.new_zeros(0), ()) for name in self.names}
        # All frames are drawn first, so that they do not depend on where the samples are routed.
        choices = [(names, self._indices(names, generator)) for names in self._choices()]
        for names, indices in choices:
            wanted = [i for i, route in enumerate(routes) if route.rewards.intersection(names)][:limit]
            if not wanted:
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(self.configs[n].weight > 0 for n in names)):
                with blame_memory(
                    "decoding frames for rewards", "Use --train.reward-batch 1, or fewer frames per reward."
                ):
                    video = self._decode(predicted[wanted], indices)
                for name in names:
                    found[name] = self._ask(name, video, wanted, routes, generator) or found[name]
        return found

    def total(self, scored: Mapping[str, Tensor | RewardScores]) -> Tensor | float:
        """Sum over rewards of weight * mean score; what training raises. 0.0 when nothing was scored."""
        total: Tensor | float = 0.0
        for name, one in scored.items():
            scores = one.scores if isinstance(one, RewardScores) else one
            if len(scores):
                total = total + self.configs[name].weight * scores.mean()
        return total

    def _choices(self) -> list[list[str]]:
        """Names of the rewards that share frames, in order of first appearance."""
        groups: dict[tuple[int, str], list[str]] = {}
        for name, config in self.configs.items():
            groups.setdefault((config.frames, config.pick), []).append(name)
        return list(groups.values())

    def _indices(self, names: Sequence[str], generator: torch.Generator | None) -> list[int]:
        try:
            return frame_indices(self.configs[names[0]], self.teacher.geometry.frames, generator)
        except GuidedCDError as error:
            raise GuidedCDError(f"{self.whose[names[0]]}: {error}") from error

    def _decode(self, latents: Tensor, indices: Sequence[int]) -> Tensor:
        """Pixels (n, k, 3, H, W) of latents (n, C, F, h, w)."""
        if not (self.low_memory and torch.is_grad_enabled() and latents.requires_grad):
            return self.teacher.decode(latents, indices)

        def frame(z: Tensor, index: int) -> Tensor:
            return checkpoint(self.teacher.decode, z, [index], use_reentrant=False, preserve_rng_state=False)

        return torch.cat([torch.cat([frame(z, index) for index in indices], dim=1) for z in latents.split(1)])

    def _ask(
        self,
        name: str,
        video: Tensor,
        decoded: Sequence[int],
        routes: Sequence[Route],
        generator: torch.Generator | None,
    ) -> RewardScores | None:
        """One reward's scores of its samples among the decoded ones; None when there are none."""
        rows = [row for row, sample in enumerate(decoded) if name in routes[sample].rewards]
        if not rows:
            return None
        samples = tuple(decoded[row] for row in rows)
        module, whose = self.modules[name], self.whose[name]
        grad = torch.is_grad_enabled() and self.configs[name].weight > 0
        frames = video if len(rows) == len(decoded) else video[rows]
        advice = "Use --train.reward-batch 1, or the reward's options dtype and gradient_checkpointing."
        with blame_memory(whose, advice), blame(whose), torch.set_grad_enabled(grad), _drawing(module, generator):
            scores = module(frames if grad else frames.detach(), [routes[sample].caption for sample in samples])
        if not isinstance(scores, Tensor) or scores.shape != (len(samples),):
            said = f"a tensor of shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise GuidedCDError(f"{whose} returned {said} for {len(samples)} videos; it must return one score each")
        return RewardScores(scores, samples)


@contextmanager
def _drawing(module: Any, generator: torch.Generator | None) -> Iterator[None]:
    """Let a reward with random preparation (one that has an attribute `generator`) draw from the step's generator."""
    if not hasattr(module, "generator"):
        yield
        return
    before, module.generator = module.generator, generator
    try:
        yield
    finally:
        module.generator = before
