"""What a teacher with an autoencoder over time decodes where rewards read frames, as its option states it. No torch."""

from __future__ import annotations

from typing import Any

import attrs

from guidedcd.docstrings import documented
from guidedcd.errors import refusal
from guidedcd.plugins.configs import TeacherConfig

SMALLEST = 2
"""Latent frames of a window: its first one decodes to a single frame, as that of a video does."""
FORMS = "full, window:K with K latent frames, at least 2, first, or tiny:FILE"


@attrs.frozen
class DecodePolicy:
    """What is decoded of a video of which some frames are read."""

    kind: str = "full"
    """`full`: all latent frames. `window`: a few around each frame. `first`: the first one, an image. `tiny`: all, by a
    small decoder in place of the autoencoder."""
    window: int = 0
    """Latent frames of a window."""
    file: str = ""
    """Weights of the small decoder."""

    @classmethod
    def parse(cls, text: str) -> DecodePolicy:
        """The policy of an option's text.

        Raises:
            ValueError: The text states none.
        """
        kind, colon, value = str(text).partition(":")
        if kind in ("full", "first") and not colon:
            return cls(kind)
        if kind == "window" and value.isdecimal() and int(value) >= SMALLEST:
            return cls(kind, window=int(value))
        if kind == "tiny" and value:
            return cls(kind, file=value)
        raise ValueError(f"{text!r} is none of {FORMS}")

    def __str__(self) -> str:
        value = {"window": str(self.window), "tiny": self.file}.get(self.kind)
        return self.kind if value is None else f"{self.kind}:{value}"


def _valid(instance: object, attribute: attrs.Attribute, value: Any) -> None:
    try:
        DecodePolicy.parse(value)
    except ValueError:
        raise ValueError(refusal(f"'{attribute.name}'", value, FORMS)) from None


@documented
@attrs.frozen(kw_only=True)
class VideoTeacherConfig(TeacherConfig):
    """Options of every teacher whose autoencoder compresses time, a `TransformerTeacher`."""

    decode: str = attrs.field(default="full", validator=_valid)
    """What is decoded where rewards read frames: `full`, all latent frames; `window:K`, K latent frames around each
    frame; `first`, the first latent frame, for rewards of one image; or `tiny:FILE`, all, by a tiny autoencoder (TAEHV
    weights). Samples, evaluations and judges decode in full."""
