"""The rules of datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch

from guidedcd.data.clips import Clip, ClipError, sample_of
from guidedcd.data.contract import CheckedClips
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.testing.helpers import same_in_threads, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent

GEOMETRY = Geometry(frames=4, height=32, width=32, fps=8)
"""The size that the rules request."""

COUNT = 8
"""Clips that are read at most."""


def _opened(checked: CheckedComponent) -> Any:
    """What the dataset's `open` returns.

    Raises:
        SkipTest: Its clips are latents.
    """
    if getattr(checked.built, "encoded", False):
        raise SkipTest("its clips are latents, which fit one teacher only; a run with that teacher checks them")
    return checked.built.open(GEOMETRY)


def clips_of(checked: CheckedComponent) -> CheckedClips:
    """The dataset's clips, which raise AssertionError where a run would raise an error."""
    clips = _opened(checked)
    assert hasattr(clips, "__len__") and hasattr(clips, "__getitem__"), (
        f"open returned {type(clips).__name__}, not a sequence of clips"
    )
    return CheckedClips(clips, GEOMETRY, str(checked.component))


def _readable(checked: CheckedComponent) -> Iterator[Clip]:
    """The first clips that can be read."""
    clips = clips_of(checked)
    for number in range(min(len(clips), COUNT)):
        try:
            yield clips[number]
        except ClipError:
            continue
        except GuidedCDError as error:
            raise AssertionError(str(error)) from error


def dataset_yields_clips(checked: CheckedComponent) -> None:
    """It opens as a sequence of clips in the requested size, each with its own id, and pixels in [0, 1]."""
    assert len(clips_of(checked)) > 0, "the dataset is empty"
    with unchanged("the dataset"):
        clips = list(_readable(checked))
    assert clips, f"none of its first {COUNT} clips can be read"


def dataset_keeps_its_clips(checked: CheckedComponent) -> None:
    """Reading a clip twice, also after the dataset was built again, gives the same clip."""
    _opened(checked)
    again = checked.component.build(checked.config).open(GEOMETRY)  # type: ignore[attr-defined]  # a dataset
    for number, (one, other) in enumerate(zip(_readable(checked), _readable(checked), strict=True)):
        assert _same(one, other), f"reading clip {number} twice gives different clips"
    first = next(_readable(checked))
    number = next(n for n in range(COUNT) if _id(again, n) == first.id or n == COUNT - 1)
    assert _same(first, again[number]), f"the dataset built again gives another clip '{first.id}'"


def _id(clips: object, number: int) -> str | None:
    try:
        return clips[number].id  # type: ignore[index]  # a sequence
    except (ClipError, IndexError):
        return None


def _same(one: Clip, other: Clip) -> bool:
    pairs = ((one.video, other.video), (one.latents, other.latents), (one.prompt_embeds, other.prompt_embeds))
    same = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
    return (one.id, one.caption) == (other.id, other.caption) and same


def dataset_ends(checked: CheckedComponent) -> None:
    """Reading behind its last clip raises IndexError."""
    clips = _opened(checked)
    try:
        clips[len(clips)]
    except IndexError:
        return
    raise AssertionError(f"it has {len(clips)} clips, but clip {len(clips)} can be read: raise IndexError")


def dataset_is_safe_in_threads(checked: CheckedComponent) -> None:
    """Reading from several threads gives the same clips: a thread reads clips ahead."""
    clips = _opened(checked)

    def read(number: int) -> torch.Tensor | str:
        try:
            clip = clips[number]
            return clip.video if clip.video is not None else clip.latents
        except ClipError as error:
            return str(error)

    numbers = list(range(min(len(clips), 4)))
    assert same_in_threads(read, numbers), "reading from several threads gives other clips: keep no state in self"


def dataset_describes_its_clips(checked: CheckedComponent) -> None:
    """Its sequence's method `sample`, if there is one, returns the metadata of the same clip."""
    clips = clips_of(checked)
    for number in range(min(len(clips), COUNT) if clips.lists_samples else 0):
        try:
            clip, sample = clips[number], clips.sample(number)
        except ClipError:
            continue
        except GuidedCDError as error:
            raise AssertionError(str(error)) from error
        expected = sample_of(clip)
        for field in ("id", "dataset", "caption", "short_caption", "motion", "tags"):
            one, other = getattr(sample, field), getattr(expected, field)
            assert one == other, f"sample({number}) has the {field} {one!r}, and the clip has {other!r}"


RULES = [
    dataset_yields_clips,
    dataset_keeps_its_clips,
    dataset_ends,
    dataset_is_safe_in_threads,
    dataset_describes_its_clips,
]
