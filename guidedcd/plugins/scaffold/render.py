"""Fill in the template files beside this one: `$name`, `$module`, `$Name`, `$kind` and others."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template

from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing

PLURAL = {"energy": "energies", "reward": "rewards", "route": "routes"}

SELECTION = {"energy": "{name} --energies.{name}.relative 0.3", "reward": "{name}", "route": "{name}"}
"""Arguments in the README's example. `relative` suits an energy of any size; the default `scale` does not."""


def render(kind: str, name: str) -> dict[str, str]:
    """The files of a new package, by path within it.

    Args:
        kind: "energy", "reward" or "route".
        name: Name of the component: lower-case words joined by "-".

    Raises:
        GuidedCDError: The name is not valid.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise GuidedCDError(f"a component's name must be lower-case words joined by '-' (got '{name}').")
    module = f"guidedcd_{name.replace('-', '_')}"
    words = {
        "name": name,
        "module": module,
        "Name": "".join(word.capitalize() for word in name.split("-")),
        "kind": kind,
        "Kind": kind.capitalize(),
        "kinds": PLURAL[kind],
        "flag": PLURAL[kind],
        "selection": SELECTION[kind].format(name=name),
    }
    return {
        "pyproject.toml": _filled("pyproject.toml", words),
        "README.md": _filled("README.md", words),
        f"{module}/__init__.py": _filled("__init__.py", words),
        f"{module}/{kind}.py": _filled(f"{kind}.py", words),
        f"{module}/py.typed": "",
        f"tests/test_{module}.py": _filled("test.py", words),
    }


def write(kind: str, name: str, out: Path | None = None) -> Path:
    """Write a new package and return its folder, `guidedcd-NAME` by default.

    Raises:
        GuidedCDError: The folder exists already, cannot be written, or the name is not valid.
    """
    files = render(kind, name)
    folder = out or Path(f"guidedcd-{name}")
    if folder.exists():
        raise GuidedCDError(f"{folder} exists already. Choose another --out.")
    with replacing(folder) as temporary:
        for path, text in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
    return folder


def _filled(file: str, words: dict[str, str]) -> str:
    text = (resources.files("guidedcd.plugins.scaffold") / f"{file}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words)
