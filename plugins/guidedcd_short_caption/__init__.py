"""Routing by caption length: a reward scores a sample only if it can read the whole caption."""

from __future__ import annotations

import attrs

from guidedcd import RouteConfig, hookimpl


@attrs.frozen(kw_only=True)
class ShortCaptionConfig(RouteConfig):
    """Options of the route `short-caption`: none."""


@attrs.frozen(kw_only=True)
class AllConfig(RouteConfig):
    """Options of the route `all`: none."""


@hookimpl
def register_routes(register):
    """Offer `short-caption` and `all`."""
    register(
        "short-caption",
        "guidedcd_short_caption.route:ShortCaption",
        config=ShortCaptionConfig,
        summary="only rewards that can read the whole caption (the short one, if there is one)",
    )
    register(
        "all",
        "guidedcd_short_caption.route:All",
        config=AllConfig,
        summary="all rewards, with the caption truncated to their context",
    )
