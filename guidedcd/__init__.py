"""Energy-guided, reward-augmented consistency distillation of video diffusion models.

Importing this package is cheap: nothing here imports torch until `Seen` is asked for.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from typing import TYPE_CHECKING


def _leave_current_folder() -> None:
    """Take the current folder off the path for modules, which `python -m guidedcd` searches first.

    A folder of videos that somebody sent may hold a `diffusers.py` or the metadata of a plugin. It stays on the path
    where this package can be imported from nowhere else.
    """
    # Only while Python locates the module that `-m` names is "-m" the first argument.
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or not sys.path or os.path.abspath(sys.path[0]) != os.getcwd():
        return
    first = sys.path.pop(0)
    if importlib.machinery.PathFinder.find_spec("guidedcd") is None:
        sys.path.insert(0, first)


_leave_current_folder()

from guidedcd.data.routing import Route, RoutingRule, Sample  # noqa: E402
from guidedcd.errors import GuidedCDError, PluginError  # noqa: E402
from guidedcd.plugins.configs import (  # noqa: E402
    ComponentConfig,
    DatasetConfig,
    EnergyConfig,
    MetricConfig,
    RewardConfig,
    RouteConfig,
    TeacherConfig,
)
from guidedcd.plugins.hookspecs import Register, hookimpl  # noqa: E402
from guidedcd.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from guidedcd.diffusion.seen import Seen

__all__ = [
    "ComponentConfig",
    "DatasetConfig",
    "EnergyConfig",
    "GuidedCDError",
    "MetricConfig",
    "PluginError",
    "Register",
    "RewardConfig",
    "Route",
    "RouteConfig",
    "RoutingRule",
    "Sample",
    "Seen",
    "TeacherConfig",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    """Import `Seen`, and with it torch, on first use."""
    if name == "Seen":
        from guidedcd.diffusion.seen import Seen

        return Seen
    raise AttributeError(f"module 'guidedcd' has no attribute {name!r}")
