"""Checks during training for rewards that rise while the videos get worse.

The student samples the same prompts from the same noise at every check. The rewards that train it are compared with
judges that train nothing. Statistics of its videos are compared with those of the teacher's videos and of the clips.
`drift` computes the statistics, and `alarms` decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from guidedcd.config.kinds import Chosen
from guidedcd.config.merge import choose
from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.data.routing import Route
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.documents import check_form, parse_json
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.files import append_text, replacing
from guidedcd.inference.metric import Metric
from guidedcd.inference.pipeline import StudentPipeline, batch_size, teacher_videos
from guidedcd.models.student import Student
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import RewardConfig
from guidedcd.plugins.registry import load_plugins
from guidedcd.preprocessing.store import LatentStore
from guidedcd.rewards.contract import build_reward
from guidedcd.rewards.latents import reads_latents
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.alarms import FEWEST, Alarm, Check, alarms, average, widened
from guidedcd.training.drift import statistics
from guidedcd.training.master_weights import MasterWeights
from guidedcd.training.validation import sampling

FILE, FOLDER = "sentinel.jsonl", "sentinel"
FORM = {
    "step": int,
    "alarms": [str],
    "weights": {str: float},
    **{kind: {str: [(float, None)]} for kind in ("rewards", "judges", "drift")},
}
"""Form of the line of a check; see `guidedcd.documents`."""
SHOWN = 4
"""Videos on the contact sheet of a check."""
TEACHER_PROMPTS = 16
"""The teacher samples at most this many of the prompts, because it takes many steps."""


class Sentinel:
    """Checks a student in training.

    Args:
        run: Its options `train.sentinel`; its evaluation sets the steps and omega of the sampling.
        folder: The run's folder, for sentinel.jsonl and one contact sheet per check in sentinel/.
        teacher: Samples the videos that the student's are compared with, before the student takes over its network.
        rewards: The trained rewards.
        clips: The run's latent store.
        write: Whether this process writes files and prints.

    Raises:
        GuidedCDError: A judge does not exist, is trained, or reads latents, or the prompts are too few.
    """

    def __init__(
        self, run: Run, folder: Path, teacher: Teacher, rewards: RewardScorer, clips: LatentStore, *, write: bool = True
    ) -> None:
        self.run, self.folder, self.teacher, self.rewards, self.write = run, folder, teacher, rewards, write
        self.config = run.train.sentinel
        self.prompts = _prompts(run, teacher)
        self.metrics, self.judges = _judges(run, teacher)
        self.history: list[Check] = []
        if lines := read_checks(folder / FILE):
            self.limits = {name: (low, high) for name, (low, high) in lines[0]["limits"].items()}
        else:
            with blame_memory("the sentinel's videos of the teacher", "Use fewer --train.sentinel.prompts."):
                self.limits = _limits(run, teacher, [prompt.text for prompt in self.prompts], clips)
            self._append({"step": 0, "limits": self.limits})

    def restore(self, done: int) -> None:
        """Continue after step `done`: forget later checks, and restore the lowered weights."""
        lines = [line for line in read_checks(self.folder / FILE) if line["step"] <= done]
        for line in lines[1:]:
            self._remember(_check_of(line))
            self._set_weights(line["weights"])
            if line["alarms"] and self.config.action == "back-off":
                self._begin_again()
        if self.write:
            with replacing(self.folder / FILE) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def __call__(self, student: Student, weights: MasterWeights, step: int) -> None:
        """Check the student after `step`; to be called in every process.

        Raises:
            GuidedCDError: An alarm, where the action is "stop".
        """
        with (
            blame_memory("the sentinel's videos", "Use fewer --train.sentinel.prompts."),
            sampling(self.run, self.folder, self.teacher, student, weights) as pipeline,
        ):
            check, shown = self._check(pipeline, step)
        # Numbers may differ in their last bits between processes, which must all decide alike.
        (check,) = broadcast_object_list([check])
        self._remember(check)
        reasons = alarms(self.history, self.limits)
        if reasons and self.config.action == "back-off":
            names = {name for alarm in reasons for name in alarm.rewards}
            configs = self.rewards.configs
            self._set_weights({name: configs[name].weight * self.config.factor for name in names})
            self._begin_again()
        sheet = self._sheet(step)
        if self.write:
            from guidedcd.data.media import contact_sheet  # imports a video library, which training does not need

            contact_sheet(sheet, shown, [prompt.text for prompt in self.prompts[:SHOWN]])
        line = _values(check) | {"weights": {n: c.weight for n, c in self.rewards.configs.items()}}
        self._append(line | {"alarms": [alarm.text for alarm in reasons]})
        self._report(check, reasons, sheet)

    @torch.no_grad()
    def _check(self, pipeline: StudentPipeline, step: int) -> tuple[Check, list[Tensor]]:
        """The scores of the student's videos, and the first of the videos."""
        rewards: dict[str, list[float]] = {}
        judges: dict[str, list[float]] = {}
        videos: list[Tensor] = []
        size, generator = batch_size(self.teacher), reward_generator(self.run.seed, 0)
        for start in range(0, len(self.prompts), size):
            batch = self.prompts[start : start + size]
            texts, seeds = [prompt.text for prompt in batch], range(start, start + len(batch))
            latents = pipeline.latents(texts, list(seeds), self.run.evaluate.steps)
            pixels = self.teacher.decode(latents).float().cpu()
            _extend(rewards, _scores(self.rewards, latents, texts, generator))
            _extend(judges, _scores(self.judges, latents, texts, generator))
            for metric in self.metrics:
                _extend(judges, _directed(metric, metric.scores(pixels, batch)))
            videos.append(pixels)
        pixels = torch.cat(videos)
        drift = {name: values.tolist() for name, values in statistics(pixels).items()}
        return Check(step=step, rewards=rewards, judges=judges, drift=drift), list(pixels[:SHOWN])

    def _remember(self, check: Check) -> None:
        if not self.history:  # only before the first check
            self.limits = widened(self.limits, check)
        self.history.append(check)

    def _begin_again(self) -> None:
        """Forget all checks but the last, so that the lowered weights have time to act before another alarm."""
        self.history = self.history[-1:]

    def _set_weights(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if name in self.rewards.configs:
                self.rewards.configs[name] = attrs.evolve(self.rewards.configs[name], weight=weight)

    def _sheet(self, step: int) -> Path:
        return self.folder / FOLDER / f"step-{step:06d}.png"

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.write:
            append_text(self.folder / FILE, json.dumps(line) + "\n")

    def _report(self, check: Check, reasons: Sequence[Alarm], sheet: Path) -> None:
        """Print the check in one line, and its alarms.

        Raises:
            GuidedCDError: There is an alarm, and the action is "stop".
        """
        scores = [f"{name} {average(values):.3g}" for name, values in (*check.rewards.items(), *check.judges.items())]
        if self.write:
            console.print(f"sentinel step {check.step}: {', '.join(scores)}", markup=False)
        if not reasons:
            return
        text = "; ".join(alarm.text for alarm in reasons)
        evidence = f"Compare {sheet} with {self._sheet(min(alarm.since for alarm in reasons)).name}"
        if self.config.action == "stop":
            raise GuidedCDError(
                f"the sentinel stopped the training after step {check.step}: {text}. {evidence}. Lower the weights of "
                "these rewards, or train again with --train.sentinel.action warn."
            )
        if self.config.action == "back-off":
            configs = self.rewards.configs
            names = sorted({name for alarm in reasons for name in alarm.rewards})
            evidence = ", ".join(f"the weight of {name} is now {configs[name].weight:.3g}" for name in names)
        if self.write:
            console.print(f"warning  {text}. {evidence}.", markup=False)


def _prompts(run: Run, teacher: Teacher) -> list[Prompt]:
    """The prompts of a check.

    Raises:
        GuidedCDError: There are fewer than 8.
    """
    config = run.train.sentinel
    if config.file is None:
        return prompts.evaluation(teacher, 6 * config.prompts)[1][: config.prompts]
    path = Path(config.file.removeprefix("@")).expanduser()
    listed = prompts.read(path)[: config.prompts]
    if len(listed) < FEWEST:
        raise GuidedCDError(f"--train.sentinel.file: {path} has {len(listed)} prompts; a check needs {FEWEST} or more.")
    return listed


def check(run: Run) -> list[Chosen]:
    """The metrics and rewards that judge, by default the run's metrics.

    Raises:
        GuidedCDError: One does not exist or is trained, or there are none.
    """
    registry, option = load_plugins(), "--train.sentinel.judges"
    installed = [*registry.of_kind("metric"), *registry.of_kind("reward")]
    judges = []
    for name in run.train.sentinel.judges or tuple(run.metrics):
        base = name.partition(":")[0]
        if name in run.rewards:
            raise GuidedCDError(f"{option}: the reward '{name}' is trained, so that it cannot judge.")
        if name in run.metrics:
            judges.append(Chosen(name, run.metrics[name]))
        elif base in installed:
            kind = "metric" if base in registry.of_kind("metric") else "reward"
            judges.append(choose(kind, name, {}, option, registry))
        else:
            raise GuidedCDError(f"{option}: no metric or reward is called '{name}'.{suggest(name, installed)}")
    if not judges:
        raise GuidedCDError(f"--train.sentinel.every: this run has no metric that judges; give {option}.")
    return judges


def _judges(run: Run, teacher: Teacher) -> tuple[list[Metric], RewardScorer]:
    """The metrics that judge, and the rewards that judge.

    Raises:
        GuidedCDError: A judge does not exist, is trained, or reads latents.
    """
    metrics: list[Metric] = []
    rewards: dict[str, tuple[Any, RewardConfig]] = {}
    for chosen in check(run):
        if isinstance(chosen.config, RewardConfig):
            reward = build_reward(chosen).to(teacher.device)
            if reads_latents(reward):
                raise GuidedCDError(f"--train.sentinel.judges: {chosen.name} reads latents; a judge scores videos.")
            rewards[chosen.name] = reward, chosen.config
        else:
            settings = {"plugin": str(chosen.component().plugin)}
            metrics.append(Metric(chosen.name, chosen.build(), settings=settings))
    return metrics, RewardScorer(rewards, teacher, exact=True)


def _limits(run: Run, teacher: Teacher, texts: Sequence[str], clips: LatentStore) -> dict[str, tuple[float, float]]:
    """The lowest and highest mean of each statistic in the teacher's videos and in the clips."""
    texts, size, evaluate = texts[:TEACHER_PROMPTS], batch_size(teacher), run.evaluate
    sampled = [
        teacher_videos(
            teacher,
            texts[start : start + size],
            list(range(start, min(start + size, len(texts)))),
            steps=evaluate.teacher_steps,
            omega=evaluate.omega,
        ).cpu()
        for start in range(0, len(texts), size)
    ]
    firsts = [position for position, (_, _, draw) in enumerate(clips.draws) if draw == 0][: run.train.sentinel.prompts]
    with torch.no_grad():
        stored = [teacher.decode(clips[position].z0[None].to(teacher.device)).float().cpu() for position in firsts]
    both = [statistics(torch.cat(videos)) for videos in (sampled, stored)]
    means = {name: [float(one[name].mean()) for one in both] for name in both[0]}
    return {name: (min(values), max(values)) for name, values in means.items()}


def _scores(
    scorer: RewardScorer, latents: Tensor, texts: Sequence[str], generator: torch.Generator
) -> dict[str, list[float]]:
    """Scores (B,) by reward of frames; NaN for a video whose caption the reward cannot read in full."""
    readers = {n: r for n, r in scorer.readers.items() if not reads_latents(scorer.modules[n])}
    routes = [
        Route(rewards=frozenset(n for n, r in readers.items() if r.count(text) <= r.max_tokens), caption=text)
        for text in texts
    ]
    scored = scorer.score(latents, routes, generator)
    scores = {}
    for name in readers:
        values = [math.nan] * len(texts)
        for position, value in zip(scored[name].samples, scored[name].scores.float().tolist(), strict=True):
            values[position] = value
        scores[name] = values
    return scores


def _directed(metric: Metric, scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The scores of a metric that have a direction, with the sign that makes higher better."""
    signs = {"higher": 1.0, "lower": -1.0}
    directions = {name: metric.about(name)["better"] for name in scores}
    return {name: [signs[directions[name]] * v for v in values] for name, values in scores.items() if directions[name]}


def _values(check: Check) -> dict[str, Any]:
    """A check as JSON values, with None in place of NaN."""

    def numbers(lists: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
        return {name: [v if math.isfinite(v) else None for v in values] for name, values in lists.items()}

    lists = {"rewards": check.rewards, "judges": check.judges, "drift": check.drift}
    return {"step": check.step} | {name: numbers(of) for name, of in lists.items()}


def _check_of(line: Mapping[str, Any]) -> Check:
    """The check of a line that `_values` wrote."""

    def numbers(lists: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
        return {name: [math.nan if v is None else v for v in values] for name, values in lists.items()}

    lists = {name: numbers(line[name]) for name in ("rewards", "judges", "drift")}
    return Check(step=line["step"], **lists)


def _extend(lists: dict[str, list[float]], more: Mapping[str, Iterable[float]]) -> None:
    for name, values in more.items():
        lists.setdefault(name, []).extend(values)


def read_checks(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a sentinel's file: the limits, then the checks; a torn last line is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = parse_json(text, path)
            check_form(line, FORM if lines else {"step": int, "limits": {str: [float]}}, path)
        except GuidedCDError:
            break
        lines.append(line)
    return lines
