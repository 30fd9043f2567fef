"""The documentation as a website: `make docs` builds it into build/docs/.

The pages are the Markdown files of this folder, which are also read as they are. What only the site needs is added
here while it is built: the navigation comes from the lists of index.md, and links that leave docs/ become text.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import guidedcd

project = "guidedcd"
author = "the guidedcd authors"
version = release = guidedcd.__version__

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["**/*.py"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = f"guidedcd {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

LISTED = ("decisions", "notes")
"""Folders whose README is followed by the list of their files."""


def navigation(text: str) -> str:
    """index.md with a hidden table of contents after each section, made of the section's links to pages."""
    sections = re.split(r"(?m)^(?=## )", text)
    for number, section in enumerate(sections[1:], 1):
        heading = section.splitlines()[0].removeprefix("## ")
        pages = re.findall(r"\]\(([\w./-]+)\.md\)", section)
        lines = ["```{toctree}", ":hidden:", f":caption: {heading}", "", *dict.fromkeys(pages), "```"]
        sections[number] = "\n".join([section.rstrip(), "", *lines, "", ""])
    return "".join(sections)


def without_links_outside(text: str, folder: Path, root: Path) -> str:
    """The text, in which links to files of the repository that are no pages name the file instead."""

    def name(match: re.Match[str]) -> str:
        label, link = match.groups()
        target = (folder / link.partition("#")[0]).resolve()
        if "://" in link or target.is_relative_to(root):
            return match.group()
        return f"{label} (`{target.relative_to(root.parent)}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", name, text)


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what only the site needs."""
    path = Path(app.srcdir) / page
    if page == "index":
        source[0] = navigation(source[0])
    elif path.parent.name in LISTED and path.name == "README":
        source[0] += "\n```{toctree}\n:glob:\n:maxdepth: 1\n\n[0-9]*\n```\n"
    source[0] = without_links_outside(source[0], path.parent, Path(app.srcdir))


def setup(app: Sphinx) -> None:
    """Register the preparation of pages."""
    app.connect("source-read", prepare)
