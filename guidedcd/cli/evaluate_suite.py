"""`guidedcd evaluate --suite`: tables of a benchmark, its videos, and its own program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import attrs

from guidedcd.cli.arguments import trained
from guidedcd.cli.command_line import starting
from guidedcd.cli.preprocess import parse_shard
from guidedcd.config.kinds import Chosen
from guidedcd.config.option_types import flag
from guidedcd.config.structure import convert
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError, written
from guidedcd.plugins.registry import Registry

SAMPLING = ("steps", "omega", "scale", "dtype", "batch", "fast")
"""Options of an evaluation that the videos of a benchmark have too."""


@documented
@attrs.frozen(kw_only=True)
class SuiteFlags:
    """What is done with a benchmark, whose own options are --suite.NAME.OPTION."""

    json: bool = False
    """Print the scores as JSON."""
    percent: bool = False
    """The values of the table are percent instead of fractions."""
    generate: bool = False
    """Sample the benchmark's videos with the run's student; existing videos are kept."""
    shard: str | None = None
    """With --generate, only the videos of one of several processes, as I/N: 0/8 to 7/8."""
    score: bool = False
    """Score the videos with the benchmark's own program, and print the scores."""
    out: Path | None = None
    """The folder of the benchmark's videos and results; by default suites/NAME in the run's folder."""


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
    if more:
        raise GuidedCDError(f"--suite takes one run at a time, so {more[0]} is not expected here.")
    if flags.shard is not None and not flags.generate:
        raise GuidedCDError("--shard chooses videos that are sampled: give --generate too.")
    if table and (flags.generate or flags.score):
        raise GuidedCDError("--table reads results that are there; leave out --generate and --score.")
    if table:
        if run is not None:
            raise GuidedCDError(f"--table needs no run, but {run} is given. Repeat --table for several files.")
        return _print_table(chosen, chosen.build(registry), flags, [convert(text, Path, "--table") for text in table])
    if flags.generate or flags.score:
        return _run(chosen, registry, flags, run, device=device, options=options)
    raise GuidedCDError(
        f"--suite {chosen.name} needs {written('--table FILE')} to read results, --generate to sample videos, or "
        "--score to score them."
    )


def _run(
    chosen: Chosen, registry: Registry, flags: SuiteFlags, run: Path | None, *, device: str | None, options: Any
) -> int:
    """Sample videos, score them, or both.

    Raises:
        GuidedCDError: See `guidedcd.evaluation.suites`; or an option that belongs to another evaluation.
    """
    from guidedcd.evaluation.suites.places import SuiteFolder

    shard = parse_shard(flags.shard)
    if flags.generate and run is None:
        raise GuidedCDError("--generate needs a run's folder, whose student samples the videos.")
    sampling = SAMPLING if flags.generate else ()
    for name in options:
        if name not in sampling:
            raise GuidedCDError(
                f"--{flag(name)} belongs to the evaluation of a student against its teacher; the options of a "
                f"benchmark are --suite.{chosen.name}.OPTION."
            )
    suite = chosen.build(registry)
    folder = SuiteFolder.of(chosen.name, run, flags.out)
    with redirect_stdout(sys.stderr) if flags.json else nullcontext():  # standard output has the JSON alone
        videos = suite.videos()
        if flags.generate:
            assert run is not None
            starting("evaluate loading PyTorch and the student")
            from guidedcd.evaluation.suites.generate import generate_videos

            generate_videos(suite, videos, trained(run), folder, device=device, shard=shard, options=options)
        if not flags.score:
            return 0
        from guidedcd.evaluation.suites.official import score_videos

        results = score_videos(suite, folder, videos)
    return _print_table(chosen, suite, flags, [results])


def _print_table(chosen: Chosen, suite: Any, flags: SuiteFlags, paths: Sequence[Path]) -> int:
    """Print the scores of a table of results; 1 if a score is absent.

    Raises:
        GuidedCDError: The results are malformed, or have a name that is no dimension; then the scores are printed too.
    """
    from guidedcd.evaluation.suites.printing import print_summary
    from guidedcd.evaluation.suites.results import read_results
    from guidedcd.evaluation.suites.scores import summary

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
