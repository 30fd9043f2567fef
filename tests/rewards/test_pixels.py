"""Pixel preparation against torchvision, and the rules that the published pipelines break."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from guidedcd.rewards import pixels

BICUBIC = v2.InterpolationMode.BICUBIC
sides = st.integers(5, 90)
sizes = st.integers(8, 40)
few = settings(max_examples=30, deadline=None)


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise (1, 3, height, width) in [0, 1]."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@few
@given(sides, sides, sizes, st.booleans())
def test_clip_is_torchvisions_squash(height, width, size, antialias):
    """CLIP's preparation is torchvision's Resize to a square and Normalize, to 1e-5."""
    published = v2.Compose(
        [
            v2.Resize((size, size), BICUBIC, antialias=antialias),
            v2.Normalize(pixels.CLIP_MEAN, pixels.CLIP_STD),
        ]
    )
    x = image(height, width)
    torch.testing.assert_close(pixels.clip(x, size, antialias), published(x), atol=1e-5, rtol=0)


@few
@given(sides, sides, sizes)
def test_image_reward_is_torchvisions_resize_and_crop(height, width, size):
    """ImageReward's preparation is torchvision's Resize of the shortest side, CenterCrop and Normalize, to 1e-5."""
    published = v2.Compose(
        [v2.Resize(size, BICUBIC), v2.CenterCrop(size), v2.Normalize(pixels.CLIP_MEAN, pixels.CLIP_STD)]
    )
    x = image(height, width)
    torch.testing.assert_close(pixels.image_reward(x, size), published(x), atol=1e-5, rtol=0)


@few
@given(sides, sides, sizes)
def test_hps_pads_every_image_to_a_square_of_black(height, width, size):
    """HPS's preparation is always square; what surrounds the image is black, floor(pad / 2) of it above and left."""
    out = pixels.hps(image(height, width) * 0.5 + 0.25, size)
    tall, wide = pixels.scaled(height, width, size, "longest")
    top, left = (size - tall) // 2, (size - wide) // 2
    black = pixels.normalise(torch.zeros(1, 3, 1, 1), pixels.CLIP_MEAN, pixels.CLIP_STD)
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[top : top + tall, left : left + wide] = True
    assert out.shape == (1, 3, size, size)
    assert (out[..., ~inside] == black[..., 0]).all()
    assert not (out[..., inside] == black[..., 0]).all(1).any()


@few
@given(sides, sides, sizes, st.integers(0, 2**31))
def test_random_crops_lie_inside_and_repeat(height, width, size, seed):
    """A drawn crop is a window of the resized video, the same for all frames, and repeats with its generator."""
    video = image(height, width).expand(3, 3, height, width)
    first, again = (pixels.internvideo2(video, size, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first.shape == (3, 3, size, size)
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    whole = pixels.resize(video[:1], *pixels.scaled(height, width, size, "shortest"))
    whole = pixels.normalise(whole, pixels.IMAGENET_MEAN, pixels.IMAGENET_STD)
    windows = whole.unfold(-2, size, 1).unfold(-2, size, 1)
    assert (windows == first[0][None, :, None, None]).all((1, -1, -2)).any()


def test_crops_are_drawn_uniformly():
    """Every offset of a crop with 4 pixels of room comes up about equally often; nothing is drawn without room."""
    generator = torch.Generator().manual_seed(0)
    drawn = [pixels.draw(8, 12, 8, generator) for _ in range(2000)]
    counts = torch.bincount(torch.tensor([left for _, left in drawn]))
    assert {top for top, _ in drawn} == {0}
    assert len(counts) == 5
    assert (counts - 400).abs().max() < 80


@pytest.mark.parametrize(
    ("shape", "size", "side", "result"),
    [
        ((320, 512), 224, "longest", (140, 224)),
        ((480, 720), 224, "longest", (149, 224)),
        ((480, 832), 224, "longest", (129, 224)),
        ((576, 1024), 224, "longest", (126, 224)),
        ((84, 45), 42, "longest", (42, 22)),
        ((84, 43), 42, "longest", (42, 22)),
        ((320, 512), 224, "shortest", (224, 358)),
        ((480, 832), 224, "shortest", (224, 388)),
        ((1, 1000), 8, "longest", (1, 8)),
    ],
)
def test_sizes_round_half_to_even(shape, size, side, result):
    """Sides are rounded as Python's round() does, half to even, and never vanish."""
    assert pixels.scaled(*shape, size, side) == result


def test_sides_that_already_fit_are_still_padded_and_cropped():
    """An image with one side already right becomes square; the published omission is there only on request."""
    x = image(24, 17)
    assert pixels.hps(x, 24).shape == (1, 3, 24, 24)
    assert pixels.hps(x, 24, always_pad=False).shape == (1, 3, 24, 17)
    assert pixels.internvideo2(x, 17).shape == (1, 3, 17, 17)
    assert pixels.internvideo2(x, 17, always_crop=False).shape == (1, 3, 24, 17)


@pytest.mark.parametrize("prepare", [pixels.hps, pixels.clip, pixels.image_reward, pixels.internvideo2])
def test_gradient_reaches_the_pixels_in_any_dtype(prepare):
    """Every preparation is float32 and differentiable, from float32 and bfloat16, with any leading dimensions."""
    for dtype in (torch.float32, torch.bfloat16):
        x = image(20, 30).expand(2, 2, 3, 20, 30).to(dtype).clone().requires_grad_()
        out = prepare(x, 16)
        assert out.shape == (2, 2, 3, 16, 16)
        assert out.dtype == torch.float32
        (out**2).sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad[..., 4:-4, 8:-8].abs().min() > 0


def test_right_size_is_left_alone():
    """A square of the right size is only normalised: no resampling error at all."""
    x = image(16, 16)
    plain = pixels.normalise(x, pixels.CLIP_MEAN, pixels.CLIP_STD)
    assert torch.equal(pixels.hps(x, 16), plain)
    assert torch.equal(pixels.clip(x, 16), plain)
    assert torch.equal(pixels.clip(x, 16, antialias=False), plain)
