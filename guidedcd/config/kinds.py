"""The words that all sources of a run share: kinds of components, sections of options, a chosen component. No torch."""

from __future__ import annotations

import inspect
from typing import Any

import attrs

from guidedcd.config.sections import EvaluateConfig, Preprocess, Solver, Student, Train
from guidedcd.config.validators import is_device, is_name, is_seed
from guidedcd.docstrings import documented
from guidedcd.plugins import objects
from guidedcd.plugins.configs import ComponentConfig
from guidedcd.plugins.registry import CONFIGS, Component, Registry, load_plugins

KINDS = {
    "teacher": "teacher",
    "data": "dataset",
    "energies": "energy",
    "rewards": "reward",
    "routes": "route",
    "metrics": "metric",
}
"""How a kind of component that is part of a run is spelled in flags and files."""

ALL_KINDS = {**KINDS, "suite": "suite"}
"""The same for all kinds; suites measure finished runs and are chosen by a command."""

SECTIONS = {"solver": Solver, "preprocess": Preprocess, "student": Student, "train": Train, "evaluate": EvaluateConfig}
"""The engine's own options."""

DEFAULT_PROFILE = "shapes"
"""The profile of a run that names none; nothing else in the engine names it."""


@documented
@attrs.frozen(kw_only=True)
class Basic:
    """Options of the run itself."""

    profile: str = DEFAULT_PROFILE
    """The profile that the defaults came from."""
    name: str = attrs.field(default="run", validator=is_name)
    """Part of the run folder's name."""
    seed: int = attrs.field(default=0, validator=is_seed)
    """Seed of all random numbers, 0 to 2^63 - 1."""
    device: str = attrs.field(default="auto", validator=is_device)
    """Where tensors live: auto, cpu, cuda, cuda:N or mps."""


SCALARS = tuple(field.name for field in attrs.fields(Basic))
"""Options of the run itself: profile, name, seed and device."""


@documented
@attrs.frozen
class Chosen:
    """A component by name, with its options."""

    name: str
    """NAME, or NAME:VALUE where the run tells several of one component apart by their values."""
    config: ComponentConfig

    @property
    def kind(self) -> str:
        """Which kind it is; a config class of a kind derives from that kind's base class."""
        return next(kind for kind, base in CONFIGS.items() if isinstance(self.config, base))

    def component(self, registry: Registry | None = None) -> Component:
        """What a plugin offers under this name, or the Python object that the run was given; its name has the value."""
        if hasattr(self.config, objects.MARK):
            return objects.component(self.kind, self.name, self.config)
        component = (registry or load_plugins()).get(self.kind, self.name.partition(":")[0])
        return component if component.name == self.name else attrs.evolve(component, name=self.name)

    def build(self, registry: Registry | None = None) -> Any:
        """Import the component and call it with its options; an exception of its own names the plugin."""
        return self.component(registry).build(self.config)

    def outline(self, registry: Registry | None = None) -> Any:
        """The component without its weights: its target is called with `weights=False` if it takes that argument.

        Any other target is built with its weights.
        """
        component = self.component(registry)
        try:
            takes_weights = "weights" in inspect.signature(component.load()).parameters
        except (TypeError, ValueError):
            takes_weights = False
        return component.build(self.config, **({"weights": False} if takes_weights else {}))
