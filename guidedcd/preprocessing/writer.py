"""Fills a latent store, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from guidedcd.acceleration.garbage import settled
from guidedcd.acceleration.prefetch import prefetched
from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess
from guidedcd.console import console, progress
from guidedcd.data.mixture import Mixture
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import shards, store
from guidedcd.preprocessing.shard_builder import ShardBuilder


class StoreWriter:
    """Computes shards of a run's store."""

    def __init__(self, run: Run, teacher: Teacher) -> None:
        datasets = [(chosen.name, chosen.build().open(teacher.geometry)) for chosen in run.data]
        self.settings: Preprocess = run.preprocess
        self.mixture = Mixture(datasets, [chosen.config.weight for chosen in run.data], self.settings.videos)
        self.worker = ShardBuilder(run, teacher)

    def fill(self, folder: Path, missing: Sequence[int]) -> None:
        """Compute and write the shards `missing`; the clips of the next one are read meanwhile."""
        per_video, began, draws = self.settings.draws_per_video, time.perf_counter(), 0
        identity = shards.read_identity(folder)
        absent = set(shards.missing(folder, identity))
        before = [shards.read_shard(folder, n) for n in range(identity["shards"]) if n not in absent]
        lost = [entry for about in before for entry in about["skipped"]]
        tried = len(lost) + sum(len(about["samples"]) for about in before)
        with (
            settled(),
            progress("preprocess", sum(map(len, map(self.places, missing))) * per_video, unit="draws") as advance,
        ):
            read = prefetched(lambda number: self.mixture.read(self.places(number)), missing)
            for number, (clips, skipped) in zip(missing, read, strict=True):
                tell = _ShardProgress(advance, len(self.places(number)) * per_video)
                if clips:
                    samples, tensors = self.worker.shard(clips, tell)
                else:
                    samples, tensors = [], {"z0": torch.zeros(0)}
                store.save_shard(folder, number, samples, tensors, skipped)
                tell(1)
                draws += len(clips) * per_video
                tried, lost = tried + len(self.places(number)), lost + skipped
                if len(lost) > self.settings.max_skipped * len(self.mixture):  # whatever the rest is like
                    raise too_many_skipped(lost, tried, self.settings.max_skipped)
        seconds = time.perf_counter() - began
        console.print(f"store    {folder}: {draws} draws in {seconds:.0f} s, {draws / seconds * 3600:,.0f} per hour")

    def places(self, number: int) -> range:
        """Which clips of the mixture a shard has."""
        size = self.settings.shard_size
        return range(number * size, min((number + 1) * size, len(self.mixture)))


class _ShardProgress:
    """Turns shares of a shard into whole draws for the progress bar."""

    def __init__(self, advance: Callable[..., None], whole: int) -> None:
        self.advance, self.whole, self.share, self.told = advance, whole, 0.0, 0

    def __call__(self, share: float) -> None:
        self.share = min(self.share + share, 1.0)
        now = round(self.share * self.whole)
        self.advance(now - self.told)
        self.told = now


def too_many_skipped(lost: Sequence[dict[str, str]], tried: int, allowed: float) -> GuidedCDError:
    first = lost[0]
    return GuidedCDError(
        f"{len(lost)} of {tried} clips could not be used (the first, {first['id']}: {first['reason']}), more than "
        f"the share of {allowed:.0%} allowed. Mend the data or raise --preprocess.max-skipped."
    )
