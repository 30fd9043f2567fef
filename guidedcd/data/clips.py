"""Clips, which datasets yield, and prompts, from which evaluations sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from guidedcd.data.routing import Sample
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError


class ClipError(GuidedCDError):
    """One clip is unreadable or unusable. The message names the clip, the reason and a remedy; runs skip such clips."""


def _is_video(instance: object, attribute: attrs.Attribute, value: Tensor | None) -> None:
    if value is None:
        return
    if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point():
        raise ClipError(
            f"clip '{getattr(instance, 'id', '?')}': a video must be floats (F, 3, H, W) in [0, 1], "
            f"got {value.dtype} {tuple(value.shape)}"
        )


@documented
@attrs.frozen(kw_only=True, eq=False)
class Clip:
    """One captioned clip as a dataset yields it."""

    id: str
    """Unique within its dataset, stable between runs."""
    dataset: str
    """The dataset's registered name."""
    caption: str
    """The text for the teacher; may be longer than the context of rewards."""
    short_caption: str | None = None
    """A short caption of the same clip, where the dataset has one."""
    tags: Mapping[str, Any] = attrs.field(factory=dict)
    """Free metadata for routes, JSON values only."""
    motion: float | None = None
    """Amount of motion, in a unit of the dataset; None where it is unknown."""
    video: Tensor | None = attrs.field(default=None, validator=_is_video)
    """Frames (F, 3, H, W), float in [0, 1]; None for a clip with `latents`."""
    latents: Tensor | None = None
    """The autoencoder's own latents of the frames (C, F', h, w), the posterior's mode, before any normalization by
    their mean or scale. The VAE does not encode such a clip."""
    prompt_embeds: Tensor | None = None
    """With `latents`, what the text encoder predicted for the tokens of the caption (L, D), without padding. The text
    encoder does not embed such a caption, if the teacher has a method `conditioning`."""

    def __attrs_post_init__(self) -> None:
        if self.video is None and self.latents is None:
            raise ClipError(f"clip '{self.id}' has neither a video nor latents")


@documented
@attrs.frozen(kw_only=True)
class Prompt:
    """One evaluation prompt, with the ground truth of a faithful video where it is known."""

    text: str
    """The text for the generator."""
    scene: Mapping[str, Any] | None = None
    """Ground truth as JSON values, e.g. a scene of the proving ground; None where it is unknown."""
    named: tuple[str, ...] = ()
    """Attributes of `scene` that the text names; only these are scored."""
    id: str = ""
    """Stable name in reports and file names."""


def clip_of(sample: Sample, video: Tensor) -> Clip:
    """The clip with this metadata and video (F, 3, H, W)."""
    return Clip(
        id=sample.id,
        dataset=sample.dataset,
        caption=sample.caption,
        short_caption=sample.short_caption,
        tags=sample.tags,
        motion=sample.motion,
        video=video,
    )


def sample_of(clip: Clip) -> Sample:
    """The metadata of a clip, for routes and logs."""
    return Sample(
        id=clip.id,
        dataset=clip.dataset,
        caption=clip.caption,
        short_caption=clip.short_caption,
        tags=dict(clip.tags),
        motion=clip.motion,
    )
