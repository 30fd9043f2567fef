"""The proving ground as components: teacher, dataset and metric."""

from __future__ import annotations

import copy

import pytest
import torch
from guidedcd_shapes import attention, drawing, models, prompts, world

from guidedcd.data.clips import Clip, ClipError, Prompt
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins

GEOMETRY = Geometry(frames=8, height=48, width=48, fps=8.0, compression=4)
needs_weights = pytest.mark.skipif(not (models.WEIGHTS / "unet.safetensors").exists(), reason="no embedded weights")


def component(kind: str, name: str, **options):
    """A built component."""
    component = load_plugins().get(kind, name)
    return component.build(component.config(**options))


@pytest.fixture(scope="module")
def teacher():
    """The embedded teacher."""
    return component("teacher", "shapes")


@needs_weights
def test_the_teacher_is_stock_and_small(teacher):
    """Stock classes, weights of a few megabytes, latents of the stated shape, prompts of 128 tokens."""
    files = {path.name: path.stat().st_size / 2**20 for path in models.WEIGHTS.glob("*.safetensors")}
    scenes = world.pack([world.Scene(**prompts.evaluation_prompts(1)[0].scene)])
    video = drawing.render(scenes, generator=torch.Generator().manual_seed(0))
    z = teacher.encode(video)

    assert type(teacher.network).__name__ == "UNet3DConditionModel"
    assert max(files.values()) < 16 and sum(files.values()) < 22
    assert tuple(z.shape[1:]) == teacher.geometry.latent_shape == models.LATENT
    assert (teacher.decode(z, [0, 5]) - video[:, [0, 5]]).abs().mean() < 0.02
    assert teacher.embed(["a red star"])["prompt_embeds"].shape == (1, 128, models.WIDTH)
    assert teacher.schedule.prediction == "v"


@needs_weights
def test_fast_paths_are_exact(teacher):
    """Processors and convolutions give the stock network's output, also in a deep copy, and change no key."""
    stock, z = models.load("unet"), torch.randn(1, *models.LATENT, generator=torch.Generator().manual_seed(0))
    inputs = z, torch.tensor([500]), teacher.embed(["a red star moving left"])["prompt_embeds"]
    keys = list(stock.state_dict())
    with torch.no_grad():
        expected = stock(*inputs, return_dict=False)[0]
        prediction = teacher.net(z, inputs[1], {"prompt_embeds": inputs[2]})
    fast = copy.deepcopy(attention.speed_up(stock, 8))
    with torch.no_grad():
        again = fast(*inputs, return_dict=False)[0]
        torch.nn.init.zeros_(stock.conv_out.weight)

    assert (prediction - expected).abs().max() < 1e-5
    assert (again - expected).abs().max() < 1e-5
    assert list(fast.state_dict()) == keys


def test_a_folder_without_weights_is_refused(tmp_path):
    """The message names the missing files and the way to make them."""
    with pytest.raises(GuidedCDError, match=r"lacks vae.safetensors.*guidedcd_shapes.recipe"):
        component("teacher", "shapes", path=str(tmp_path))


def test_clips_are_the_same_at_every_reading():
    """Clip i depends on seed and set alone; the mixture has three web clips for each dense one."""
    mix, longer, other = (
        component("dataset", "shapes", **o).open(GEOMETRY) for o in ({}, {"size": 30000}, {"seed": 1})
    )
    first, again = mix[3], longer[3]

    assert torch.equal(first.video, again.video) and first.caption == again.caption
    assert other[3].caption != first.caption
    assert [mix[i].tags["set"] for i in range(4)] == ["web", "web", "web", "dense"]
    with pytest.raises(IndexError):
        mix[len(mix)]


@pytest.mark.parametrize("kind", ["web", "dense"])
def test_clips_have_captions_and_motion_of_their_kind(kind):
    """Web clips have a short caption that equals their caption, dense ones only a long one; motion is their speed."""
    clips = component("dataset", "shapes", set=kind).open(GEOMETRY)
    read = [clips[i] for i in range(40)]

    assert all(clip.video.shape == GEOMETRY.pixel_shape for clip in read)
    assert all((clip.short_caption == clip.caption) == (kind == "web") for clip in read)
    assert all((len(clip.caption.split()) > 77) == (kind == "dense") for clip in read)
    assert len({clip.id for clip in read}) == len(read)
    assert 2 < sum(clip.motion for clip in read) / len(read) < 3


def test_clips_fit_other_teachers():
    """A geometry with other frames and sizes gets resampled clips."""
    geometry = Geometry(frames=5, height=32, width=64, fps=8.0)
    video = component("dataset", "shapes").open(geometry)[0].video

    assert video.shape == geometry.pixel_shape
    assert video.min() >= -0.01 and video.max() <= 1.01


def test_broken_videos_are_clip_errors():
    """A clip refuses videos of another layout or dtype, and the message names the clip."""
    for video in (torch.zeros(8, 48, 48, 3), torch.zeros(8, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ClipError, match="clip 'a1'"):
            Clip(id="a1", dataset="d", caption="c", video=video)


def test_the_metric_judges_only_what_is_named():
    """True videos score 1; unnamed motion is NaN and cannot spoil `all`; unknown prompts are NaN throughout."""
    chosen = [
        *prompts.evaluation_prompts(6, 2, "full"),
        *prompts.evaluation_prompts(6, 2, "no-motion"),
        Prompt(text="a dog"),
    ]
    video = drawing.render(prompts.truth(chosen[:-1]), generator=torch.Generator().manual_seed(0))
    video[6:] = video[6:, :1]  # still, in contrast to the scene
    metric = component("metric", "shapes-oracle")
    scores = metric(torch.cat([video, video[:1]]), chosen)

    assert scores["all"][:12].tolist() == [1.0] * 12
    assert scores["motion"][6:].isnan().all() and not scores["motion"][:6].isnan().any()
    assert all(value[12].isnan() for value in scores.values())
    assert metric.applies(chosen[0]) and not metric.applies(chosen[-1])


def test_motion_is_also_measured_on_intact_videos_alone():
    """A torn object counts as fast, so that its video is not intact and adds nothing to the speed of intact ones."""
    slow = prompts.evaluation_prompts(24, 5, "full", 0.0)
    video = drawing.render(prompts.truth(slow), generator=torch.Generator().manual_seed(0))
    torn = video.clone()
    for frame in range(0, 8, 2):  # every second frame has its left and right halves exchanged
        torn[:, frame] = torn[:, frame].roll(24, dims=-1)
    scores = component("metric", "shapes-oracle")(torch.cat([video, torn]), slow + slow)

    whole, broken = scores["intact"].chunk(2)
    assert whole.mean() > 0.9 > 0.6 > broken.mean()
    assert scores["speed"][24:].mean() > 2 * scores["speed"][:24].mean()
    assert torch.equal(scores["intact-speed"].isnan(), scores["intact"] == 0)
    counted = scores["intact"] == 1
    assert torch.equal(scores["intact-speed"][counted], scores["speed"][counted])
    assert torch.equal(scores["intact-dynamic"][counted] == 1, scores["speed"][counted] > 1.125)
