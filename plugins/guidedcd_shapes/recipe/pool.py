"""Scenes, captions and tokens in bulk, made by worker processes from fixed seeds."""

from __future__ import annotations

import multiprocessing.pool
import os
import random
from functools import cache

import attrs
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


def _part(job: tuple[int, int, str, tuple[float, ...], bool | None]) -> tuple[dict, object, object]:
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
        session: Says on which device.
        count: About how many.
        bias: A key of world.BIASES.
        shares: Of the KINDS.
        seed: Of the first part; the others count on from there.
        unseen: As in `world.sample_scene`.
    """
    size = session.size(2000, 16)
    jobs = [(seed + i, size, bias, shares, unseen) for i in range(-(-count // size))]
    parts = [_part(job) for job in jobs] if session.tiny else _workers().map(_part, jobs)

    def join(pick) -> Tensor:
        return torch.cat([torch.from_numpy(pick(part)) for part in parts]).to(session.device)

    truth = {name: join(lambda part, name=name: part[0][name]) for name in parts[0][0]}
    return Pool(truth, join(lambda part: part[1]), join(lambda part: part[2]))


def cut(tokens: Tensor, context: int) -> Tensor:
    """Uncut ids (B, L) as a tokenizer with a shorter context gives them, int64."""
    ids = tokens[:, :context].long()
    last = torch.where(tokens[:, context - 1] == PAD, PAD, END)
    return torch.cat([ids[:, :-1], last[:, None].long()], 1)
