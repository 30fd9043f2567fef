"""What a run expects of a dataset, checked whenever a clip is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from guidedcd.config.kinds import Chosen
from guidedcd.data.buckets import ClipSize, bucket_of
from guidedcd.data.clips import Clip, ClipError, sample_of
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.data.routing import Sample
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import blame

TRIED = 16
"""Clips whose sizes are compared with the teacher's."""


def opened(chosen: Chosen, geometry: Geometry) -> CheckedClips:
    """The clips of a run's dataset in one size.

    Raises:
        GuidedCDError: The dataset has no method `open`, or returns no sequence.
    """
    whose, dataset = str(chosen.component()), chosen.build()
    if not callable(getattr(dataset, "open", None)):
        raise GuidedCDError(f"{whose} has no method `open(geometry)`, which returns its clips.")
    with blame(whose):
        clips = dataset.open(geometry)
    if not (hasattr(clips, "__len__") and hasattr(clips, "__getitem__")):
        kind = type(clips).__name__
        raise GuidedCDError(f"{whose}: open returned {kind}; it must return a sequence of clips, with len() and [].")
    with blame(whose):
        len(clips)
    return CheckedClips(clips, geometry, whose)


def is_encoded(data: Chosen) -> bool:
    """Whether the clips of a data set have latents and embedded captions."""
    return bool(getattr(data.component().load(), "encoded", False))


def check_sizes(clips: CheckedClips, geometry: Geometry) -> None:
    """Check that some of the first clips have the teacher's size, if the clips are latents.

    Raises:
        GuidedCDError: None of them has.
    """
    own, other = bucket_of(geometry), None
    for index in range(min(len(clips), TRIED)):
        with suppress(ClipError):
            size = clips.size(index)
            if not size.encoded or (size.frames, size.height, size.width) == (own.frames, own.height, own.width):
                return
            other = other or size
    if other is not None:
        raise GuidedCDError(
            f"{clips.whose} has latents of {other.frames} frames of {other.height}x{other.width:g}, and this "
            f"teacher's videos have {own.frames} frames of {own.height}x{own.width}: set the teacher's frames, height "
            "and width to a size of the data."
        )


class CheckedClips(LazySequence[Clip]):
    """The clips of a dataset; reading one that breaks the contract is an error that names the dataset.

    Args:
        clips: What the dataset's `open` returned.
        geometry: The size of the videos.
        whose: The dataset in errors, such as "dataset 'folder' of acme/folder".
    """

    def __init__(self, clips: Sequence[Any], geometry: Geometry, whose: str) -> None:
        self._clips, self._geometry, self.whose = clips, geometry, whose
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    @property
    def lists_samples(self) -> bool:
        """Whether the metadata of a clip can be read without its video."""
        return callable(getattr(self._clips, "sample", None))

    def sample(self, index: int) -> Sample:
        """The metadata of a clip, whose video is read only where `lists_samples` is false.

        Raises:
            ClipError: The clip cannot be used, and the run may skip it.
            GuidedCDError: The dataset breaks its contract.
        """
        if not self.lists_samples:
            return sample_of(self[index])
        with blame(self.whose):
            sample = self._clips.sample(index)  # type: ignore[attr-defined]  # an optional attribute
        if not isinstance(sample, Sample):
            kind = type(sample).__name__
            raise GuidedCDError(f"{self.whose}: sample({index}) returned {kind}; it must return a guidedcd.Sample.")
        return sample

    def read(self, index: int) -> Clip:
        """The clip.

        Raises:
            ClipError: It cannot be used, and the run may skip it.
            GuidedCDError: The dataset breaks its contract.
        """
        with blame(self.whose):
            clip = self._clips[index]
        for fault in _faults(clip, self._geometry):
            raise GuidedCDError(f"{self.whose}: clip {index} {fault}.")
        self._check_values(clip, index)
        if self._numbers.setdefault(clip.id, index) != index:
            raise GuidedCDError(
                f"{self.whose}: clips {self._numbers[clip.id]} and {index} have the same id '{clip.id}'; "
                "ids must be unique, because the noise of a clip is drawn from its id."
            )
        return clip

    def size(self, index: int) -> ClipSize:
        """The size of a clip before it is cut to the teacher's; its video is not decoded.

        Raises:
            ClipError: The clip cannot be used.
            GuidedCDError: The dataset does not state sizes.
        """
        measure = getattr(self._clips, "size", None)
        if measure is None:
            raise GuidedCDError(
                f"{self.whose} does not state the sizes of its clips, for buckets: what `open` returns has no method "
                "`size(index)`."
            )
        with blame(self.whose):
            size = measure(index)
        if not isinstance(size, ClipSize) or min(size.frames, size.height, size.width) <= 0:
            raise GuidedCDError(f"{self.whose}: size({index}) returned {size!r}, and not the size of a clip.")
        return size

    def _check_values(self, clip: Clip, index: int) -> None:
        """Check the pixels, latents and embedded caption of a clip of the right shape.

        Raises:
            ClipError: A number is not finite.
            GuidedCDError: The pixels lie outside of [0, 1].
        """
        for what, tensor in (("latents", clip.latents), ("prompt_embeds", clip.prompt_embeds)):
            if tensor is not None and not tensor.isfinite().all():
                raise ClipError(f"clip '{clip.id}' has {what} that are not finite")
        if clip.video is None:
            return
        low, high = _range(clip.video)
        if not math.isfinite(low + high):
            raise ClipError(f"clip '{clip.id}' has pixels that are not finite")
        if low < -0.01 or high > 1.01:
            raise GuidedCDError(
                f"{self.whose}: clip {index} has pixels from {low:.3g} to {high:.3g}; they must lie in [0, 1]."
            )


def _range(video: Tensor) -> tuple[float, float]:
    """The least and the largest pixel, in one pass; not finite if a pixel is not."""
    low, high = video.aminmax()
    return float(low), float(high)


def _faults(clip: Any, geometry: Geometry) -> Iterator[str]:
    """What is wrong with a clip, as the end of a sentence."""
    if not isinstance(clip, Clip):
        yield f"is a {type(clip).__name__}; it must be a guidedcd.Clip"
        return
    if not (isinstance(clip.id, str) and clip.id):
        yield f"has the id {clip.id!r}; it must be a text"
    if not isinstance(clip.caption, str):
        yield f"has a caption of type {type(clip.caption).__name__}; it must be a text"
    if not isinstance(clip.short_caption, str | None):
        yield f"has a short_caption of type {type(clip.short_caption).__name__}; it must be a text or None"
    if clip.video is not None and clip.video.shape != geometry.pixel_shape:
        yield f"has a video of shape {tuple(clip.video.shape)}; this teacher needs {geometry.pixel_shape}"
    if clip.latents is not None and clip.latents.shape != geometry.encoded_shape:
        yield f"has latents of shape {tuple(clip.latents.shape)}; this teacher's are {geometry.encoded_shape}"
    if clip.prompt_embeds is not None and clip.prompt_embeds.ndim != 2:
        yield f"has prompt_embeds of shape {tuple(clip.prompt_embeds.shape)}; they must be (tokens, width)"
    try:
        json.dumps(dict(clip.tags))
    except (TypeError, ValueError) as error:
        yield f"has tags that are no JSON values ({error})"
