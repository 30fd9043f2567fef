"""The rules of datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def dataset_yields_clips(checked: CheckedComponent) -> None:
    """It opens as a sequence of clips in the requested size, the same ones every time."""
    from guidedcd.data.geometry import Geometry

    geometry = Geometry(frames=4, height=32, width=32, fps=8)
    clips = checked.built.open(geometry)
    assert len(clips) > 0, "the dataset is empty"
    clip, again = clips[0], clips[0]
    assert clip.video.shape == geometry.pixel_shape, f"a clip has shape {tuple(clip.video.shape)}"
    assert clip.video.min() >= 0 and clip.video.max() <= 1, "pixels must lie in [0, 1]"
    assert clip.id == again.id and torch.equal(clip.video, again.video), "reading clip 0 twice gives different clips"


RULES = [dataset_yields_clips]
