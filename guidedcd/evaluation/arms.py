"""Arms of an evaluation: one way of making videos each, measured on the same prompts and initial noise.

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
from guidedcd.data.clips import Prompt
from guidedcd.devices import blame_memory
from guidedcd.evaluation.bootstrap import over_seeds
from guidedcd.plugins.registry import Registry, blame

SEED_STEP, SPLIT_STEP = 1_000_000, 100_000
"""How far apart the seeds of videos lie, between an evaluation's seeds and between its splits."""


@attrs.frozen(kw_only=True, eq=False)
class Arm:
    """One way of making videos."""

    name: str
    """Stable, e.g. "student" or "teacher-4"."""
    label: str
    """For readers, e.g. "teacher, 4 steps"."""
    steps: int
    evaluations: int
    """Network calls per video; a guided teacher needs two per step."""
    omega: float
    solver: str
    make: Callable[[Sequence[str], Sequence[int]], Tensor]
    """(texts, seeds) to videos (B, F, 3, H, W) in [0, 1]."""
    scales: Mapping[str, float] = attrs.field(factory=dict)
    """Strength of the energies, of a student that has some."""

    def about(self) -> dict[str, Any]:
        """The settings as JSON."""
        kept = ("name", "label", "steps", "evaluations", "omega", "solver", "scales")
        return {key: getattr(self, key) for key in kept}


@attrs.define(eq=False)
class ArmScores:
    """What an arm scored on one split."""

    values: dict[str, list[list[float]]] = attrs.field(factory=dict)
    """Score by name: (S, P); NaN where it does not apply."""
    seconds: float = 0.0
    """Sampling and decoding, all videos together."""
    count: int = 0
    """Videos."""
    kept: dict[int, Tensor] = attrs.field(factory=dict)
    """First-seed videos (F, 3, H, W) of the prompts in `keep`, on the CPU."""

    def by_prompt(self) -> dict[str, list[float]]:
        """Each score's mean over seeds, prompt by prompt (P,)."""
        return {name: over_seeds(table) for name, table in self.values.items()}


@attrs.frozen(eq=False)
class Metric:
    """A built metric with its name; its titles come from optional attributes of the object.

    `titles` and `better` ("higher" or "lower") are dicts by score; `headline` names the score to choose settings by,
    else one called "all" is that; `applies(prompt)` says whether the metric can judge a prompt's video at all.
    """

    name: str
    module: Any
    made: set[str] = attrs.field(factory=set)
    """The scores that it has given."""

    def applies(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it can judge a video of any of these prompts."""
        judge = getattr(self.module, "applies", None)
        return judge is None or any(judge(prompt) for prompt in prompts)

    def scores(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """Every score of every video; an exception names the metric."""
        with blame(f"metric '{self.name}'"):
            scores = self.module(videos, prompts)
        self.made.update(scores)
        return {key: [float(v) for v in value] for key, value in scores.items()}

    def about(self, key: str) -> dict[str, str]:
        """What a score is."""
        titles, better = getattr(self.module, "titles", {}), getattr(self.module, "better", {})
        return {"metric": self.name, "title": titles.get(key, key), "better": better.get(key, "")}


def build_metrics(chosen: Mapping[str, Any], registry: Registry, fps: float) -> list[Metric]:
    """The run's metrics, and after them those that need nothing: `flicker` and `dynamic-degree`.

    Args:
        chosen: Configs by name.
        registry: Where they come from.
        fps: Frames per second of the videos; passed to metrics that have such an option and were not chosen.
    """
    offered = registry.of_kind("metric")
    added: dict[str, Any] = {
        n: offered[n].config() for n in ("flicker", "dynamic-degree") if n in offered and n not in chosen
    }
    added = {n: attrs.evolve(c, fps=fps) if hasattr(c, "fps") else c for n, c in added.items()}
    return [Metric(name, Chosen(name, config).build(registry)) for name, config in {**chosen, **added}.items()]


def measure(
    arm: Arm,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    metrics: Iterable[Metric],
    *,
    split: int,
    batch: int,
    keep: Sequence[int] = (),
    advance: Callable[..., None] = lambda *_, **__: None,
) -> ArmScores:
    """Make the arm's videos of every prompt and seed, and score them.

    Args:
        arm: What makes them.
        prompts: The split (P,).
        seeds: Repetitions (S,).
        metrics: What scores them.
        split: The split's number: other splits' videos start from other noise.
        batch: Videos made at once.
        keep: Prompts whose first-seed videos are kept.
        advance: Called with the number of videos that are done.
    """
    scores, metrics = ArmScores(), list(metrics)
    for repetition, seed in enumerate(seeds):
        rows: dict[str, list[float]] = {}
        for start in range(0, len(prompts), batch):
            batch_prompts = prompts[start : start + batch]
            numbers = [video_seed(seed, split, start + i) for i in range(len(batch_prompts))]
            began = now()
            with blame_memory(arm.label, f"It needs less with --batch {max(1, batch // 2)}."):
                videos = arm.make([prompt.text for prompt in batch_prompts], numbers)
            scores.seconds += now() - began
            videos = videos.cpu()
            if repetition == 0:
                scores.kept |= {i: videos[i - start] for i in keep if start <= i < start + len(batch_prompts)}
            for metric in metrics:
                for key, values in metric.scores(videos, batch_prompts).items():
                    rows.setdefault(key, []).extend(values)
            scores.count += len(batch_prompts)
            advance(len(batch_prompts))
        for key, values in rows.items():
            scores.values.setdefault(key, []).append(values)
    return scores


def video_seed(seed: int, split: int, number: int) -> int:
    """The seed of one video: `guidedcd sample --seed` with it makes the student's again."""
    return seed * SEED_STEP + split * SPLIT_STEP + number


def now() -> float:
    """Seconds, after all work on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def headline(metrics: Iterable[Metric], keys: Iterable[str]) -> tuple[str, bool] | None:
    """The score to choose settings by and to summarise, and whether higher is better; None where no metric has one."""
    available = set(keys)
    for metric in metrics:
        key = getattr(metric.module, "headline", "all")
        if key in available:
            return key, metric.about(key)["better"] != "lower"
    return None


def best(results: Sequence[ArmScores], key: str, higher: bool) -> int:
    """The index of the best mean of a score; the first of equals."""

    def mean(one: ArmScores) -> float:
        values = [v for v in one.by_prompt()[key] if not math.isnan(v)]
        value = sum(values) / len(values) if values else -math.inf
        return value if higher else -value

    return max(range(len(results)), key=lambda index: mean(results[index]))
