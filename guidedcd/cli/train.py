"""`guidedcd train`: distil, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.command_line import command, starting
from guidedcd.cli.flag_types import PathFlag
from guidedcd.cli.run_flags import read_run
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def train(
        *,
        flags: Any = None,
        out: PathFlag = None,
        store: PathFlag = None,
        new: bool = False,
        skip_evaluation: bool = False,
    ) -> None:
        """Distil a teacher: compute the latent store, train the student, evaluate it, write the report.

        It may be interrupted at any time; the same command continues where it stopped.

        Parameters
        ----------
        out
            The run's folder; by default the newest unfinished run of this configuration, else runs/DATE-NAME.
        store
            The latent store's folder; by default runs/stores/FINGERPRINT, shared by runs that need the same.
        new
            Start a new run, even if an unfinished one could be continued.
        skip_evaluation
            Train without measuring the student, as `--evaluate none` does; `guidedcd evaluate RUN` measures it later.
        """
        run = read_run(flags, registry)
        usable(run.device)
        starting("train    loading PyTorch and the components of the run")
        from guidedcd.workflow import distil

        distil(run, out=out, store=store, new=new, evaluation=not skip_evaluation, command=command())

    train.__annotations__["flags"] = Annotated[flags_class, Parameter(name="*")]
    plain = Parameter(negative="")
    train.__annotations__ |= {"out": PathFlag, "store": PathFlag}
    train.__annotations__ |= dict.fromkeys(("new", "skip_evaluation"), Annotated[bool, plain])
    app.command(train)


def without_evaluation(tokens: Sequence[str]) -> list[str]:
    """The words of a command line, in which `--evaluate none` is the flag `--skip-evaluation` of `train`."""
    words = list(tokens)
    if words[:1] == ["train"]:
        for number, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=True)):
            if word == "--evaluate=none" or (word, following) == ("--evaluate", "none"):
                words[number : number + (1 if "=" in word else 2)] = ["--skip-evaluation"]
                break
    return words


def usable(device: str) -> None:
    """Fail now, before anything is written, if this machine has no such device."""
    if device not in ("auto", "cpu"):
        from guidedcd.devices import device as find

        find(device)
