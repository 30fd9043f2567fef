"""What datasets yield (Clip) and what evaluations ask for (Prompt)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from guidedcd.data.routing import Sample
from guidedcd.errors import GuidedCDError


class ClipError(GuidedCDError):
    """One clip cannot be read or is unusable: says which, why, and what to do. The run skips and counts such clips."""


def _is_video(instance: object, attribute: attrs.Attribute, value: Tensor) -> None:
    if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point():
        raise ClipError(
            f"clip '{getattr(instance, 'id', '?')}': a video must be floats (F, 3, H, W) in [0, 1], "
            f"got {value.dtype} {tuple(value.shape)}"
        )


@attrs.frozen(kw_only=True, eq=False)
class Clip:
    """One captioned clip as a dataset yields it."""

    id: str
    """Unique within its dataset, stable between runs."""
    dataset: str
    """The dataset's registered name."""
    caption: str
    """What the teacher is told; may be longer than rewards can read."""
    short_caption: str | None = None
    """A short honest caption, when the dataset has one beside `caption`."""
    tags: Mapping[str, Any] = attrs.field(factory=dict)
    """Free metadata for routes, JSON values only."""
    motion: float | None = None
    """How much it moves, in its dataset's own unit, when known."""
    video: Tensor = attrs.field(validator=_is_video)
    """Frames (F, 3, H, W), float in [0, 1]."""


@attrs.frozen(kw_only=True)
class Prompt:
    """One evaluation prompt, with what a faithful video must show when that is known."""

    text: str
    """What the generator is told."""
    scene: Mapping[str, Any] | None = None
    """Ground truth of the proving ground's oracle (guidedcd_shapes.world.Scene as a dict), else none."""
    named: tuple[str, ...] = ()
    """Which attributes of `scene` the text names; only these are scored."""
    id: str = ""
    """Stable name in reports and file names."""


def sample_of(clip: Clip) -> Sample:
    """What routes and logs know of a clip."""
    return Sample(
        id=clip.id,
        dataset=clip.dataset,
        caption=clip.caption,
        short_caption=clip.short_caption,
        tags=dict(clip.tags),
        motion=clip.motion,
    )
