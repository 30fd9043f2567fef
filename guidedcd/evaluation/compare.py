"""Comparison of several runs: the same evaluation of each, paired with the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedcd.console import print_table
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.added_metrics import chosen_metrics, has_metrics, is_current
from guidedcd.evaluation.evaluate import evaluate
from guidedcd.evaluation.pairing import differences, distinct_names, refuse_repeated, unlike
from guidedcd.evaluation.protocol import Baselines
from guidedcd.plugins.registry import load_plugins


def compare(
    folders: Sequence[str | Path], *, device: str | None = None, metrics: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Print a table of several runs' students with differences from the first, paired by prompt and noise.

    Evaluations with the same settings are read from their files. A teacher of several runs is measured once.

    Args:
        folders: Run folders; the others are compared with the first.
        device: Where tensors live; by default as in each run.
        metrics: Metrics to measure besides those of the runs, in the forms of `Run.from_profile`.
        **options: The fields of `EvaluateConfig`; those that are left out are as in each run.

    Returns:
        Each run's evaluation.

    Raises:
        GuidedCDError: As `evaluate`; or runs that cannot be paired, because their prompts, seeds or steps differ.
    """
    paths = [Path(folder) for folder in folders]
    refuse_repeated(paths)
    baselines: Baselines = {}
    added = [] if metrics is None else chosen_metrics(metrics, load_plugins(), paths[0])
    evaluations = []
    for folder in paths:
        evaluation = tables.read_if_there(folder)
        current = evaluation is not None and is_current(evaluation, folder / "student", options)
        if evaluation is None or not current or not has_metrics(evaluation, added):
            evaluation = evaluate(
                folder, device=device, baselines=baselines, quiet=True, metrics=added or None, **options
            )
        evaluations.append(evaluation)
    names = distinct_names([e["run"] for e in evaluations], paths)
    for name, other in zip(names[1:], evaluations[1:], strict=True):
        if key := unlike(evaluations[0], other):
            raise GuidedCDError(
                f"{names[0]} and {name} were evaluated with different {key}, so they cannot be paired. "
                "Give --prompts, --seeds and --steps, and both are measured alike."
            )
    named = dict(zip(names, evaluations, strict=True))
    for table in tables.comparison(list(named.items()), differences(named)):
        print_table(table)
    return evaluations
