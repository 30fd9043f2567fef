"""Fill in the template files beside this one: `$name`, `$module`, `$Name`, `$kind` and others."""

from __future__ import annotations

import re
import textwrap
from importlib import resources
from pathlib import Path
from string import Template

from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing
from guidedcd.plugins.registry import HOOKS

SELECTION = {
    "energy": ("energies", "{name} --energies.{name}.relative 0.3"),
    "reward": ("rewards", "{name}"),
    "route": ("routes", "short-caption,{name}"),
    "teacher": ("teacher", "{name}"),
    "dataset": ("data", "{name}:FOLDER"),
    "metric": ("metrics", "{name}"),
    "suite": ("suite", "{name} --table results.json"),
}
"""Flag and value in the README's example."""

COMMAND = {"suite": "evaluate"}
"""The command of the README's example, by default `train`."""

ADVICE = {
    "energy": "`relative` is the norm of the guided term as a share of the norm of the prediction. It means the same "
    "on every teacher, which `scale` does not. Start with values between 0.05 and 0.3.",
    "reward": "`--rewards.{name}.weight` is its weight in the loss, and `--rewards.{name}.frames` the number of frames "
    "that it receives. Captions longer than `max_tokens` are not scored by the default routes.",
    "route": "`--routes` replaces the routes of the profile. The example keeps `short-caption`, which sends a reward "
    "only captions that it can read.",
    "teacher": "`fingerprint()` identifies the weights; stores and adapters of another fingerprint are not used.",
    "dataset": "`guidedcd data inspect --data {name}:FOLDER` shows which clips a run would use, and why it skips the "
    "others.",
    "metric": "`better` decides the arrows and verdicts of the report, `headline` the value in summaries.",
    "suite": "A score states the dimensions that it `needs`; without one of them it is absent, and nothing counts as "
    "zero. `videos()` lists the benchmark's videos, so that `--generate` can sample them.",
}
"""The README's paragraph on use."""

OPTIONS = {
    "teacher": '''
    seed: int = 0
    """Seed of the random weights; replace it with the path of pretrained ones."""
''',
    "dataset": '''
    path: str = attrs.field(default="", metadata={"positional": True})
    """Folder of the videos, which is written as NAME:FOLDER on the command line."""
''',
}
"""Options that the template of a kind needs."""

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    ".github/workflows/ci.yml": "ci.yml",
    ".github/workflows/publish.yml": "publish.yml",
}
"""Templates by path in the package, the same for all kinds."""


def render(kind: str, name: str) -> dict[str, str]:
    """The files of a new package, by path within it.

    Args:
        kind: "energy", "reward", "route", "teacher", "dataset", "metric" or "suite".
        name: Name of the component: lower-case words joined by "-".

    Raises:
        GuidedCDError: The name is not valid.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise GuidedCDError(f"a component's name must be lower-case words joined by '-' (got '{name}').")
    module = f"guidedcd_{name.replace('-', '_')}"
    flag, selection = SELECTION[kind]
    words = {
        "name": name,
        "module": module,
        "Name": "".join(word.capitalize() for word in name.split("-")),
        "kind": kind,
        "Kind": kind.capitalize(),
        "hook": HOOKS[kind],
        "key": name.replace("-", "_"),
        "flag": flag,
        "command": COMMAND.get(kind, "train"),
        "options": OPTIONS.get(kind, ""),
        "selection": selection.format(name=name),
        "advice": textwrap.fill(ADVICE[kind].format(name=name), 100),
    }
    return {
        **{path: _filled(file, words) for path, file in FILES.items()},
        f"{module}/__init__.py": _filled("__init__.py", words),
        f"{module}/{kind}.py": _filled(f"{kind}.py", words),
        f"{module}/py.typed": "",
        f"tests/test_{module}.py": _filled("dataset_test.py" if kind == "dataset" else "test.py", words),
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
