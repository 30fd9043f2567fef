"""Arms of an evaluation: ways of sampling videos, measured on the same prompts and initial noise.

Legend: P prompts of a split, S seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.config.kinds import Chosen
from guidedcd.config.structure import unstructure
from guidedcd.console import console
from guidedcd.data.clips import Prompt
from guidedcd.devices import blame_memory
from guidedcd.evaluation.bootstrap import over_seeds
from guidedcd.evaluation.finished import BatchResult, FinishedBatches
from guidedcd.evaluation.sampled import SampledVideos
from guidedcd.inference.metric import Metric
from guidedcd.plugins import objects
from guidedcd.plugins.registry import Registry
from guidedcd.plugins.sources import origin

SEED_STEP, SPLIT_STEP = 1_000_000, 100_000
"""Distance between the seeds of videos, for two seeds and for two splits of an evaluation."""


@attrs.frozen(kw_only=True, eq=False)
class Arm:
    """One way of sampling videos: a student or a teacher with its settings."""

    name: str
    """Stable identifier, e.g. "student" or "teacher-4"."""
    label: str
    """Title in tables, e.g. "teacher, 4 steps"."""
    steps: int
    evaluations: int
    """Network calls per video; a guided teacher needs two per step."""
    omega: float
    solver: str
    make: Callable[[Sequence[str], Sequence[int]], Tensor]
    """Samples videos (B, F, 3, H, W) in [0, 1] from texts (B) and seeds (B)."""
    scales: Mapping[str, float] = attrs.field(factory=dict)
    """Strength of each of the student's energies, by name."""

    def about(self) -> dict[str, Any]:
        """The settings as JSON values."""
        names = ("name", "label", "steps", "evaluations", "omega", "solver", "scales")
        return {key: getattr(self, key) for key in names}

    def batch(self, texts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """What the videos of one batch depend on, as JSON values."""
        return {"arm": self.about(), "prompts": list(texts), "seeds": list(seeds)}


@attrs.define(eq=False)
class ArmScores:
    """The scores of an arm on one split."""

    values: dict[str, list[list[float]]] = attrs.field(factory=dict)
    """Scores (S, P) by name; NaN where a score does not apply."""
    seconds: float = 0.0
    """Time of sampling and decoding all videos."""
    count: int = 0
    """Number of videos."""
    videos: dict[int, Tensor] = attrs.field(factory=dict)
    """First-seed videos (F, 3, H, W) of the prompts in `keep`, on the CPU."""

    def by_prompt(self) -> dict[str, list[float]]:
        """The mean over seeds of each score, for every prompt (P,)."""
        return {name: over_seeds(table) for name, table in self.values.items()}


def build_metrics(chosen: Mapping[str, Any], registry: Registry, fps: float, *, alone: bool = False) -> list[Metric]:
    """The run's metrics, followed by `flicker` and `dynamic-degree`, which need no weights.

    A metric that is not installed is left out, with a warning.

    Args:
        chosen: Configs of the run's metrics by name.
        registry: The registry of components.
        fps: Frames per second of the videos, for the option of this name of the two added metrics.
        alone: Whether to add no metrics.
    """
    available = registry.of_kind("metric")
    added: dict[str, Any] = {
        n: available[n].config()
        for n in ("flicker", "dynamic-degree")
        if n in available and n not in chosen and not alone
    }
    added = {n: attrs.evolve(c, fps=fps) if hasattr(c, "fps") else c for n, c in added.items()}
    metrics = []
    for name, config in {**chosen, **added}.items():
        one = Chosen(name, config)
        if name.partition(":")[0] not in available and not hasattr(config, objects.MARK):
            console.print(f"warning  metric '{name}' is not installed, so that it measures nothing", markup=False)
            continue
        settings = {"metric": name, **origin(one.component(registry)), "options": unstructure(config)}
        metrics.append(Metric(name, one.build(registry), settings=settings))
    return metrics


def measure(
    arm: Arm,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    metrics: Iterable[Metric],
    *,
    split: int,
    batch: int,
    keep: Sequence[int] = (),
    finished: FinishedBatches | None = None,
    sampled: SampledVideos | None = None,
    advance: Callable[..., None] = lambda *_, **__: None,
) -> ArmScores:
    """Sample the arm's videos of every prompt and seed, and score them.

    Args:
        arm: The way of sampling.
        prompts: The prompts of the split (P).
        seeds: One seed per repetition (S).
        metrics: The metrics.
        split: Number of the split; the noise of each split is another one.
        batch: Videos per batch.
        keep: Indices of prompts whose videos of the first seed are returned.
        finished: Batches that are read instead of being sampled again; new ones are added.
        sampled: Where the videos are kept.
        advance: Called with the number of network calls of finished videos.
    """
    scores, metrics = ArmScores(), list(metrics)
    features: dict[str, list[list[Tensor]]] = {metric.name: [[] for _ in seeds] for metric in metrics}
    for repetition, seed in enumerate(seeds):
        rows: dict[str, list[float]] = {}
        for start in range(0, len(prompts), batch):
            batch_prompts = prompts[start : start + batch]
            numbers = [video_seed(seed, split, start + i) for i in range(len(batch_prompts))]
            indices = [i for i in keep if start <= i < start + len(batch_prompts)] if repetition == 0 else []
            of_videos = arm.batch([prompt.text for prompt in batch_prompts], numbers)
            scenes = [attrs.asdict(prompt) for prompt in batch_prompts]
            about = of_videos | {"keep": indices, "scenes": scenes}
            if sampled is not None:
                sampled.note(of_videos)
            result = finished.read(about) if finished is not None else None
            reused = result is not None
            if result is None:
                positions = {i: i - start for i in indices}
                result = _scored(arm, batch_prompts, numbers, metrics, batch, positions, sampled)
                if finished is not None:
                    finished.write(about, result)
            scores.seconds += result.seconds
            scores.videos |= result.videos
            for metric in metrics:
                own = result.scores.get(metric.name, {})  # a kept batch has no entry of a metric without scores
                metric.names.update(own)
                for key, values in own.items():
                    rows.setdefault(key, []).extend(values)
                if metric.name in result.features:
                    features[metric.name][repetition].append(result.features[metric.name])
            scores.count += len(batch_prompts)
            advance(len(batch_prompts) * arm.evaluations, reused=reused)
        for key, values in rows.items():
            scores.values.setdefault(key, []).append(values)
    for metric in metrics:
        if listed := [torch.cat(batches) for batches in features[metric.name] if batches]:
            scores.values |= metric.across(torch.stack(listed))
    return scores


def _scored(
    arm: Arm,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    metrics: Iterable[Metric],
    batch: int,
    positions: Mapping[int, int],
    sampled: SampledVideos | None,
) -> BatchResult:
    """Sample and score one batch; `positions` are those of the videos to keep, by index of their prompt."""
    about = arm.batch([prompt.text for prompt in prompts], seeds)
    videos, seconds = None if sampled is None else sampled.read(about), 0.0
    if videos is None:
        began = now()
        with blame_memory(arm.label, f"It needs less with --batch {max(1, batch // 2)}."):
            videos = arm.make(about["prompts"], seeds)
        seconds = now() - began
        videos = videos.cpu()
        if sampled is not None:
            sampled.write(about, videos)
    scores = {metric.name: metric.scores(videos, prompts) for metric in metrics}
    features = {metric.name: metric.features(videos) for metric in metrics if metric.compares}
    kept = {i: videos[row] for i, row in positions.items()}
    return BatchResult(seconds=seconds, scores=scores, videos=kept, features=features)


def video_seed(seed: int, split: int, number: int) -> int:
    """The seed of one video, with which `guidedcd sample --seed` samples the student's video again."""
    return seed * SEED_STEP + split * SPLIT_STEP + number


def now() -> float:
    """The time in seconds, after synchronisation with the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def headline(metrics: Iterable[Metric], keys: Iterable[str]) -> tuple[str, bool] | None:
    """The score for choosing settings and for the summary, and whether higher is better; None where there is none."""
    available = set(keys)
    for metric in metrics:
        key = getattr(metric.module, "headline", "all")
        if key in available:
            return key, metric.about(key)["better"] != "lower"
    return None


def further_headlines(metrics: Iterable[Metric], keys: Iterable[str]) -> list[str]:
    """The scores that metrics list in `headlines` and that were measured, which the summary has after the headline."""
    available = set(keys)
    listed = [key for metric in metrics for key in getattr(metric.module, "headlines", ()) if key in metric.names]
    return [key for key in dict.fromkeys(listed) if key in available]


def best(results: Sequence[ArmScores], key: str, higher: bool) -> int:
    """The index of the result with the best mean of a score, the first of equals."""

    def mean(scores: ArmScores) -> float:
        values = [v for v in scores.by_prompt()[key] if not math.isnan(v)]
        value = sum(values) / len(values) if values else -math.inf
        return value if higher else -value

    return max(range(len(results)), key=lambda index: mean(results[index]))
