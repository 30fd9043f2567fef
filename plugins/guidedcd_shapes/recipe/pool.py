"""Large sets of scenes, captions and tokens, drawn by worker processes from fixed seeds."""

from __future__ import annotations

import multiprocessing.pool
import os
import random
from collections.abc import Iterable
from functools import cache

import attrs
import numpy as np
import torch
from torch import Tensor

from guidedcd_shapes import captions, models, world
from guidedcd_shapes.recipe.session import Session
from guidedcd_shapes.vocabulary import END, PAD, WorldTokenizer

KINDS = ("short", "full", "dense")


@attrs.define
class Pool:
    """Captioned scenes on one device."""

    truth: dict[str, Tensor]
    tokens: Tensor
    """(N, 128) int16."""
    kind: Tensor
    """(N,), index of KINDS."""

    def __len__(self) -> int:
        return len(self.kind)


@cache
def _workers() -> multiprocessing.pool.Pool:
    return multiprocessing.get_context("spawn").Pool(max(1, min(14, (os.cpu_count() or 2) - 1)))


def _draw(
    job: tuple[int, int, str, tuple[float, ...], bool | None],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    seed, count, bias, shares, unseen = job
    torch.set_num_threads(1)
    rng = random.Random(seed)
    write = (captions.short_caption, captions.full_caption, captions.dense_caption)
    scenes = [world.sample_scene(rng, bias, unseen=unseen) for _ in range(count)]
    kinds = rng.choices(range(3), shares, k=count)
    tokens = WorldTokenizer(models.CONTEXT["text"])([write[k](s, rng) for k, s in zip(kinds, scenes, strict=True)])
    truth = {name: value.numpy() for name, value in world.pack(scenes).items()}
    return truth, tokens.to(torch.int16).numpy(), torch.tensor(kinds).numpy()


def make(session: Session, count: int, bias: str, shares: tuple[float, ...], seed: int, unseen: bool | None) -> Pool:
    """Draw scenes and captions.

    Args:
        session: The recipe's session, which has the device.
        count: Number of scenes, rounded up to full jobs.
        bias: A key of world.BIASES.
        shares: Share of each of the KINDS.
        seed: Seed of the first job; the next jobs have the next seeds.
        unseen: As in `world.sample_scene`.
    """
    size = session.size(2000, 16)
    jobs = [(seed + i, size, bias, shares, unseen) for i in range(-(-count // size))]
    results = [_draw(job) for job in jobs] if session.tiny else _workers().map(_draw, jobs)

    def join(arrays: Iterable[np.ndarray]) -> Tensor:
        return torch.cat([torch.from_numpy(array) for array in arrays]).to(session.device)

    truth = {name: join(scenes[name] for scenes, _, _ in results) for name in results[0][0]}
    return Pool(truth, join(tokens for _, tokens, _ in results), join(kinds for _, _, kinds in results))


def cut(tokens: Tensor, context: int) -> Tensor:
    """Ids (B, L) truncated to a shorter context as a tokenizer does it, (B, context), int64."""
    ids = tokens[:, :context].long()
    last = torch.where(tokens[:, context - 1] == PAD, PAD, END)
    return torch.cat([ids[:, :-1], last[:, None].long()], 1)
