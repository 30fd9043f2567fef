"""The size of a latent store and the number of the teacher's passes, before anything is computed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import attrs
import numpy

from guidedcd.config.run import Run
from guidedcd.console import console, file_size
from guidedcd.devices import dtype_of
from guidedcd.diffusion.guidance import draw_index, guided_from
from guidedcd.energies.traits import stored_part, traits
from guidedcd.errors import GuidedCDError
from guidedcd.files import nearest_folder
from guidedcd.models.teachers.protocol import Teacher

ABOUT = 150
"""Bytes of JSON per video without its caption."""
HEADER = 800
"""Bytes of names and checksums per shard."""
ROOM = 1.02
"""Factor for headers and JSON, and a margin to a full disk."""
POINTS = 4096
"""Random numbers of a draw at which `passes` is averaged."""


@attrs.frozen(kw_only=True)
class Size:
    """The size of a store."""

    video: int
    """Bytes of one video with all its draws."""
    videos: int
    """Number of videos."""

    @property
    def total(self) -> int:
        """Bytes of the whole store."""
        return self.video * self.videos


def reference_kinds(run: Run) -> dict[str, str]:
    """The kind of reference by energy through the network, without those that are `reference_free`."""
    energies = stored_part(run).energies
    return {name: one.reference for name, one in energies.items() if not traits(run, name).is_reference_free}


def store_size(run: Run, teacher: Teacher) -> Size:
    """The size of a run's store: latents and conditioning per video, two predictions and the scores per draw."""
    text = sum(value.numel() * value.element_size() for value in teacher.null(1).values())
    video = video_bytes(run, math.prod(teacher.geometry.latent_shape), text, passes(run).scored)
    return Size(video=round(video), videos=run.preprocess.videos)


def video_bytes(run: Run, latent: int, cond: int, scored: float, *, dtype: str | None = None) -> float:
    """Bytes of one video's tensors in a store.

    Args:
        run: Its draws, energies and dtype of the store.
        latent: Numbers in the latents of one video.
        cond: Bytes of one caption's conditioning.
        scored: Mean number of a video's draws that have scores.
        dtype: Instead of the run's.
    """
    itemsize = dtype_of(dtype or run.preprocess.dtype).itemsize
    draws, energies = run.preprocess.draws_per_video, len(stored_part(run).energies)
    indices = 8 + 8 * draws + 20 * draws  # the seed, the indices of draws, the moments of their predictions
    inversions = 0.0
    if run.preprocess.keep_inversions and "inversion" in reference_kinds(run).values():
        inversions = scored * (latent * min(itemsize, 4) + 16)
    scores = energies * (8 * draws + scored * (latent * itemsize + 4))
    return 4 * latent + cond + indices + 2 * draws * latent * itemsize + scores + inversions


def store_bytes(run: Run, latent: int, cond: int, *, dtype: str | None = None, caption: int = 100) -> float:
    """Bytes of the complete store with its JSON files.

    Args:
        run: Its videos, draws, energies and dtype of the store.
        latent: Numbers in the latents of one video.
        cond: Bytes of one caption's conditioning.
        dtype: Instead of the run's.
        caption: Bytes of a caption.
    """
    settings = run.preprocess
    video = video_bytes(run, latent, cond, passes(run).scored, dtype=dtype) + ABOUT + caption
    return settings.videos * video + HEADER * -(-settings.videos // settings.shard_size)


def check(folder: Path, run: Run, teacher: Teacher, shards: int, scores: int = 0) -> None:
    """Print the size of a store's missing shards and scores, and compare it with the free space of the disk.

    Args:
        folder: The store's folder, which need not exist.
        run: The configuration.
        teacher: The run's teacher.
        shards: Number of missing shards.
        scores: Number of files of an energy's scores that other shards lack.

    Raises:
        GuidedCDError: The disk has too little space.
    """
    size = store_size(run, teacher)
    one = math.prod(teacher.geometry.latent_shape) * dtype_of(run.preprocess.dtype).itemsize * passes(run).scored
    needed = ROOM * size.video * min(size.videos, shards * run.preprocess.shard_size)
    needed += ROOM * one * min(size.videos * max(len(run.energies), 1), scores * run.preprocess.shard_size)
    free = shutil.disk_usage(nearest_folder(folder)).free
    about = f"{file_size(needed)} ({file_size(size.video)} per video)"
    if needed > free:
        raise GuidedCDError(
            f"the store needs about {about}, but the disk of {folder} has {file_size(free)} free: choose another "
            "--store, fewer --preprocess.videos or draws, --preprocess.dtype float16, or fill it in parts with "
            "--shard I/N."
        )
    console.print(f"store    {folder}: about {about} to compute, {file_size(free)} free")


@attrs.frozen(kw_only=True)
class Passes:
    """The mean number of the teacher's passes for one video."""

    inversion: float
    """Steps of its DDIM inversion."""
    scored: float
    """Draws with scores: a pass without the caption, one for each kind of reference, one with a gradient."""
    plain: float
    """Draws without scores: a pass with and one without the caption."""


def passes(run: Run) -> Passes:
    """The expected passes of one video.

    The draws of a video are stratified: draw i of D has the grid index floor((i + u) N / D), u uniform in [0, 1),
    mapped to the noise range. One inversion, up to the last scored draw, serves all of them.
    """
    steps, draws = run.solver.steps, run.preprocess.draws_per_video
    first = guided_from(run.preprocess.fraction, steps) if stored_part(run).energies else steps
    u = (numpy.arange(POINTS) + 0.5) / POINTS
    position = (numpy.arange(draws)[:, None] + u) * steps / draws
    index = draw_index(position, steps, run.preprocess.noise_range)
    scored = index >= first
    inverts = "inversion" in reference_kinds(run).values()
    return Passes(
        inversion=float(((index[-1] + 1) * scored[-1]).mean()) if inverts else 0.0,
        scored=float(scored.mean(1).sum()),
        plain=float((~scored).mean(1).sum()),
    )
