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
from guidedcd.inference.pipeline import StudentPipeline, batch_size, teacher_videos
from guidedcd.plugins.registry import load_plugins

CHOOSING_SEED, CHOOSING_SPLIT = 99, 9
"""Seed and split of the noise for choosing settings."""

Baselines = dict[tuple, ArmScores]
"""Scores of teachers, which the runs of one comparison share."""


@attrs.frozen(kw_only=True, eq=False)
class EvaluationProtocol:
    """Prompts, metrics and seeds on which every arm is measured."""

    trained: StudentPipeline
    config: EvaluateConfig
    batch: int
    """Videos per batch."""
    splits: dict[str, list[Prompt]]
    choosing: list[Prompt]
    metrics: list[Metric]
    baselines: Baselines
    in_report: dict[str, list[int]]
    """Indices of the prompts whose videos appear in the report, by split."""
    tried: list[dict[str, Any]] = attrs.field(factory=list)
    """Settings of the few-step teacher with their scores, in the order of measurement."""

    @classmethod
    def build(cls, trained: StudentPipeline, config: EvaluateConfig, baselines: Baselines) -> EvaluationProtocol:
        """Choose the prompts, and build the run's metrics."""
        registry = load_plugins()
        if isinstance(config.prompts, int):
            splits, choosing = prompts.evaluation(trained.teacher, config.prompts)
        else:
            splits, choosing = {"prompts": prompts.as_prompts(config.prompts)}, []
        metrics = build_metrics(trained.run.metrics, registry, trained.teacher.geometry.fps)
        names = list(splits)
        in_report: dict[str, list[int]] = {name: [] for name in names}
        for number in range(config.videos):  # two of the first split, then one of the second, and so on
            name = names[1] if len(names) > 1 and number % 3 == 2 else names[0]
            if len(in_report[name]) < len(splits[name]):
                in_report[name].append(len(in_report[name]))
        return cls(
            trained=trained,
            config=config,
            batch=config.batch or batch_size(trained.teacher),
            splits=splits,
            choosing=choosing,
            metrics=[m for m in metrics if all(m.applies(split) for split in splits.values())],
            baselines=baselines,
            in_report=in_report,
        )

    def work(self, steps: int) -> int:
        """Upper limit of the number of videos."""
        rounds = len({steps, max(1, steps // 2)})
        videos = sum(map(len, self.splits.values())) * len(self.config.each_seed)
        choosing = len(self.choosing) * len(self._candidates(steps)) * rounds
        return videos * (1 + rounds) + choosing + sum(map(len, self.in_report.values()))

    def warm_up(self, arm: Arm) -> None:
        """Sample one batch that is not measured, in which a GPU prepares its kernels."""
        if self.trained.teacher.device.type == "cuda":
            texts = [prompt.text for split in self.splits.values() for prompt in split][: self.batch]
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
        """The few-step teacher with the best headline score on the prompts for choosing; the first without them."""
        candidates = self._candidates(steps)
        if len(candidates) == 1 or not self.choosing:
            return candidates[0]
        results = [
            self._scores(arm, self.choosing, (CHOOSING_SEED,), CHOOSING_SPLIT, (), advance) for arm in candidates
        ]
        criterion = headline(self.metrics, results[0].values)
        if criterion is None:
            return candidates[0]
        name, higher = criterion
        chosen = best(results, name, higher)
        for index, (arm, result) in enumerate(zip(candidates, results, strict=True)):
            score = estimate(result.by_prompt()[name])
            self.tried.append({**arm.about(), "score": name, **score.to_dict(), "chosen": index == chosen})
        return candidates[chosen]

    def measure(self, arm: Arm, advance: Any) -> dict[str, ArmScores]:
        """The scores of an arm by split."""
        return {
            name: self._scores(arm, split, self.config.each_seed, number, self.in_report[name], advance)
            for number, (name, split) in enumerate(self.splits.items())
        }

    def _scores(
        self, arm: Arm, chosen: Sequence[Prompt], seeds: Sequence[int], split: int, keep: Sequence[int], advance: Any
    ) -> ArmScores:
        """The scores of an arm on some prompts, from `baselines` where a teacher has been measured before."""
        key = (
            *(self.trained.teacher.fingerprint(), arm.steps, arm.omega, arm.solver, split, tuple(seeds)),
            *(tuple(p.text for p in chosen), tuple(keep), tuple(m.name for m in self.metrics), self.config.dtype),
        )
        if arm.name != tables.OURS and key in self.baselines:
            advance(self.baselines[key].count)
            return self.baselines[key]
        scores = measure(arm, chosen, seeds, self.metrics, split=split, batch=self.batch, keep=keep, advance=advance)
        if arm.name != tables.OURS:
            self.baselines[key] = scores
        return scores


def steps_of(count: int) -> str:
    """A number of steps in words, e.g. "4 steps"."""
    return f"{count} step" + ("s" if count != 1 else "")
