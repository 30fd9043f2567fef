"""The example with which each page of help begins."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator

from cyclopts import App

from guidedcd.cli import help_pages

EXAMPLES = {
    (): "guidedcd train --energies pta --rewards hps,clip",
    ("train",): "guidedcd train --energies pta --rewards hps,clip",
    ("data",): "guidedcd data inspect",
    ("data", "inspect"): "guidedcd data inspect --data folder:my-clips --sample 16",
    ("preprocess",): "guidedcd preprocess --energies pta",
    ("store",): "guidedcd store verify runs/stores/3f2a",
    ("store", "show"): "guidedcd store show runs/stores/3f2a",
    ("store", "verify"): "guidedcd store verify runs/stores/3f2a --samples 4",
    ("store", "prune"): "guidedcd store prune",
    ("plan",): "guidedcd plan --profile t2v-turbo-v2 --on h200",
    ("try",): "guidedcd try energy pta",
    ("try", "energy"): 'guidedcd try energy pta --reference clip.mp4 --prompt "a red circle"',
    ("try", "reward"): "guidedcd try reward clip clip.mp4",
    ("try", "route"): 'guidedcd try route short-caption "a red circle" @captions.txt',
    ("sample",): 'guidedcd sample runs/my-run "a red circle moving left" --steps 4',
    ("evaluate",): "guidedcd evaluate runs/my-run --prompts 64",
    ("prove",): "guidedcd prove --quick",
    ("report",): "guidedcd report runs/my-run runs/another-run",
    ("export",): "guidedcd export runs/my-run my-student --format diffusers",
    ("convert",): "guidedcd convert videocrafter2 model.ckpt my-folder",
    ("plugins",): "guidedcd plugins list",
    ("plugins", "list"): "guidedcd plugins list",
    ("plugins", "show"): "guidedcd plugins show pta",
    ("plugins", "doctor"): "guidedcd plugins doctor pta",
    ("plugins", "check"): "guidedcd plugins check pta --json",
    ("plugins", "new"): "guidedcd plugins new energy my-energy",
}
"""By the words of a command."""


def pages(app: App, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """`app` and every command below it that has a page of help, each with its words."""
    yield words, app
    for name in app:
        if not name.startswith("-"):
            yield from pages(app[name], (*words, name))


def add_examples(app: App, with_components: Container[str] = ()) -> None:
    """Put each command's example at the top of its page of help, whose paragraphs are as wide as the terminal.

    Args:
        app: The application.
        with_components: Commands that take options of components, not all of which their pages show.
    """
    for words, page in pages(app):
        page.help_prologue = f"Example: {EXAMPLES[words]}"
        if page.default_command is not None:
            page.help = _paragraphs(inspect.getdoc(page.default_command) or "")
            if words[0] in with_components:
                page.help += f"\n\n{help_pages.NOTE}"


def _paragraphs(docstring: str) -> str:
    """The paragraphs before the parameters, each on one line."""
    text = docstring.partition("\nParameters\n")[0].strip()
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
