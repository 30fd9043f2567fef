"""A plugin with a component of every kind whose options have all types, for tests of registration and flags."""

from __future__ import annotations

PLUGIN = '''
from pathlib import Path

import attrs

from guidedcd import hookimpl
from guidedcd.plugins.configs import DatasetConfig, EnergyConfig, MetricConfig, RewardConfig, RouteConfig, TeacherConfig


@attrs.frozen(kw_only=True)
class ToyTeacher(TeacherConfig):
    path: Path | None = attrs.field(default=None, metadata={"positional": True})
    """Where the weights are."""


@attrs.frozen(kw_only=True)
class ToyData(DatasetConfig):
    path: str = attrs.field(default="here", metadata={"positional": True})
    """Where the videos are."""
    captions: tuple[str, ...] = ()
    """What they show."""
    mirror: bool = False
    """Whether they are mirrored."""


@attrs.frozen(kw_only=True)
class Shake(EnergyConfig):
    top: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """How many."""

    def __attrs_post_init__(self):
        if self.top == 13:
            raise ValueError("an unlucky number")


@attrs.frozen(kw_only=True)
class Wrap(RewardConfig):
    of: str = attrs.field(default="", metadata={"positional": "name"})
    """What is wrapped."""


@attrs.frozen(kw_only=True)
class Sized(RewardConfig):
    path: str = attrs.field(default="auto", metadata={"positional": True})
    """Where the weights are."""


@hookimpl
def register_teachers(register):
    register("toy", "acme_toys:Thing", config=ToyTeacher, summary="a toy")


@hookimpl
def register_datasets(register):
    register("toy", "acme_toys:Thing", config=ToyData)
    register("other-toy", "acme_toys:Thing", config=DatasetConfig)


@hookimpl
def register_energies(register):
    register("shake", "acme_toys:Thing", config=Shake)
    register("rattle", "acme_toys:Thing", config=EnergyConfig)


@hookimpl
def register_rewards(register):
    register("smile", "acme_toys:Thing", config=RewardConfig)
    register("wrap", "acme_toys:Thing", config=Wrap)
    register("sized", "acme_toys:Thing", config=Sized)


@hookimpl
def register_routes(register):
    register("keep", "acme_toys:Thing", config=RouteConfig)
    register("drop", "acme_toys:Thing", config=RouteConfig)


@hookimpl
def register_metrics(register):
    register("count", "acme_toys:Thing", config=MetricConfig)


class Thing:
    def __init__(self, config):
        self.config = config
'''
"""The module `acme_toys`, as pip would install it."""
