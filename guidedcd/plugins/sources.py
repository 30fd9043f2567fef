"""The code that a component consists of: the version of its distribution, and a digest of its source. No torch.

A store of computed scores, and a run that is continued, compare these, so that an edited plugin is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from guidedcd.plugins.registry import Component


def origin(component: Component) -> dict[str, str]:
    """The plugin of a component, its version, and a digest of its source, "" where that cannot be read.

    The source is that of every Python module in the target's top-level package, so the edit of a comment counts too.
    A Python object of the calling program has a digest of its own.
    """
    source = getattr(component, "source_digest", None) or source_digest(component.target)
    return {"plugin": component.plugin, "version": component.version, "source": source}


def changed(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What changed in the code of a component: "energy 'smooth' (acme/smooth) has another source than before"."""
    version = f"version {now['version']} instead of {before.get('version')}"
    how = version if before.get("version") != now["version"] else "another source than before"
    return f"{what} ({now['plugin']}) has {how}"


def source_digest(target: str) -> str:
    """A digest of the modules of the package of "module:attribute", which is not imported; "" if there are no files.

    A process keeps the first digest: a later edit, or a new file, does not change the code that it has imported.
    """
    return _digest(*_files(target.partition(":")[0]))


@cache
def _digest(*files: Path) -> str:
    if not files:
        return ""
    root, content = files[0].parent, hashlib.sha256()
    for file in files:
        try:
            content.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
        except (OSError, ValueError):
            return ""
    return content.hexdigest()[:16]


@cache
def _files(module: str) -> tuple[Path, ...]:
    """The source files of the top-level package of a module, or of a module without a package.

    Hidden files are left out, such as the lock of a file that is open in an editor.
    """
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
        if spec is not None and spec.origin is None and "." in module:  # a namespace, which other packages share
            spec = importlib.util.find_spec(module)
        path = None if spec is None else spec.origin
    except (ImportError, ValueError, AttributeError):  # such as __main__, which has no spec
        path = getattr(sys.modules.get(top), "__file__", None)
    if path is None or not path.endswith(".py") or not Path(path).is_file():
        return ()
    file = Path(path)
    if file.name != "__init__.py":
        return (file,)
    visible = (other for other in file.parent.rglob("*.py") if not other.name.startswith(".") and other.is_file())
    return (file, *sorted(other for other in visible if other != file))
