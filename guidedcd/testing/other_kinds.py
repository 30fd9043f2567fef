"""The rules of teachers, datasets and metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from guidedcd.testing.helpers import CAPTIONS, T, random

if TYPE_CHECKING:
    from guidedcd.testing.subject import Subject


def teacher_keeps_its_shapes(subject: Subject) -> None:
    """Pixels and latents have the shapes of its geometry, and predictions the shape of the latents."""
    teacher = subject.built
    geometry = teacher.geometry
    with torch.no_grad():
        z = teacher.encode(torch.full((1, *geometry.pixel_shape), 0.5))
        assert z.shape == (1, *geometry.latent_shape), (
            f"encode returned {tuple(z.shape)}, not {(1, *geometry.latent_shape)}"
        )
        frames = teacher.decode(z, [0])
        assert frames.shape == (1, 1, *geometry.pixel_shape[1:]), f"decode returned {tuple(frames.shape)}"
        assert frames.min() >= 0 and frames.max() <= 1, "decode must clamp to [0, 1]"
        cond, null = teacher.embed(["a ball"]), teacher.null(1)
        assert "prompt_embeds" in cond, f"embed returned {sorted(cond)} without prompt_embeds"
        for name, value in cond.items():
            assert value.shape == null[name].shape, f"{name} of the empty caption has shape {tuple(null[name].shape)}"
        seen = teacher.seen(z, torch.tensor([T], device=z.device), cond, captions=["a ball"])
        assert seen.output.shape == z.shape, f"the prediction has shape {tuple(seen.output.shape)}"


def teacher_has_one_fingerprint(subject: Subject) -> None:
    """Its fingerprint is a str that never changes."""
    first = subject.built.fingerprint()
    assert isinstance(first, str) and first == subject.built.fingerprint(), (
        "fingerprint() must return the same str every time"
    )


def dataset_yields_clips(subject: Subject) -> None:
    """It opens as a sequence of clips in the requested size, the same ones every time."""
    from guidedcd.data.geometry import Geometry

    geometry = Geometry(frames=4, height=32, width=32, fps=8)
    clips = subject.built.open(geometry)
    assert len(clips) > 0, "the dataset is empty"
    clip, again = clips[0], clips[0]
    assert clip.video.shape == geometry.pixel_shape, f"a clip has shape {tuple(clip.video.shape)}"
    assert clip.video.min() >= 0 and clip.video.max() <= 1, "pixels must lie in [0, 1]"
    assert clip.id == again.id and torch.equal(clip.video, again.video), "reading clip 0 twice gives different clips"


def metric_scores_each_video(subject: Subject) -> None:
    """It returns values (B,) by name."""
    from guidedcd.data.clips import Prompt

    prompts = [Prompt(text=caption) for caption in CAPTIONS]
    scores = subject.built(random((2, 8, 3, 48, 48), 4).mul(0.2).add(0.5).clamp(0, 1), prompts)
    assert scores, "the metric returned no values"
    for name, values in scores.items():
        assert values.shape == (2,), f"{name} has shape {tuple(values.shape)}, not (2,)"
        assert all(math.isfinite(v) or math.isnan(v) for v in values.tolist()), f"{name} is infinite"
