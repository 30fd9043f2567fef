"""`guidedcd evaluate --suite`: tables of a benchmark, its videos, and its own program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.kinds import Chosen
from guidedcd.config.structure import convert
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError, written
from guidedcd.plugins.registry import Registry


@documented
@attrs.frozen(kw_only=True)
class SuiteFlags:
    """What is done with a benchmark, whose own options are --suite.NAME.OPTION."""

    json: bool = False
    """Print the scores as JSON."""
    percent: bool = False
    """The values of the table are percent instead of fractions."""


def evaluate_suite(
    suites: Sequence[Chosen],
    registry: Registry,
    flags: SuiteFlags,
    table: Sequence[str],
    run: Path | None,
    more: Sequence[Path],
    *,
    device: str | None,
    options: Mapping[str, Any],
) -> int:
    """Evaluate one benchmark; returns the exit status.

    Raises:
        GuidedCDError: A mistake of the user, among them a name that is no dimension of the benchmark.
    """
    if len(suites) > 1:
        names = " and ".join(one.name for one in suites)
        raise GuidedCDError(f"--suite takes one benchmark at a time, not {names}.")
    (chosen,) = suites
    if table:
        if run is not None:
            raise GuidedCDError(f"--table needs no run, but {run} is given. Repeat --table for several files.")
        return _print_table(chosen, registry, flags, [convert(text, Path, "--table") for text in table])
    raise GuidedCDError(f"--suite {chosen.name} needs results: give {written('--table FILE')}.")


def _print_table(chosen: Chosen, registry: Registry, flags: SuiteFlags, paths: Sequence[Path]) -> int:
    """Print the scores of a table of results; 1 if a score is absent.

    Raises:
        GuidedCDError: The results are malformed, or have a name that is no dimension; then the scores are printed too.
    """
    from guidedcd.evaluation.suites.printing import print_summary
    from guidedcd.evaluation.suites.results import read_results
    from guidedcd.evaluation.suites.scores import summary

    suite = chosen.build(registry)
    results = read_results(suite, paths, percent=flags.percent)
    about = summary(suite, chosen.name, results)
    if flags.json:
        print(json.dumps(about, indent=1))
    else:
        print_summary(suite, about)
    if about["unknown"]:
        names = " ".join(
            f"'{one['name']}' in {one['file']}.{' ' + one['hint'] if one['hint'] else ''}" for one in about["unknown"]
        )
        missing = f" Missing: {', '.join(about['missing'])}." if about["missing"] else ""
        raise GuidedCDError(f"no dimension of {suite.title}: {names}{missing}")
    return int(bool(about["missing"]))
