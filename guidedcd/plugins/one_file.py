"""Plugins that are one Python file, given with `--plugin FILE.py` instead of being installed. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from guidedcd.errors import GuidedCDError, PluginError

FILES = "GUIDEDCD_PLUGINS"
"""The environment variable with the files, which processes started later inherit."""

DISTRIBUTION = "plugin-file"
"""The part of a file's id that stands for the distribution of an installed plugin."""


def plugin_files() -> list[Path]:
    """The files of this process, in their order."""
    return [Path(text) for text in os.environ.get(FILES, "").split(os.pathsep) if text]


def use_files(words: Sequence[str]) -> list[str]:
    """Take `--plugin FILE.py` out of a command line, and use the files from now on; returns the other words.

    Raises:
        GuidedCDError: A file is missing or is no Python file.
    """
    rest, files, waiting = [], [], iter(words)
    for word in waiting:
        flag, equals, value = word.partition("=")
        if flag == "--plugin":
            files.append(_checked(value if equals else next(waiting, "")))
        else:
            rest.append(word)
    if files:
        paths = dict.fromkeys([*map(str, plugin_files()), *map(str, files)])
        os.environ[FILES] = os.pathsep.join(paths)
    return rest


def _checked(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if path.suffix != ".py" or not path.is_file():
        raise GuidedCDError(f"--plugin takes a Python file, such as energy.py (got '{text}').")
    if not path.stem.isidentifier():
        raise GuidedCDError(f"--plugin {text}: the file's name must be that of a module, such as my_energy.py.")
    if os.pathsep in str(path):
        raise GuidedCDError(
            f"--plugin {text}: the path {path} contains '{os.pathsep}'. Move the file to another folder."
        )
    return path


def plugin_id(path: Path) -> str:
    """The id of the plugin in a file."""
    return f"{DISTRIBUTION}/{path.name}"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits, which stands for a version."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def hashes() -> dict[str, str]:
    """The hash of each file of this process by name, for run.json."""
    return {path.name: file_hash(path) for path in plugin_files()}


def _is(path: Path, file: str | None) -> bool:
    """Whether `file` is the file at `path`, perhaps through links."""
    return file is not None and os.path.realpath(file) == os.path.realpath(path)


def load(path: Path) -> ModuleType:
    """The module of a file, whose name is the file's; it is executed once in a process.

    Raises:
        PluginError: A module of this name exists elsewhere.
    """
    name = path.stem
    module = sys.modules.get(name)
    if module is not None and _is(path, getattr(module, "__file__", None)):
        return module
    other = None if module is not None else importlib.util.find_spec(name)
    # The file itself is found where its folder is in sys.path, as with `python -m guidedcd` beside it.
    if module is not None or (other is not None and not _is(path, other.origin)):
        raise PluginError(f"there is another module named '{name}'; rename {path.name}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
