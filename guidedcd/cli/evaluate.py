"""`guidedcd evaluate`: measure students against their teacher, on paired prompts and noise."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from guidedcd.cli.arguments import trained
from guidedcd.cli.command_line import starting
from guidedcd.cli.evaluate_suite import SuiteFlags, evaluate_suite
from guidedcd.cli.flag_types import PathArgument, PathFlag
from guidedcd.cli.run_flags import flags_of, read_components, read_flags
from guidedcd.config.option_types import flag
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.sources import options_of_run
from guidedcd.errors import GuidedCDError
from guidedcd.inference.student_folders import home
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def evaluate(
        run: PathFlag = None,
        /,
        *more: PathArgument,
        device: str | None = None,
        flags: Any = None,
        table: list[str] | None = None,
        of_suite: Any = None,
        components: Any = None,
    ) -> int | None:
        """Measure a student against its teacher on the same prompts and initial noise; several runs: compare them.

        Options that are left out are as in the run's section `evaluate`. For one run, the command writes
        evaluation.json, videos and the report again. Several runs are put into one table, paired with the first; a run
        that was measured with the same options before is not measured again.

        With --metrics, the evaluation of a run is kept, and these metrics are added to it: they score the videos that
        it sampled, which need no training and are sampled again only where they are missing.

        With --suite, a benchmark is evaluated instead: --table reads its results and prints its scores beside
        published ones; --generate samples its videos with a run's student; --score runs its installed program. The
        exit code is 1 if a score is absent because a dimension is missing.

        Parameters
        ----------
        run
            The run's folder; left out with --table.
        more
            Further runs to compare with it.
        device
            auto, cpu, cuda, cuda:N or mps; by default as in the run.
        table
            Results of a benchmark: files, folders or zip archives; of several, the last one with a dimension counts.
        """
        suite = read_components("suite", components, registry)
        benchmark = read_flags(SuiteFlags, of_suite, "a suite")
        if suite:
            options = read_flags(EvaluateConfig, flags, "an evaluation")
            return evaluate_suite(
                suite, registry, SuiteFlags(**benchmark), table or (), run, more, device=device, options=options
            )
        for name in ["table"] * bool(table) + list(benchmark):
            raise GuidedCDError(f"--{flag(name)} belongs to a benchmark: name it, such as --suite {_first(registry)}.")
        if run is None:
            raise GuidedCDError("nothing to evaluate: give a run's folder, or --suite NAME with --table FILE.")
        folder = home(run)
        below = [] if folder is None else options_of_run(folder / "run.json")
        metrics = read_components("metrics", components, registry, *below) or None
        folders = [trained(one) for one in (run, *more)]
        options = read_flags(EvaluateConfig, flags, "an evaluation")
        starting("evaluate loading PyTorch, the student and its teacher")
        if more:
            from guidedcd.evaluation.compare import compare

            compare(folders, device=device, metrics=metrics, **options)
            return None
        from guidedcd.console import console
        from guidedcd.evaluation.evaluate import evaluate
        from guidedcd.evaluation.report.page import write_report
        from guidedcd.inference.student_folders import locate, results_of

        evaluate(folders[0], device=device, metrics=metrics, **options)
        folder, weights = locate(folders[0])
        console.print(f"report   {write_report(folder, results=results_of(folder, weights))}")
        return None

    evaluate.__annotations__ |= {"run": PathFlag, "more": PathArgument}
    listed = Parameter(consume_multiple=True, negative="", group=Group("Benchmarks", sort_key=1))
    evaluate.__annotations__["table"] = Annotated[list[str] | None, listed]
    evaluate.__annotations__["of_suite"] = flags_of(SuiteFlags, "Benchmarks", defaults=False)
    evaluate.__annotations__["flags"] = flags_of(EvaluateConfig, "Evaluation", defaults=False)
    evaluate.__annotations__["components"] = Annotated[flags_class, Parameter(name="*")]
    app.command(evaluate)


def _first(registry: Registry) -> str:
    """The name of an installed suite, for examples."""
    return next(iter(sorted(registry.of_kind("suite"))), "NAME")
