"""Windows of latent frames, of which an autoencoder over time decodes some frames of a video.

Legend: L latent frames of a video, t frames per latent frame after the first, which is one frame.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class Window:
    """Consecutive latent frames, decoded as a video of their own."""

    start: int
    """The first one."""
    stop: int
    """One after the last."""

    def frame(self, frame: int, temporal: int) -> int:
        """The index of a video's frame among those of the window, with `temporal` frames per latent frame."""
        return frame - self.start * temporal

    def contains(self, frame: int, temporal: int) -> bool:
        """Whether the window decodes to a frame: the first latent frame of a window, but the video's, is context."""
        latent = latent_frame(frame, temporal)
        return self.start < latent < self.stop or self.start == latent == 0


def latent_frame(frame: int, temporal: int) -> int:
    """The latent frame of a frame; the first one is of frame 0 alone."""
    return -(-frame // temporal)


def windows(
    frames: Iterable[int], size: int, total: int, temporal: int, *, together: int = 1, causal: bool = True
) -> list[Window]:
    """The windows that decode to `frames`, ascending; those that touch are one.

    A window of a causal autoencoder ends with the latent frame that is read, so that all others are context to its
    left. That of another one has the latent frame in its middle.

    Args:
        frames: Indices of frames.
        size: Latent frames of a window, at least 2. It is rounded up to how the autoencoder divides a video, and from L
            on, the window is the whole video.
        total: L.
        temporal: t.
        together: Latent frames that the autoencoder decodes at once. The first ones of a video also include the
            remainder, and a window begins and ends where the autoencoder begins and ends.
        causal: Whether no frame depends on later latent frames.
    """
    rest = total % together
    size = max(size, together + 1)
    size += (rest - size) % together
    if size >= total:
        return [Window(0, total)]
    joined: list[Window] = []
    for latent in sorted({latent_frame(frame, temporal) for frame in frames}):
        stop = latent + 1 if causal else max(latent + 1 + (size - 1) // 2, size)
        stop = min(max(stop + (rest - stop) % together, rest + together), total)
        one = Window(max(stop - size, 0), stop)
        if joined and one.start <= joined[-1].stop:
            one = Window(joined.pop().start, one.stop)
        joined.append(one)
    return joined
