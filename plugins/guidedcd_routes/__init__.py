"""Routing by sentences and by datasets."""

from __future__ import annotations

import attrs

from guidedcd import RouteConfig, hookimpl

ALL = "all"
"""Stands for every reward or energy of a run."""


@attrs.frozen(kw_only=True)
class SplitCaptionConfig(RouteConfig):
    """Options of the route `split-caption`: none."""


@attrs.frozen(kw_only=True)
class DatasetRouteConfig(RouteConfig):
    """Options of the route `dataset:NAME`."""

    dataset: str = attrs.field(default="", metadata={"positional": "name"})
    """Name of a dataset of the run, whose clips feed the rewards and energies below."""
    rewards: tuple[str, ...] = (ALL,)
    """Rewards that score no clip of other datasets: `all`, or names separated by commas; `none` for none."""
    energies: tuple[str, ...] = (ALL,)
    """Energies that guide no clip of other datasets: `all`, or names separated by commas; `none` for none."""


@hookimpl
def register_routes(register):
    """Offer `split-caption` and `dataset`."""
    register(
        "split-caption",
        "guidedcd_routes.captions:SplitCaption",
        config=SplitCaptionConfig,
        summary="as short-caption, but a reward that cannot read the whole caption reads its first sentence",
    )
    register(
        "dataset",
        "guidedcd_routes.datasets:FromDataset",
        config=DatasetRouteConfig,
        summary="only the clips of one dataset feed rewards and energies",
    )
