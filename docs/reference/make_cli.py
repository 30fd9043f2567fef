"""The blocks of docs/reference/cli.md: every command with its arguments, and the flags that choose components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cyclopts import App
from make_config import spelled
from reference_markdown import table, wrapped

from guidedcd.cli import WITH_COMPONENTS, WITH_RUN, build
from guidedcd.cli.examples import EXAMPLES
from guidedcd.cli.examples import pages as all_pages
from guidedcd.cli.help_pages import ALL
from guidedcd.plugins.registry import Registry


def commands() -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command, without groups of commands and without the options of a run."""
    for words, page in all_pages(build(Registry())):
        if page.default_command is not None:
            yield words, page


def overview() -> str:
    """A table of the commands."""
    rows = []
    for words, page in commands():
        link = f"[`guidedcd {' '.join(words)}`](#guidedcd-{'-'.join(words)})"
        rows.append((link, page.help.split("\n\n")[0].rstrip(".")))
    return table(("command", "effect"), rows)


def details() -> str:
    """A section for each command."""
    return "\n\n".join(section(words, page) for words, page in commands())


def section(words: tuple[str, ...], page: App) -> str:
    """What a command does, an example, its arguments, and where its other flags are described."""
    help_ = "\n\n".join(paragraph for paragraph in page.help.split("\n\n") if ALL not in paragraph)
    lines = [f"### `guidedcd {' '.join(words)}`", wrapped(help_), f"```console\n$ {EXAMPLES[words]}\n```"]
    rows = list(arguments(page))
    if rows:
        lines.append(table(("argument", "default", "meaning"), rows))
    if words[0] in WITH_RUN:
        more = "the [flags that choose components](#flags-that-choose-components) and the [options of a run](config.md)"
        lines.append(wrapped(f"The command also accepts {more}."))
    elif words[0] in WITH_COMPONENTS:
        flags = ", ".join(f"`{name}`" for name, _ in chosen(words))
        lines.append(wrapped(f"The command also accepts {flags}, and the [options of components](plugins.md)."))
    return "\n\n".join(lines)


def arguments(page: App) -> Iterator[tuple[str, str, str]]:
    """(argument, default, meaning) of a command's own arguments."""
    for argument in page.assemble_argument_collection(parse_docstring=True):
        names = [name for name in argument.names if name not in ("*", "--flags")]
        if names and argument.parameter.help:
            spelled = names[0] if names[0].startswith("-") else names[0].upper()
            yield f"`{spelled}`", default(argument), argument.parameter.help


def default(argument: Any) -> str:
    """The default as one would type it, "required", or nothing where the meaning describes it."""
    shown, value = argument.parameter.show_default, argument.field_info.default
    if argument.required:
        return "required"
    if callable(shown):
        return f"`{shown(value).replace('False', 'false').replace('True', 'true')}`"
    return spelled(value) if isinstance(value, bool | int | float | str) and shown is None else ""


def chosen(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(flag, meaning) of the flags of a command that choose its components."""
    page = build(Registry(), words[0])
    for word in words:
        page = page[word]
    for argument in page.assemble_argument_collection(parse_docstring=True):
        if [group.name for group in argument.parameter.group or ()] == ["Run"]:
            yield argument.names[0], argument.parameter.help.removesuffix(" Installed: none.")


def choosers() -> str:
    """A table of the flags that choose the components of a run, and of those of the run itself."""
    return table(("flag", "meaning"), [(f"`{name}`", text) for name, text in chosen(("train",))])


BLOCKS = {"commands": overview, "details": details, "choosers": choosers}
