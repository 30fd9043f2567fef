"""Decoders of tiny autoencoders for videos: the layout of TAEHV's weights (github.com/madebyollin/taehv).

Their files contain an encoder and a decoder, each a sequence of numbered layers. The weights of the decoder are:

    1                                convolution of latents that tanh limits to (-3, 3), then ReLU
    3, 4, 5  9, 10, 11  15, 16, 17   residual blocks, which read each frame and the one before
    7  13  19                        f frames for each one, after height and width are doubled
    8  14  20                        convolution
    22                               convolution to the pixels of a patch, after ReLU

Sizes follow from the shapes of the weights. Latents have the scale of the denoiser, and pixels are in [0, 1].

Legend: B videos, C latent channels, L latent frames, t frames per latent frame, p pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.loading import fill, open_weights, skeleton
from guidedcd.models.checkpoints.reading import exists

WHAT = "the tiny autoencoder"
WHERE = "TAEHV's weights are published at github.com/madebyollin/taehv, such as taew2_1 for Wan 2.1"
STAGES = ((3, 4, 5, 7, 8), (9, 10, 11, 13, 14), (15, 16, 17, 19, 20))
"""By stage, the numbers of its blocks, of its further frames and of its last convolution."""


def _convolution(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _Recurrent(nn.Module):
    """A residual block of every frame and the one before; that before the first is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (_convolution(2 * width, width), nn.ReLU(), _convolution(width, width), nn.ReLU())
        self.conv = nn.Sequential(*layers, _convolution(width, width))

    def forward(self, x: Tensor, videos: int) -> Tensor:
        """The output (B L, width, h, w) of frames `x`, of which each of the `videos` has as many."""
        before = nnf.pad(x.unflatten(0, (videos, -1))[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        return torch.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class _Frames(nn.Module):
    """`factor` frames for each frame."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor, self.conv = factor, nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The frames (B L factor, width, h, w)."""
        frames: Tensor = self.conv(x).unflatten(1, (self.factor, -1)).flatten(0, 1)
        return frames


class TinyDecoder(nn.Module):
    """A decoder of whole videos, causal in time."""

    def __init__(self, widths: tuple[int, int, int, int], factors: tuple[int, int, int], channels: int, patch: int):
        """Build the layers.

        Args:
            widths: Channels of the stages and of the last convolution.
            factors: Frames for each frame, by stage; t is their product.
            channels: C.
            patch: p.
        """
        super().__init__()
        self.temporal, self.channels, self.patch = factors[0] * factors[1] * factors[2], channels, patch
        layers: dict[str, nn.Module] = {"1": _convolution(channels, widths[0])}
        for (*blocks, more, last), width, narrower, factor in zip(STAGES, widths[:3], widths[1:], factors, strict=True):
            layers |= {str(number): _Recurrent(width) for number in blocks}
            layers |= {str(more): _Frames(width, factor), str(last): _convolution(width, narrower, bias=False)}
        layers["22"] = _convolution(widths[3], 3 * patch**2)
        self.decoder = nn.ModuleDict(layers)

    @property
    def spatial(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** len(STAGES) * self.patch

    def forward(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, (L - 1) t + 1, H, W) in [0, 1] of latents (B, C, L, h, w) in the denoiser's scale."""
        videos, layers = len(z), self.decoder
        x = z.transpose(1, 2).flatten(0, 1)
        x = torch.relu(layers["1"](3 * torch.tanh(x / 3)))
        for *blocks, more, last in STAGES:
            for number in blocks:
                x = layers[str(number)](x, videos)
            x = layers[str(last)](layers[str(more)](nnf.interpolate(x, scale_factor=2)))
        x = nnf.pixel_shuffle(layers["22"](torch.relu(x)), self.patch)
        # The first latent frame is of one frame alone: the others of its frames precede the video.
        return x.unflatten(0, (videos, -1)).transpose(1, 2)[:, :, self.temporal - 1 :].clamp(0, 1)


def read_tiny(path: str, geometry: Geometry, *, weights: bool = True) -> TinyDecoder:
    """The decoder of a file, float32.

    Args:
        path: A .safetensors or .pth file.
        geometry: Of the teacher whose latents it decodes.
        weights: Whether the weights are read; without them the decoder is on the meta device.

    Raises:
        GuidedCDError: The file is missing, damaged, of another layout, or for other latents.
    """
    file = exists(path, WHAT, WHERE)
    state = open_weights(file, WHAT)
    decoder = skeleton(lambda: _of_shapes(state, str(file)))
    stated = (decoder.channels, decoder.temporal, decoder.spatial)
    expected = (geometry.channels, geometry.temporal_compression, geometry.compression)
    if stated != expected:
        sizes = [f"{channels} channels, {time} frames and {side} pixels" for channels, time, side in (stated, expected)]
        raise GuidedCDError(
            f"{WHAT} {file} decodes latents of {sizes[0]} per latent, the teacher has {sizes[1]}: use that of its "
            "autoencoder."
        )
    fill(decoder, state if weights else None, what=f"{WHAT} {file}", unused=lambda key: key.startswith("encoder."))
    return decoder


def _of_shapes(state: Mapping[str, Tensor], file: str) -> TinyDecoder:
    """A decoder of the sizes of a file's weights."""
    keys = ("decoder.1.weight", *(f"decoder.{stage[-1]}.weight" for stage in STAGES))
    more = tuple(f"decoder.{stage[-2]}.conv.weight" for stage in STAGES)
    sizes = {key: tuple(state[key].shape) for key in (*keys, *more, "decoder.22.weight") if key in state}
    if len(sizes) < len(keys) + len(more) + 1 or any(len(size) != 4 for size in sizes.values()):
        raise GuidedCDError(f"{WHAT} {file} has not the layers of TAEHV's decoder: {WHERE}.")
    widths = tuple(sizes[key][0] for key in keys)
    factors = tuple(sizes[key][0] // max(sizes[key][1], 1) for key in more)
    patch = round((sizes["decoder.22.weight"][0] / 3) ** 0.5)
    return TinyDecoder(widths, factors, sizes[keys[0]][1], max(patch, 1))  # type: ignore[arg-type]  # of 4 and of 3
