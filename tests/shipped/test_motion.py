"""The reward `motion`: real motion of shapes raises it, noise and flicker do not."""

from __future__ import annotations

import random

import attrs
import pytest
import torch
import torch.nn.functional as nnf
from guidedcd_motion import MotionConfig
from guidedcd_motion.reward import Motion, speed
from guidedcd_shapes import drawing, models, world
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks_of

SCENES = 24


def shapes(velocity: int | None) -> torch.Tensor:
    """Videos (24, 8, 3, 48, 48) of the same scenes, still, or moving straight with a speed of the world."""
    scenes, chooser = [], random.Random(0)
    for _ in range(SCENES):
        scene = world.sample_scene(chooser, "uniform", two=0.0, unseen=None)
        moves = {"motion": world.STILL} if velocity is None else {"motion": chooser.randint(1, 4), "speed": velocity}
        scenes.append(attrs.evolve(scene, **moves))
        chooser = random.Random(len(scenes))  # the next scene does not depend on the motion of this one
    generator = torch.Generator().manual_seed(0)
    return drawing.render(world.pack(scenes), False, generator, models.variety())


@pytest.fixture(scope="module")
def still():
    """Scenes without motion."""
    return shapes(None)


@pytest.fixture(scope="module")
def speeds():
    """The measured speed of each scene, by its speed in the world."""
    return [speed(shapes(velocity)) for velocity in range(3)]


def drawn(*shape: int) -> torch.Tensor:
    """Normal numbers for 24 videos of 8 frames."""
    return torch.randn(SCENES, 8, *shape, generator=torch.Generator().manual_seed(1))


def blocks(mode: str) -> torch.Tensor:
    """Numbers for blocks of 8 x 8 pixels, which change independently in every frame."""
    return nnf.interpolate(drawn(3, 6, 6).flatten(0, 1), size=(48, 48), mode=mode).unflatten(0, (SCENES, 8))


FLICKER = {
    "weak noise": lambda video: video + 0.05 * drawn(3, 48, 48),
    "strong noise": lambda video: video + 0.3 * drawn(3, 48, 48),
    "noise alone": lambda video: drawn(3, 48, 48).sigmoid(),
    "brightness": lambda video: video + 0.2 * drawn(1, 1, 1),
    "colour": lambda video: video + 0.2 * drawn(3, 1, 1),
    "contrast": lambda video: video * (1 + 0.3 * drawn(1, 1, 1).tanh()),
    "blocks": lambda video: video + 0.1 * blocks("nearest"),
    "clouds": lambda video: video + 0.1 * blocks("bicubic"),
    "inverted frames": lambda video: torch.where(torch.arange(8).view(8, 1, 1, 1) % 2 == 0, video, 1 - video),
}


@pytest.mark.parametrize("change", FLICKER.values(), ids=FLICKER)
def test_noise_and_flicker_are_no_motion(still, speeds, change):
    """Still scenes with noise or flicker have a tenth of the speed of slow shapes on average, and each is slower."""
    measured = speed(change(still).clamp(0, 1))
    assert measured.mean() < 0.1 * speeds[0].mean()
    assert (measured < speeds[0]).all()


def test_faster_shapes_have_more_speed(speeds):
    """The mean speed follows 0.8, 1.8 and 3 pixels of 48, and is at least 0.8 of them."""
    means = [one.mean().item() for one in speeds]
    assert all(0.8 * pixels / 48 < mean < pixels / 48 for mean, pixels in zip(means, world.VELOCITY, strict=True))


def test_noise_hides_motion_rather_than_adding_to_it(speeds):
    """Noise on moving shapes lowers their measured speed by at most a half."""
    noisy = speed((shapes(1) + 0.1 * drawn(3, 48, 48)).clamp(0, 1)).mean()
    assert 0.5 * speeds[1].mean() < noisy < 1.1 * speeds[1].mean()


def texture(shift_x: float, shift_y: float, frames: int = 3) -> torch.Tensor:
    """A video (1, frames, 3, 64, 64) of a smooth pattern that moves by these pixels per frame."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = []
    for number in range(frames):
        u, v = x - shift_x * number, y - shift_y * number
        images.append(torch.stack([(u / 5).sin() * (v / 6).cos(), (u / 7 + v / 4).sin(), (v / 5 - u / 9).cos()]))
    return (0.5 + 0.2 * torch.stack(images))[None]


@settings(max_examples=8, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.4, 2), st.floats(-0.1, 0.1))
def test_the_speed_of_a_moving_pattern_is_its_displacement(shift_x, shift_y, contrast, brightness):
    """A pattern that moves by d pixels has 0.75 to 1.05 times the speed d / 64, of any contrast and brightness."""
    video = (texture(shift_x, shift_y) - 0.5) * contrast + 0.5 + brightness
    expected = (shift_x**2 + shift_y**2) ** 0.5 / 64
    assert 0.75 * expected - 1e-3 < speed(video).item() < 1.05 * expected + 1e-3


def test_the_motion_reward_has_a_maximum():
    """It rises up to the target, is 0 up to exp(margin) times the target, and falls beyond."""
    reward = Motion(MotionConfig(target=0.01, margin=0.5))
    values = [reward(texture(pixels, 0.0), ["a"]).item() for pixels in (0.0, 0.3, 0.6, 0.9, 2.5, 3.0)]
    assert values[0] < values[1] < values[2] < values[3] == 0 > values[4] > values[5]


def test_the_gradient_raises_the_speed(still):
    """A step along the gradient raises the speed of noise, too; frames without any change have a finite gradient."""
    video = (still + 0.05 * drawn(3, 48, 48)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(Motion(MotionConfig())(video, [""] * SCENES).sum(), video)
    step = 0.01 * gradient / gradient.abs().amax((1, 2, 3, 4), keepdim=True)
    assert (speed(video + step) > speed(video)).all()
    grey = torch.full((1, 8, 3, 48, 48), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(Motion(MotionConfig())(grey, [""]).sum(), grey)
    assert gradient.isfinite().all()


def test_conformance():
    """It passes every check of a reward."""
    for check in checks_of(load_plugins().get("reward", "motion"), installation=False):
        check()
