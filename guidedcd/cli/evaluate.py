"""`guidedcd evaluate`: measure students against their teacher, on paired prompts and noise."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.arguments import trained
from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import PathArgument
from guidedcd.cli.run_flags import flags_of, read_components, read_flags
from guidedcd.config.sections import EvaluateConfig
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def evaluate(
        run: PathArgument, /, *more: PathArgument, device: str | None = None, flags: Any = None, components: Any = None
    ) -> None:
        """Measure a student against its teacher on the same prompts and initial noise; several runs: compare them.

        Options that are left out are as in the run's section `evaluate`. For one run, the command writes
        evaluation.json, videos and the report again. Several runs are put into one table, paired with the first; a run
        that was measured with the same options before is not measured again.

        With --metrics, the evaluation of a run is kept, and these metrics are added to it: they score the videos that
        it sampled, which need no training and are sampled again only where they are missing.

        Parameters
        ----------
        run
            The run's folder.
        more
            Further runs to compare with it.
        device
            auto, cpu, cuda, cuda:N or mps; by default as in the run.
        """
        metrics = read_components("metrics", components, registry) or None
        folders = [trained(one) for one in (run, *more)]
        options = read_flags(EvaluateConfig, flags, "an evaluation")
        starting("evaluate loading PyTorch, the student and its teacher")
        if more:
            from guidedcd.evaluation.compare import compare

            compare(folders, device=device, metrics=metrics, **options)
            return
        from guidedcd.console import console
        from guidedcd.evaluation.evaluate import evaluate
        from guidedcd.evaluation.report.page import write_report
        from guidedcd.inference.student_folders import locate, results_of

        evaluate(folders[0], device=device, metrics=metrics, **options)
        folder, weights = locate(folders[0])
        console.print(f"report   {write_report(folder, results=results_of(folder, weights))}")

    evaluate.__annotations__ |= {"run": PathArgument, "more": PathArgument}
    evaluate.__annotations__["flags"] = flags_of(EvaluateConfig, "Evaluation", defaults=False)
    evaluate.__annotations__["components"] = Annotated[flags_class, Parameter(name="*")]
    app.command(evaluate)
