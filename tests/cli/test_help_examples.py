"""The example at the top of each page of help."""

from __future__ import annotations

import shlex

import pytest

from guidedcd.cli import build, main
from guidedcd.cli.examples import EXAMPLES, pages
from guidedcd.cli.run_flags import same_words
from guidedcd.plugins.registry import load_plugins


def test_every_page_has_an_example():
    """Every command and group of commands has an example, and no example is left of a command that is gone."""
    assert {words for words, _ in pages(build(load_plugins()))} == set(EXAMPLES)


@pytest.mark.parametrize("words", sorted(EXAMPLES), ids=" ".join)
def test_help_begins_with_the_example(words, capsys):
    """The first line of a page is its example."""
    with pytest.raises(SystemExit):
        main([*words, "--help"])

    assert capsys.readouterr().out.startswith(f"Example: {EXAMPLES[words]}\n")


@pytest.mark.parametrize("example", sorted(set(EXAMPLES.values())))
def test_examples_are_valid(example):
    """The words of an example are those that the command accepts."""
    _, *tokens = shlex.split(example)
    command, arguments, _ = build(load_plugins(), tokens[0]).parse_args(same_words(tokens), exit_on_error=False)

    assert command.__name__ and arguments is not None
