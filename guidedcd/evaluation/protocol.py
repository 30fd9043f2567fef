"""The protocol of an evaluation: prompts, metrics, seeds, and the choice of the few-step teacher's settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs

from guidedcd.config.sections import EvaluateConfig
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.evaluation import tables
from guidedcd.evaluation.arms import Arm, ArmScores, Metric, best, build_metrics, headline, measure
from guidedcd.evaluation.bootstrap import estimate
from guidedcd.inference.pipeline import StudentPipeline, teacher_videos
from guidedcd.plugins.registry import load_plugins

CHOOSING_SEED, CHOOSING_SPLIT = 99, 9
"""Where the noise comes from that settings are chosen on."""

Baselines = dict[tuple, ArmScores]
"""Scores of a teacher, shared by the runs of one comparison, which then measure it once."""


@attrs.frozen(kw_only=True, eq=False)
class EvaluationProtocol:
    """What every arm is measured on."""

    trained: StudentPipeline
    config: EvaluateConfig
    splits: dict[str, list[Prompt]]
    choosing: list[Prompt]
    metrics: list[Metric]
    baselines: Baselines
    shown: dict[str, list[int]]
    """By split, the prompts whose videos the report shows."""
    tried: list[dict[str, Any]] = attrs.field(factory=list)
    """Every setting of the few-step teacher that was tried, with its score."""

    @classmethod
    def build(cls, trained: StudentPipeline, config: EvaluateConfig, baselines: Baselines) -> EvaluationProtocol:
        """Choose the prompts and build the metrics that `config` names."""
        registry = load_plugins()
        if isinstance(config.prompts, int):
            splits, choosing = prompts.evaluation(trained.teacher, config.prompts)
        else:
            splits, choosing = {"prompts": prompts.as_prompts(config.prompts)}, []
        metrics = build_metrics(trained.run.metrics, registry, trained.teacher.geometry.fps)
        names = list(splits)
        shown: dict[str, list[int]] = {name: [] for name in names}
        for number in range(config.videos):  # two of the first split, then one of the second, and so on
            name = names[1] if len(names) > 1 and number % 3 == 2 else names[0]
            if len(shown[name]) < len(splits[name]):
                shown[name].append(len(shown[name]))
        return cls(
            trained=trained,
            config=config,
            splits=splits,
            choosing=choosing,
            metrics=[m for m in metrics if all(m.applies(split) for split in splits.values())],
            baselines=baselines,
            shown=shown,
        )

    def work(self, steps: int) -> int:
        """How many videos will be made at most."""
        rounds = len({steps, max(1, steps // 2)})
        videos = sum(map(len, self.splits.values())) * len(self.config.each_seed)
        choosing = len(self.choosing) * len(self._candidates(steps)) * rounds
        return videos * (1 + rounds) + choosing + sum(map(len, self.shown.values()))

    def warm_up(self, arm: Arm) -> None:
        """Make one batch that counts for nothing: a GPU's first batch prepares its kernels."""
        if self.trained.teacher.device.type == "cuda":
            texts = [prompt.text for split in self.splits.values() for prompt in split][: self.config.batch]
            arm.make(texts, range(len(texts)))

    def teacher(self, steps: int, omega: float, solver: str) -> Arm:
        """The teacher with `steps` guided steps."""
        make = partial(teacher_videos, self.trained.teacher, steps=steps, omega=omega, solver=solver)
        return Arm(
            name=f"teacher-{steps}",
            label=f"teacher, {steps_of(steps)}",
            steps=steps,
            evaluations=steps * (2 if omega else 1),
            omega=omega,
            solver=solver,
            make=make,
        )

    def _candidates(self, steps: int) -> list[Arm]:
        solvers = ("ddim",) if self.trained.teacher.schedule.prediction == "flow" else ("ddim", "dpm++")
        return [self.teacher(steps, omega, solver) for solver in solvers for omega in self.config.teacher_omega]

    def choose(self, steps: int, advance: Any) -> Arm:
        """The best few-step teacher by the headline score on the prompts for choosing; without such, the first."""
        candidates = self._candidates(steps)
        if len(candidates) == 1 or not self.choosing:
            return candidates[0]
        results = [
            self._scores(arm, self.choosing, (CHOOSING_SEED,), CHOOSING_SPLIT, (), advance) for arm in candidates
        ]
        by = headline(self.metrics, results[0].values)
        if by is None:
            return candidates[0]
        chosen = best(results, *by)
        for index, (arm, result) in enumerate(zip(candidates, results, strict=True)):
            score = estimate(result.by_prompt()[by[0]])
            self.tried.append({**arm.about(), "score": by[0], **score.to_dict(), "chosen": index == chosen})
        return candidates[chosen]

    def measure(self, arm: Arm, advance: Any) -> dict[str, ArmScores]:
        """The arm's scores by split."""
        return {
            name: self._scores(arm, split, self.config.each_seed, number, self.shown[name], advance)
            for number, (name, split) in enumerate(self.splits.items())
        }

    def _scores(
        self, arm: Arm, chosen: Sequence[Prompt], seeds: Sequence[int], split: int, keep: Sequence[int], advance: Any
    ) -> ArmScores:
        key = (self.trained.teacher.fingerprint(), arm.steps, arm.omega, arm.solver, split, tuple(seeds))
        key += (tuple(p.text for p in chosen), tuple(keep), tuple(m.name for m in self.metrics), self.config.dtype)
        if arm.name != tables.OURS and key in self.baselines:
            advance(self.baselines[key].count)
            return self.baselines[key]
        batch = self.config.batch
        scores = measure(arm, chosen, seeds, self.metrics, split=split, batch=batch, keep=keep, advance=advance)
        if arm.name != tables.OURS:
            self.baselines[key] = scores
        return scores


def steps_of(count: int) -> str:
    return f"{count} step" + ("s" if count != 1 else "")
