"""The command line: flags, files and errors. The work is done elsewhere, and imported only when a command runs."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cyclopts import App

import guidedcd
from guidedcd import __version__
from guidedcd.cli import (
    command_line,
    convert,
    data,
    evaluate,
    export,
    help_pages,
    plan,
    plugins,
    preprocess,
    prove,
    report,
    sample,
    store,
    train,
    try_,
)
from guidedcd.cli.errors import explain
from guidedcd.cli.examples import add_examples
from guidedcd.cli.flag_groups import check_groups, check_inner
from guidedcd.cli.run_flags import run_flags, same_words
from guidedcd.config.kinds import DEFAULT_PROFILE
from guidedcd.config.old_names import check_flags
from guidedcd.config.sources import profiles
from guidedcd.console import harmless
from guidedcd.errors import PluginError, Terminated, described, on_command_line
from guidedcd.plugins import one_file
from guidedcd.plugins.registry import Registry, load_plugins
from guidedcd.plugins.watcher import watched

COMMANDS = {
    "train": train,
    "data": data,
    "preprocess": preprocess,
    "store": store,
    "plan": plan,
    "try": try_,
    "sample": sample,
    "evaluate": evaluate,
    "prove": prove,
    "report": report,
    "export": export,
    "convert": convert,
    "plugins": plugins,
}
"""Each module adds its command with `add(app, registry, flags_class)`."""

WITH_RUN = ("train", "preprocess", "plan", "data")
"""Commands that take the flags of a run."""

WITH_COMPONENTS: dict[str, tuple[str, ...]] = {
    "sample": ("energies",),
    "evaluate": ("metrics", "suite"),
    "prove": ("energies", "rewards"),
    "try": ("teacher",),
}
"""Commands that take the flags of some kinds of components."""

INNER = ("rewards",)
"""Kinds of components that energies and metrics may be made of, whose options go with theirs."""


def build(registry: Registry, command: str = "", profile: str = DEFAULT_PROFILE) -> App:
    """The application, with a flag for every option of every plugin in `registry`.

    Args:
        registry: The installed plugins.
        command: The one that will run: the others need no flags of a run, which take 0.1 s to make.
        profile: Whose defaults help shows.
    """
    app = App(
        name="guidedcd",
        version=__version__,
        help="Distil a text-to-video model into a few-step student, guided by energies and trained on rewards.\n\n"
        "Every command takes --plugin FILE.py, a plugin that is one file and need not be installed.",
        help_format="plaintext",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for name, module in COMMANDS.items():
        module.add(app, registry, _flags(name, registry, profile) if name == command else Any)
    add_examples(app, (*WITH_RUN, *WITH_COMPONENTS))
    return app


def _flags(command: str, registry: Registry, profile: str) -> Any:
    """The class of the flags that describe a run or its components, for a command that takes them."""
    if command in WITH_RUN:
        return run_flags(registry, profile)
    kinds = WITH_COMPONENTS.get(command)
    if kinds is None:
        return Any
    inner = INNER if {"energies", "metrics"} & set(kinds) else ()
    return run_flags(registry, profile, kinds=kinds, scalars=(), sections=(), inner=inner)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `guidedcd` and exit: 0 for success, 1 if a check failed, 2 for a mistake of the user.

    130 after Ctrl-C and 143 after SIGTERM, which is handled in the same way.
    """
    argv = sys.argv[1:] if argv is None else argv
    _prepare_process()
    command_line.note(argv)
    with on_command_line():
        sys.exit(_run(argv))


def _run(argv: Sequence[str]) -> Any:
    """Run the command and return its exit status; a bug keeps its traceback."""
    registry, tokens = Registry(), train.without_evaluation(same_words(argv))
    try:
        tokens = one_file.use_files(tokens)
        registry = _load_plugins(tokens)
        check_flags(tokens)
        if tokens and tokens[0] in (*WITH_RUN, *WITH_COMPONENTS):
            check_groups(tokens, registry, sections=tokens[0] in WITH_RUN)
        if tokens and (tokens[0] in ("sample", "evaluate") or list(tokens[:2]) == ["try", "energy"]):
            check_inner(tokens, INNER)
        with _plain_warnings():
            app = build(registry, tokens[0] if tokens else "", _profile(tokens))
            status = app(help_pages.with_help(tokens))
            sys.stdout.flush()  # here, where a full disk is one sentence
            return status
    except (Exception, KeyboardInterrupt) as error:
        status = explain(error, tokens, registry)
        if status is None:
            raise
        return status


def _load_plugins(tokens: Sequence[str]) -> Registry:
    """The installed components; commands that check plugins survive those that end or block a process."""
    if list(tokens[:2]) not in (["plugins", "doctor"], ["plugins", "check"]):
        with watched():
            registry = load_plugins()
        for failure in registry.failures:
            if failure.plugin.startswith(f"{one_file.DISTRIBUTION}/"):
                name, error = failure.plugin.partition("/")[2], failure.error
                raise PluginError(f"--plugin {name} cannot be loaded: {described(error)}") from error
        return registry
    from guidedcd.plugins.probe import fatal_plugins

    fatal = fatal_plugins()
    with watched():
        registry = load_plugins(blocked=[failure.plugin for failure in fatal])
    registry.failures += fatal
    return registry


def _prepare_process() -> None:
    """Let SIGTERM end a command as Ctrl-C does, and let no text be impossible to print."""
    with suppress(ValueError):  # signals can be handled in the main thread only
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show this package's own warnings as one line each, without the line of code that gave them."""
    usual, ours = warnings.formatwarning, Path(guidedcd.__file__).parent

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if ours in Path(filename).parents:
            return f"warning: {harmless(str(message))}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _profile(tokens: Sequence[str]) -> str:
    """The profile whose defaults help shows; a wrong name is reported when the run is put together."""
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        name = following if token == "--profile" else token.removeprefix("--profile=")
        if token.startswith("--profile") and name in profiles():
            return name
    return DEFAULT_PROFILE
