"""The templates of the report's pages, with the style and the script that every page contains."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from guidedcd import __version__


def rendered(template: str, **content: Any) -> str:
    """A page from one of the files `*.html.j2` of this folder; every value in `content` is escaped."""
    pages = Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        loader=FunctionLoader(_read),
    )
    style, script = (Markup(_read(name)) for name in ("style.css", "player.js"))
    return pages.get_template(template).render(**content, version=__version__, style=style, script=script)


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
