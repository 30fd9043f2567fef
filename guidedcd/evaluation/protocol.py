"""The protocol of an evaluation: prompts, metrics, seeds, and the choice of the few-step teacher's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd import __version__
from guidedcd.config.sections import EvaluateConfig
from guidedcd.console import counted
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.evaluation import tables
from guidedcd.evaluation.arms import Arm, ArmScores, best, build_metrics, headline, measure
from guidedcd.evaluation.bootstrap import estimate
from guidedcd.evaluation.finished import BatchResult, FinishedBatches
from guidedcd.evaluation.sampled import SampledVideos
from guidedcd.files import file_digest
from guidedcd.inference.metric import Metric
from guidedcd.inference.pipeline import StudentPipeline, batch_size, solvers, strengths, teacher_videos
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
    finished: FinishedBatches
    """Batches of this evaluation that are finished, perhaps by an interrupted process."""
    sampled: SampledVideos
    """The videos of this evaluation."""
    tried: list[dict[str, Any]] = attrs.field(factory=list)
    """Settings of the few-step teacher with their scores, in the order of measurement."""

    @classmethod
    def build(
        cls,
        trained: StudentPipeline,
        config: EvaluateConfig,
        baselines: Baselines,
        metrics: Mapping[str, Any],
        splits: dict[str, list[Prompt]] | None = None,
    ) -> EvaluationProtocol:
        """Choose the prompts, and build the metrics.

        Args:
            trained: The student.
            config: The options of the evaluation.
            baselines: Scores of teachers, which are read and extended.
            metrics: Configs of the metrics by name.
            splits: The prompts of an earlier evaluation, to which only these metrics are added.
        """
        adds, geometry = splits is not None, trained.teacher.geometry
        choosing: list[Prompt] = []
        if splits is None:
            if isinstance(config.prompts, int):
                splits, choosing = prompts.evaluation(trained.teacher, config.prompts)
            else:
                splits = {"prompts": prompts.as_prompts(config.prompts)}
        built = build_metrics(metrics, load_plugins(), geometry.fps, alone=adds)
        names = list(splits)
        in_report: dict[str, list[int]] = {name: [] for name in names}
        for number in range(0 if adds else config.videos):  # two of the first split, then one of the second, and so on
            name = names[1] if len(names) > 1 and number % 3 == 2 else names[0]
            if len(in_report[name]) < len(splits[name]):
                in_report[name].append(len(in_report[name]))
        built = [m for m in built if all(m.applies(split) for split in splits.values())]
        batch = config.batch or batch_size(trained.teacher)
        count = sum(map(len, splits.values())) * len(config.each_seed) * (1 + len(config.few_steps))
        settings = _settings(trained, config, built, batch)
        of_videos = {key: settings[key] for key in ("student", "teacher", "dtype", "fast")}
        return cls(
            trained=trained,
            config=config,
            batch=batch,
            splits=splits,
            choosing=choosing,
            metrics=built,
            baselines=baselines,
            in_report=in_report,
            finished=FinishedBatches(trained.results, settings),
            sampled=SampledVideos(
                trained.results, of_videos, size=4 * count * math.prod(geometry.pixel_shape), reads=adds
            ),
        )

    def work(self) -> int:
        """The number of network calls of the whole evaluation, which is proportional to its time."""
        prompts_, shown = (sum(map(len, by_split.values())) for by_split in (self.splits, self.in_report))
        return self.config.work(prompts_, shown=shown, choosing=len(self.choosing), solvers=len(self._solvers()))[0]

    def warm_up(self, arm: Arm) -> None:
        """Sample one batch that is not measured, in which a GPU prepares its kernels."""
        if self.trained.teacher.device.type == "cuda":
            texts = [prompt.text for split in self.splits.values() for prompt in split][: self.batch]
            arm.make(texts, range(len(texts)))

    def student(self) -> Arm:
        """The student with the settings of the evaluation."""
        trained, config = self.trained, self.config
        scales = strengths(trained, config.scale)
        options: dict[str, Any] = {"omega": config.omega, "scale": scales or None, "batch": self.batch}

        def make(texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            return trained(texts, config.steps, seeds, **options)

        return Arm(
            name=tables.OURS,
            label=f"student, {steps_of(config.steps)}",
            steps=config.steps,
            evaluations=config.steps,
            omega=config.omega,
            solver="",
            make=make,
            scales=scales,
        )

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

    def slow_teacher(self) -> Arm:
        """The teacher whose videos the report shows as the target."""
        return self.teacher(self.config.teacher_steps, self.config.omega, "ddim")

    def _candidates(self, steps: int) -> list[Arm]:
        return [self.teacher(steps, omega, solver) for solver in self._solvers() for omega in self.config.teacher_omega]

    def _solvers(self) -> tuple[str, ...]:
        return solvers(self.trained.teacher.schedule.prediction)

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
            name: self._scores(
                arm, split, self.config.each_seed, number, self.in_report[name], advance, sampled=self.sampled
            )
            for number, (name, split) in enumerate(self.splits.items())
        }

    def videos(self, arm: Arm, texts: Sequence[str], seeds: Sequence[int], advance: Any) -> list[Tensor]:
        """Videos (F, 3, H, W) of an arm that is not measured, on the CPU."""
        videos: list[Tensor] = []
        for start in range(0, len(texts), self.batch):
            chunk = slice(start, start + self.batch)
            about = arm.batch(texts[chunk], seeds[chunk])
            result = self.finished.read(about)
            reused = result is not None
            if result is None:
                clips = arm.make(texts[chunk], seeds[chunk]).cpu()
                result = BatchResult(seconds=0.0, videos=dict(enumerate(clips)))
                self.finished.write(about, result)
            videos += [result.videos[index] for index in range(len(texts[chunk]))]
            advance(len(texts[chunk]) * arm.evaluations, reused=reused)
        return videos

    def _scores(
        self,
        arm: Arm,
        chosen: Sequence[Prompt],
        seeds: Sequence[int],
        split: int,
        keep: Sequence[int],
        advance: Any,
        *,
        sampled: SampledVideos | None = None,
    ) -> ArmScores:
        """The scores of an arm on some prompts, from `baselines` where a teacher has been measured before."""
        key = (
            *(self.trained.teacher.fingerprint(), arm.steps, arm.omega, arm.solver, split, tuple(seeds)),
            *(tuple(p.text for p in chosen), tuple(keep), tuple(m.name for m in self.metrics), self.config.dtype),
        )
        if arm.name != tables.OURS and key in self.baselines:
            advance(self.baselines[key].count * arm.evaluations, reused=True)
            return self.baselines[key]
        scores = measure(
            arm,
            chosen,
            seeds,
            self.metrics,
            split=split,
            batch=self.batch,
            keep=keep,
            finished=self.finished,
            sampled=sampled,
            advance=advance,
        )
        if arm.name != tables.OURS:
            self.baselines[key] = scores
        return scores


def _settings(
    trained: StudentPipeline, config: EvaluateConfig, metrics: Sequence[Metric], batch: int
) -> dict[str, Any]:
    """What every batch of an evaluation depends on, as JSON values."""
    device = trained.teacher.device
    return {
        "guidedcd": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "student": file_digest(trained.file),
        "teacher": trained.teacher.fingerprint(),
        "metrics": [metric.settings for metric in metrics],
        "dtype": config.dtype,
        "fast": config.fast,
        "batch": batch,
    }


def steps_of(count: int) -> str:
    """A number of steps in words, e.g. "4 steps"."""
    return counted(count, "step")
