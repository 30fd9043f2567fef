"""How large a latent store will be, and whether the disk has room for it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import attrs
import numpy

from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.devices import dtype_of
from guidedcd.diffusion.guidance import draw_index, guided_from
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher

ABOUT = 150
"""Bytes of JSON per video, besides its caption."""


HEADER = 800
"""Bytes of names and checksums per shard."""


ROOM = 1.02
"""What headers and descriptions take on top, and some distance from a full disk."""


@attrs.frozen(kw_only=True)
class Size:
    """Bytes of a store."""

    video: int
    """Of one video with all its draws."""
    videos: int

    @property
    def total(self) -> int:
        """Of the whole store."""
        return self.video * self.videos


def store_size(run: Run, teacher: Teacher) -> Size:
    """The store of a run: clean latents and text once per video, two predictions and the scores per draw."""
    text = sum(value.numel() * value.element_size() for value in teacher.null(1).values())
    video = video_bytes(run, math.prod(teacher.geometry.latent_shape), text, passes(run).scored)
    return Size(video=round(video), videos=run.preprocess.videos)


def video_bytes(run: Run, latent: int, cond: int, scored: float, *, dtype: str | None = None) -> float:
    """Bytes of one video's tensors in a store.

    Args:
        run: How many draws and energies, and the dtype of what is stored.
        latent: Numbers in the latents of one video.
        cond: Bytes of one caption's conditioning.
        scored: How many of a video's draws have scores, on average.
        dtype: Another dtype than the run's.
    """
    number = dtype_of(dtype or run.preprocess.dtype).itemsize
    draws, energies = run.preprocess.draws_per_video, len(run.energies)
    about = 8 + 8 * draws * (1 + energies)  # the seed, and places of draws and of their scores
    return 4 * latent + cond + about + 2 * draws * latent * number + energies * scored * (latent * number + 4)


def store_bytes(run: Run, latent: int, cond: int, *, dtype: str | None = None, caption: int = 100) -> float:
    """Bytes of the finished store.

    Args:
        run: How many videos, draws and energies, and the dtype of what is stored.
        latent: Numbers in the latents of one video.
        cond: Bytes of one caption's conditioning.
        dtype: Another dtype than the run's.
        caption: Bytes of a caption.
    """
    settings = run.preprocess
    video = video_bytes(run, latent, cond, passes(run).scored, dtype=dtype) + ABOUT + caption
    return settings.videos * video + HEADER * -(-settings.videos // settings.shard_size)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: on its disk it would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def check(folder: Path, run: Run, teacher: Teacher, shards: int) -> None:
    """Say what so many missing shards of a store will take, and refuse what cannot fit.

    Raises:
        GuidedCDError: The disk has too little room.
    """
    size = store_size(run, teacher)
    needed = ROOM * size.video * min(size.videos, shards * run.preprocess.shard_size)
    free = shutil.disk_usage(existing(folder)).free
    about = f"{human(needed)} ({human(size.video)} per video)"
    if needed > free:
        raise GuidedCDError(
            f"the store needs about {about}, but the disk of {folder} has {human(free)} free: choose another --store, "
            "fewer --preprocess.videos or draws, --preprocess.dtype float16, or fill it in parts with --shard I/N."
        )
    console.print(f"store    {folder}: about {about} to compute, {human(free)} free")


def human(count: float) -> str:
    """Bytes in the unit that is easiest to read: "1.3 GB"."""
    if count < 1000:
        return f"{count:.0f} B"
    unit = min(int(math.log10(count) / 3), 4)
    return f"{count / 1000**unit:.3g} {('KB', 'MB', 'GB', 'TB')[unit - 1]}"


POINTS = 4096
"""Points at which each draw's random number is looked at."""


@attrs.frozen(kw_only=True)
class Passes:
    """What one video asks of the teacher on average."""

    inversion: float
    """Steps of its DDIM inversion."""
    scored: float
    """Draws with scores: a pass without the caption, one for each kind of reference, one with a gradient."""
    plain: float
    """Draws without: a pass with and one without the caption."""


def passes(run: Run) -> Passes:
    """The expected passes of one video.

    The draws of a video are stratified: draw i of D stands at solver index floor((i + u) N / D), u uniform in [0, 1),
    squeezed into the range that draws come from.
    One inversion, up to the last scored draw, serves all of them.
    """
    steps, draws = run.solver.steps, run.preprocess.draws_per_video
    first = guided_from(run.preprocess.window, steps) if run.energies else steps
    u = (numpy.arange(POINTS) + 0.5) / POINTS
    place = (numpy.arange(draws)[:, None] + u) * steps / draws
    index = draw_index(place, steps, run.preprocess.noise_range)
    scored = index >= first
    inverts = any(config.reference == "inversion" for config in run.energies.values())
    return Passes(
        inversion=float(((index[-1] + 1) * scored[-1]).mean()) if inverts else 0.0,
        scored=float(scored.mean(1).sum()),
        plain=float((~scored).mean(1).sum()),
    )
