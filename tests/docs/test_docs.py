"""README and docs: links resolve, commands in text exist, hooks are described, lines are short."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from guidedcd.cli import COMMANDS, main
from guidedcd.plugins import hookspecs
from guidedcd.plugins.registry import load_plugins

ROOT = Path(__file__).parents[2]
PAGES = [
    *(path for name in ("README", "CONTRIBUTING", "CHANGELOG") if (path := ROOT / f"{name}.md").exists()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name not in ("notes", "decisions")]
"""Pages that describe the present; notes and decisions keep the commands of their time."""

GROUPS = ("data", "store", "plugins", "try")
"""Commands that have commands of their own."""


def names(pages: list[Path]) -> list[str]:
    """Test ids: paths relative to the repository."""
    return [str(page.relative_to(ROOT)) for page in pages]


def heading_anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_relative_links_resolve(page):
    """Every relative link leads to a file or folder of the repository, and its anchor to a heading."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in heading_anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_external_links_have_the_right_form(page):
    """Links to other sites use https, name a host, and contain no spaces; `sphinx -b linkcheck` opens them."""
    for link in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text(encoding="utf-8")):
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s()]*)?", link), link


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_lines_of_prose_are_short(page):
    """Lines outside of tables, code blocks and code spans have at most 100 characters."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.lstrip().startswith(("|", "```")):
            assert len(line) <= 100 or len(re.sub(r"`[^`]*`", "", line)) <= 60, f"line {number} is too long"


@cache
def flags(*command: str) -> frozenset[str]:
    """The flags that `guidedcd COMMAND --help` lists."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setenv("COLUMNS", "300")
        main([*command, "--help-all"])
    assert not exit_.value.code, f"guidedcd {' '.join(command)} is not a command"
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", out.getvalue()))


def subcommands() -> Iterator[tuple[str, ...]]:
    """Every command, with the commands inside groups."""
    groups = {
        "data": ("inspect",),
        "store": ("show", "verify", "prune"),
        "try": ("energy", "reward", "route"),
        "plugins": ("list", "show", "doctor", "check", "new"),
    }
    for name in COMMANDS:
        yield from ((name, inner) for inner in groups[name]) if name in groups else ((name,),)


def installed(flag: str) -> list[str]:
    """A flag without its value; components that pages invent, and placeholders, stand for those that exist."""
    flag = flag.partition("=")[0]
    if ".NAME" not in flag:
        return [re.sub(r"\.(jerk|loop|mine)\b", ".pta", flag)]
    return [
        flag.replace(".NAME", f".{name}") for name in ("pta", "hps", "clip", "internv2", "webvid", "folder", "vbench")
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words after `guidedcd` of every command in code spans; test_code_blocks.py parses those in code blocks."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
    for span in spans:
        words = shlex.split(span, comments=True) if "guidedcd" in span and span.count('"') % 2 == 0 else []
        for start, word in enumerate(words):
            called = start == 0 or words[start - 1] == "-m" or words[0].endswith("torchrun")
            if called and Path(word).name == "guidedcd" and len(words) > start + 1:
                yield words[start + 1 :]
                break


@pytest.mark.parametrize("page", CURRENT, ids=names(CURRENT))
def test_commands_parse(page):
    """Every `guidedcd` command exists, and `guidedcd COMMAND --help` lists each of its flags."""
    for words in commands(page.read_text(encoding="utf-8")):
        if words[0] in ("COMMAND", "--help", "--version"):
            continue
        command = tuple(words[: 2 if words[0] in GROUPS else 1])
        for word in words:
            if re.match(r"--?[a-z]", word):
                accepted = flags(*command) | {"--help", "--plugin"}
                assert accepted & set(installed(word)), f"guidedcd {' '.join(words)}: {word} is not a flag"
        assert command in set(subcommands()), f"guidedcd {' '.join(words)}: no such command"


@pytest.mark.parametrize("page", CURRENT, ids=names(CURRENT))
def test_options_in_text_exist(page):
    """Every code span that begins with an option of a run names one that `train` or another command has."""
    for span in re.findall(r"`(--[a-z][^`\n]*)`", page.read_text(encoding="utf-8")):
        flag = re.sub(r":[^ ]*(?=\.)", "", span.split()[0]).replace(".FIELD", ".scale")  # of NAME:VALUE, only NAME
        if "." in flag or page.parent.name == "how-to":
            accepted = frozenset().union(*(flags(*command) for command in subcommands()))
            others = {"--plugin", "--no-build-isolation", "--manifests", "--tiny", "--compare"}
            assert accepted & set(installed(flag)) or flag in others, f"{flag} is not a flag"


def test_every_hook_is_a_heading():
    """The reference of hooks has a heading for each hook with its arguments, and for each argument of `register`."""
    page = (ROOT / "docs" / "reference" / "plugin-hooks.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]

    assert len(hooks) == 7
    for name in hooks:
        arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
        assert f"`{name}({arguments})`" in headings
    for argument in list(inspect.signature(hookspecs.Register.__call__).parameters)[1:]:
        assert f"`{argument}`" in headings


def test_the_readme_lists_every_component():
    """The table of the README has the name of each shipped component in a row of its kind, and no other name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Components\n")[2].partition("\n## ")[0]
    listed = {
        (kind, name.partition(":")[0])
        for kind, names in re.findall(r"^\| (\w+) \| (`.*?) \|", section, re.M)
        for name in re.findall(r"`([^`]+)`", names)
    }
    shipped = [one for one in load_plugins().components if one.plugin.startswith("guidedcd/")]

    assert listed == {(component.kind, component.name) for component in shipped}


def test_the_list_of_shipped_plugins_is_complete():
    """The table of plugins/README.md names each folder beside it."""
    folder = ROOT / "plugins"
    listed = re.findall(r"^\| `(\w+)` \|", (folder / "README.md").read_text(encoding="utf-8"), re.M)

    assert sorted(listed) == sorted(path.parent.name for path in folder.glob("*/__init__.py"))


def test_decisions_have_numbers_of_their_own():
    """No two records have one number, and each heading begins with the number of its file."""
    files = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [int(file.name[:4]) for file in files]

    assert len(set(numbers)) == len(numbers)
    for file, number in zip(files, numbers, strict=True):
        assert re.match(rf"# {number}[.:] ", file.read_text(encoding="utf-8")), file.name


def test_tests_that_a_page_names_exist(repository):
    """Each `file::test` of the page about faulty plugins is a test of that file."""
    text = (repository / "docs" / "reference" / "faulty-plugins.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)

    assert len(named) > 60
    missing = [pair for pair in named if f"def {pair[1]}(" not in (repository / pair[0]).read_text()]
    assert missing == []
