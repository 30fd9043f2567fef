"""Energy-guided, reward-augmented consistency distillation of video diffusion models.

Importing this package is cheap: nothing here imports torch until `Seen` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guidedcd.data.routing import Route, RoutingRule, Sample
from guidedcd.errors import GuidedCDError, PluginError
from guidedcd.plugins.configs import (
    ComponentConfig,
    DatasetConfig,
    EnergyConfig,
    MetricConfig,
    RewardConfig,
    RouteConfig,
    TeacherConfig,
)
from guidedcd.plugins.hookspecs import Register, hookimpl
from guidedcd.version import __version__

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
