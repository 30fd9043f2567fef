"""Preparation of pixels for reward models, as in their published pipelines; differentiable.

Images are (..., 3, H, W) float in [0, 1]; leading dimensions stay. Bicubic values may leave [0, 1] and are not
clamped, as in the published tensor pipelines. All results are float32, for any dtype of the input.

`antialias=True` is torchvision's bicubic interpolation since 0.17 (a = -0.5); `antialias=False` is its former one for
tensors (a = -0.75).
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd.devices import tensor_like

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Offsets = tuple[int, int]
"""Top and left of a crop, pixels."""


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(images - mean) / std per channel, float32."""
    images = images.float()
    means, stds = (tensor_like(values, images).view(-1, 1, 1) for values in (mean, std))
    return (images - means) / stds


def resize(images: Tensor, height: int, width: int, antialias: bool = True) -> Tensor:
    """Resize bicubically to (..., 3, height, width), float32; images of that size stay the same."""
    images = images.float()
    if images.shape[-2:] == (height, width):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    flat = nnf.interpolate(flat, size=(height, width), mode="bicubic", align_corners=False, antialias=antialias)
    return flat.reshape(*images.shape[:-2], height, width)


def pad_to(images: Tensor, size: int) -> Tensor:
    """Pad images of at most `size` with zeros to (..., 3, size, size); an odd remainder goes right and below."""
    tall, wide = size - images.shape[-2], size - images.shape[-1]
    return nnf.pad(images, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))


def crop(images: Tensor, size: int, offsets: Offsets) -> Tensor:
    """The crop (..., 3, size, size) with its top left corner at `offsets`."""
    top, left = offsets
    return images[..., top : top + size, left : left + size]


def scaled(height: int, width: int, size: int, side: str) -> tuple[int, int]:
    """Height and width after the `side` ("longest" or "shortest") becomes `size`; rounded half to even, at least 1."""
    scale = size / {"longest": max, "shortest": min}[side](height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def centre(height: int, width: int, size: int) -> Offsets:
    """Offsets of the central crop, rounded down."""
    return (height - size) // 2, (width - size) // 2


def draw(height: int, width: int, size: int, generator: torch.Generator) -> Offsets:
    """Offsets of a uniformly drawn crop; a side without room uses no random number."""

    def along(room: int) -> int:
        if not room:
            return 0
        return int(torch.randint(0, room + 1, (1,), generator=generator, device=generator.device))

    return along(height - size), along(width - size)


def hps(images: Tensor, size: int = 224, antialias: bool = True, *, always_pad: bool = True) -> Tensor:
    """HPSv2: the longest side becomes `size`, black padding to a square, then CLIP's normalisation.

    Args:
        images: (..., 3, H, W) in [0, 1].
        size: Height and width of the result, pixels.
        antialias: See the module.
        always_pad: False leaves an image whose longest side already is `size` unpadded, as the published code does
            (its model then fails on it).

    Returns:
        (..., 3, size, size) float32.
    """
    height, width = images.shape[-2:]
    images = resize(images, *scaled(height, width, size, "longest"), antialias)
    if always_pad or max(height, width) != size:
        images = pad_to(images, size)
    return normalise(images, CLIP_MEAN, CLIP_STD)


def clip(images: Tensor, size: int = 224, antialias: bool = True) -> Tensor:
    """CLIP and PickScore: resized to a square for any aspect ratio, then CLIP's normalisation."""
    return normalise(resize(images, size, size, antialias), CLIP_MEAN, CLIP_STD)


def image_reward(images: Tensor, size: int = 224, antialias: bool = True) -> Tensor:
    """ImageReward: the shortest side becomes `size` (the other is truncated), central crop, CLIP's normalisation."""
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    other = int(size * long / short)
    images = resize(images, *((size, other) if height <= width else (other, size)), antialias)
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return normalise(crop(images, size, (top, left)), CLIP_MEAN, CLIP_STD)


def internvideo2(
    video: Tensor,
    size: int = 224,
    antialias: bool = True,
    *,
    offsets: Offsets | None = None,
    generator: torch.Generator | None = None,
    always_crop: bool = True,
) -> Tensor:
    """InternVideo2 and ViCLIP: the shortest side becomes `size`, one crop for all frames, ImageNet's normalisation.

    Args:
        video: (..., 3, H, W) in [0, 1].
        size: Height and width of the result, pixels.
        antialias: See the module.
        offsets: Top and left of the crop in the resized video, pixels.
        generator: Random numbers for the offsets if `offsets` is None; without it the crop is central.
        always_crop: False leaves a video whose shortest side already is `size` uncropped, as the published code does
            (its model then fails on it).

    Returns:
        (..., 3, size, size) float32.
    """
    height, width = video.shape[-2:]
    video = resize(video, *scaled(height, width, size, "shortest"), antialias)
    if always_crop or min(height, width) != size:
        if offsets is None:
            height, width = video.shape[-2:]
            offsets = draw(height, width, size, generator) if generator is not None else centre(height, width, size)
        video = crop(video, size, offsets)
    return normalise(video, IMAGENET_MEAN, IMAGENET_STD)
