"""Fills a latent store, shard by shard."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch

from guidedcd.acceleration.garbage import settled
from guidedcd.acceleration.prefetch import prefetched
from guidedcd.config.bucket import Bucket
from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess
from guidedcd.console import console, progress
from guidedcd.data.buckets import bucket_of, placement
from guidedcd.data.clips import ClipError, sample_of
from guidedcd.data.contract import CheckedClips, check_sizes, is_encoded, opened
from guidedcd.data.mixture import Mixture
from guidedcd.data.routing import Sample
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import DatasetConfig
from guidedcd.preprocessing import score_sets, shard_files, shards
from guidedcd.preprocessing.score_sets import ScoreFolders
from guidedcd.preprocessing.shard_builder import ShardBuilder


class StoreWriter:
    """Computes and writes shards of a run's store.

    Args:
        run: The configuration.
        teacher: The run's teacher on its device.
        accept: Called with the metadata of every clip before anything of it is computed; an error of it ends the run.

    Raises:
        GuidedCDError: A dataset or an energy cannot be loaded, or a dataset has too few clips.
    """

    def __init__(self, run: Run, teacher: Teacher, accept: Callable[[Sample], object] | None = None) -> None:
        self.accept = accept
        datasets = [(chosen.name, opened(chosen, teacher.geometry)) for chosen in run.data]
        # The components of the kind data have configs that derive from DatasetConfig.
        weights = [cast(DatasetConfig, chosen.config).weight for chosen in run.data]
        self.settings: Preprocess = run.preprocess
        belongs = None
        if self.settings.buckets:
            buckets = [Bucket.parse(text) for text in self.settings.buckets]
            belongs = functools.partial(_belongs, buckets, bucket_of(teacher.geometry))
        for chosen, (_, clips) in zip(run.data, datasets, strict=True):
            if belongs is None and is_encoded(chosen):
                check_sizes(clips, teacher.geometry)
        self.mixture = Mixture(datasets, weights, self.settings.videos, belongs)
        self.builder = ShardBuilder(run, teacher)

    def check(self) -> None:
        """Give `accept` the metadata of all clips that is known before their videos are decoded."""
        if self.accept is not None:
            for sample in self.mixture.samples():
                self.accept(sample)

    def fill(self, folder: Path, missing: Sequence[int], scores: ScoreFolders) -> None:
        """Compute and write the shards `missing`; a thread reads the clips of the next shard meanwhile.

        Args:
            folder: The store's folder.
            missing: Numbers of shards.
            scores: By energy, the folder of its scores.

        Raises:
            GuidedCDError: Too many clips are unreadable, the disk is full, or the memory is exhausted.
        """
        per_video, began, draws = self.settings.draws_per_video, time.perf_counter(), 0
        identity = shards.read_identity(folder)
        absent = set(shards.missing(folder, identity))
        earlier = [shards.read_shard(folder, n) for n in range(identity["shards"]) if n not in absent]
        skipped = [entry for shard in earlier for entry in shard["skipped"]]
        tried = len(skipped) + sum(len(shard["samples"]) for shard in earlier)
        total = sum(map(len, map(self.positions, missing))) * per_video
        with settled(), progress("preprocess", total, unit="draws") as advance:
            clips_of_shards = prefetched(lambda number: self.mixture.read(self.positions(number)), missing)
            for number, (clips, unreadable) in zip(missing, clips_of_shards, strict=True):
                report = _ShardProgress(advance, len(self.positions(number)) * per_video)
                if self.accept is not None:
                    for clip in clips:
                        self.accept(sample_of(clip))
                if clips:
                    samples, tensors = self.builder.shard(clips, report)
                else:
                    samples, tensors = [], {"z0": torch.zeros(0), **no_scores(self.builder.run.energies)}
                shard_files.save_shard(folder, number, samples, tensors, unreadable, scores)
                report(1)
                draws += len(clips) * per_video
                tried, skipped = tried + len(self.positions(number)), skipped + unreadable
                # Even if all the other clips were readable, the share would be too large.
                if len(skipped) > self.settings.max_skipped * len(self.mixture):
                    raise too_many_skipped(skipped, tried, self.settings.max_skipped)
        seconds = time.perf_counter() - began
        console.print(f"store    {folder}: {draws} draws in {seconds:.0f} s, {draws / seconds * 3600:,.0f} per hour")

    def positions(self, number: int) -> range:
        """The positions in the mixture of a shard's clips."""
        size = self.settings.shard_size
        return range(number * size, min((number + 1) * size, len(self.mixture)))


def _belongs(buckets: Sequence[Bucket], own: Bucket, clips: CheckedClips, number: int) -> bool:
    """Whether a clip falls into the bucket `own`.

    Raises:
        ClipError: It falls into none, and `own` is the first one, whose store lists such clips.
    """
    try:
        return placement(clips.size(number), buckets).bucket == own
    except ClipError:
        if own == buckets[0]:
            raise
        return False


class ScoreWriter:
    """Computes and writes the scores of energies for the stored shards of a run; neither data nor VAE are needed.

    Args:
        run: The configuration.
        teacher: The run's teacher on its device.
        scores: By energy, the folder of its scores.

    Raises:
        GuidedCDError: An energy cannot be loaded.
    """

    def __init__(self, run: Run, teacher: Teacher, scores: ScoreFolders) -> None:
        self.scores = scores
        self.draws = run.preprocess.draws_per_video
        self.builder = ShardBuilder(run, teacher)

    def fill(self, folder: Path, missing: Sequence[int]) -> None:
        """Compute the scores that the shards `missing` lack.

        Raises:
            GuidedCDError: A shard is damaged, the disk is full, or the memory is exhausted.
        """
        counts = {number: len(shards.read_shard(folder, number)["samples"]) * self.draws for number in missing}
        with settled(), progress("scores", sum(counts.values()), unit="draws") as advance:
            for number in missing:
                report = _ShardProgress(advance, counts[number])
                names = score_sets.without(self.scores, number)
                samples, base, tensors = shard_files.read_base(folder, number)
                if samples:
                    inverted = shard_files.read_inversions(folder, number, base)
                    parts = self.builder.of_energies(names).extend(samples, tensors, inverted, report)
                else:
                    parts = no_scores(names)
                shard_files.save_parts(folder, number, base, parts, self.scores)
                report(1)


def no_scores(names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The scores of a shard without samples."""
    return {f"score.{name}": torch.zeros(0) for name in names}


class _ShardProgress:
    """Converts shares of a shard to whole draws for the progress bar."""

    def __init__(self, advance: Callable[..., None], draws: int) -> None:
        self.advance, self.draws, self.share, self.reported = advance, draws, 0.0, 0

    def __call__(self, share: float) -> None:
        self.share = min(self.share + share, 1.0)
        done = round(self.share * self.draws)
        self.advance(done - self.reported)
        self.reported = done


def too_many_skipped(skipped: Sequence[dict[str, str]], tried: int, allowed: float) -> GuidedCDError:
    """The error for a share of unreadable clips above `allowed`."""
    first = skipped[0]
    return GuidedCDError(
        f"{len(skipped)} of {tried} clips could not be used (the first, {first['id']}: {first['reason']}), more than "
        f"the share of {allowed:.0%} allowed. Repair the data or raise --preprocess.max-skipped."
    )
