"""Code blocks of README and docs: every kind of block is checked, commands parse, and quick ones run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest
from cyclopts import CycloptsError

from guidedcd.cli import WITH_RUN, build, main
from guidedcd.cli.run_flags import read_run, same_words
from guidedcd.cli.train import without_evaluation
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import EnergyConfig, MetricConfig
from guidedcd.plugins.registry import Component, Registry, load_plugins

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name not in ("notes", "decisions")),
]
"""Notes and decisions keep the commands of their time."""

LANGUAGES = {
    "console": "the tests of this file parse the commands",
    "python": "test_python_blocks.py runs them",
    "toml": "a test of this file loads them",
    "text": "no code: printed lines, drawings, and the signatures that test_reference.py compares",
}
"""Kinds of code blocks, each with the reason why nothing in it is unchecked."""

ORDINARY = ("cd", "diff", "sha256sum", "for", "done", "mkdir", "unzip", "git", "hf", "#")
"""Programs of the system, and words of the shell."""


@attrs.frozen(kw_only=True)
class MyMetricConfig(MetricConfig):
    """The options of the metric that a page invents."""

    gain: float = 1.0


INVENTED = {
    **{("energy", name): EnergyConfig for name in ("jerk", "loop", "still", "my-energy")},
    ("metric", "my-metric"): MyMetricConfig,
}
"""Components that pages write, with their options; none of them need be installed."""


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, without the indentation of a list around them."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(f"(?m)^{indent}", "", code) for indent, code in matches]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in the console blocks of a page."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:], comments=True)


LINES = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in command_lines(page)
]


def test_every_block_has_a_checked_language():
    """Each fence of each page names a language that tests check or that contains no code."""
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.M)
        assert len(fences) % 2 == 0, page
        assert set(fences[::2]) <= set(LANGUAGES), page
        assert not any(fences[1::2]), page
    assert len(LINES) > 80


@cache
def registry() -> Registry:
    """The installed components, and those that pages write."""
    installed = load_plugins()
    extra = [
        Component(kind, name, "torch:nn", config, "docs/pages")
        for (kind, name), config in INVENTED.items()
        if name not in installed.of_kind(kind)
    ]
    return attrs.evolve(installed, components=[*installed.components, *extra])


@cache
def application(command: str) -> Any:
    """The application with the flags of one command."""
    return build(registry(), command)


def parse(words: list[str]) -> None:
    """Parse the words after `guidedcd` as the program does, and put the run together that they describe."""
    tokens = without_evaluation(same_words(words))
    while "--plugin" in tokens:
        at = tokens.index("--plugin")
        del tokens[at : at + 2]
    if set(tokens) & {"--help", "--version", "--help-all"}:
        tokens = [token for token in tokens if token not in ("--help", "--version", "--help-all")]
        page = application(tokens[0] if tokens else "")
        for token in tokens:
            page = page[token]
        return
    command, bound, unknown = application(tokens[0]).parse_args(tokens, exit_on_error=False, print_error=False)
    assert command.__name__ and not unknown
    if tokens[0] in WITH_RUN and "--config" not in tokens:
        read_run(bound.arguments.get("flags"), registry(), needs_data=False)


def parse_module(module: str, words: list[str]) -> None:
    """Find the program that `python -m` runs, and its flags in its source."""
    if module == "guidedcd":
        parse(words)
    elif module == "pytest":
        paths = [word for word in words if "/" in word or word.endswith(".py")]
        assert all((ROOT / path).exists() for path in paths), paths
    elif module not in ("venv", "build"):
        spec = find_spec(f"{module}.__main__") or find_spec(module)
        assert spec and spec.origin, module
        parse_script(Path(spec.origin), words)


def parse_script(path: Path, words: list[str]) -> None:
    """The source of a script, or that of the modules beside it, declares each flag: as a text, or as an argument."""
    sources = "".join(file.read_text(encoding="utf-8") for file in path.parent.glob("*.py"))
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        argument = flag[2:].replace("-", "_")
        assert f'"{flag}"' in sources or re.search(rf"\b{argument}: ", sources), f"{path.name} has no {flag}"


@pytest.mark.parametrize("words", LINES)
def test_commands_of_blocks_parse(words):
    """Commands of guidedcd parse with every flag and value; other programs, scripts and targets exist."""
    program, *rest = words
    if program == "guidedcd":
        parse(rest)
    elif program == "torchrun":
        parse(rest[rest.index("guidedcd") + 1 :])
    elif program in ("python", "python3") and rest[0] == "-m":
        parse_module(rest[1], rest[2:])
    elif program in ("python", "python3"):
        assert (ROOT / rest[0]).is_file(), rest[0]
        parse_script(ROOT / rest[0], rest[1:])
    elif program == "make":
        assert re.search(rf"(?m)^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8")), rest[0]
    elif program in ("pip", ".venv/bin/pip"):
        assert rest[0] in ("install", "wheel")
    else:
        assert program in (*ORDINARY, "pytest"), f"no test knows the program {program}"


@pytest.mark.parametrize("words", ["train --train.stepz 1", "train --train.steps x", "sample RUN --stepz 4", "nothing"])
def test_wrong_commands_do_not_parse(words):
    """The check of the blocks notices a wrong flag, value and command."""
    with pytest.raises((CycloptsError, GuidedCDError, AssertionError)):
        parse(words.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_blocks_load(page):
    """Each block of TOML can be parsed."""
    for block in blocks(page, "toml"):
        assert tomllib.loads(block)


QUICK = (
    "guidedcd --version",
    "guidedcd plugins list",
    'guidedcd try route short-caption "a red circle" --rewards hps,clip',
)
"""Commands of the pages that take a second; the slow tests run the tutorials."""


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_run(line, tmp_path, monkeypatch, capsys):
    """A quick command of the pages succeeds, and prints the lines that its block shows."""
    shown = [block for page in PAGES for block in blocks(page, "console") if f"$ {line}" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_:
        main(shlex.split(line)[1:])
    printed = capsys.readouterr().out

    assert not exit_.value.code, printed
    assert shown
    for block in shown:
        after = block.split(f"$ {line}\n", 1)[-1].split("$ ", 1)[0]
        assert all(expected in printed for expected in after.splitlines() if after != block)
