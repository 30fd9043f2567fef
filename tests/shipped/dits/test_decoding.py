"""Decoding for rewards: each policy against the autoencoder of diffusers, in values, gradients and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from guidedcd_dits import WanConfig
from safetensors.torch import save_file
from torch import Tensor

import guidedcd
from guidedcd import GuidedCDError
from guidedcd.config.kinds import Chosen
from guidedcd.models.checkpoints.tiny_autoencoder import TinyDecoder
from guidedcd.models.teachers.contract import decoded_frames
from guidedcd.plugins.configs import RewardConfig
from guidedcd.plugins.decode_policies import DecodePolicy
from guidedcd.rewards.scorer import RewardScorer

FRAMES = 33
ALL = [(family, name) for family, sizes in tiny_pipelines.SIZES.items() for name in sizes]
EVERY = pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*one, marks=[] if one[1] == "small" else pytest.mark.slow, id="-".join(one)) for one in ALL],
)
EACH = pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[] if one == "wan" else pytest.mark.slow) for one in tiny_pipelines.SIZES]
)


@pytest.fixture
def teacher(tiny) -> Callable[..., Any]:
    """A function from (family, name, policy) to a teacher of long videos, whose autoencoder has float64 weights."""

    def make(family: str, name: str = "small", decode: str = "full", **size: int) -> Any:
        one = tiny(family, name)
        size = {**one.size, "height": 32, "width": 32, "frames": FRAMES, **size}
        if (family, name) == ("wan", "tokens"):
            size["height"] = 64
        loaded = guidedcd.load_teacher(f"{family}:{one.folder}", device="cpu", size=size).teacher
        loaded.vae.double()
        loaded.policy = DecodePolicy.parse(decode)
        return loaded

    return make


def latents(teacher: Any, count: int = 1, seed: int = 0) -> Tensor:
    """Random clean latents that need a gradient."""
    shape = (count, *teacher.geometry.latent_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


def stock(teacher: Any, z: Tensor) -> Tensor:
    """All frames by diffusers' autoencoder alone."""
    own = teacher.denormalized(z[:, :, teacher.geometry.latent_padding :])
    times = (torch.zeros(len(z)).double(),) if getattr(teacher.vae.config, "timestep_conditioning", False) else ()
    return (teacher.vae.decode(own, *times).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)


def gradient(pixels: Tensor, z: Tensor) -> Tensor:
    """The gradient of a weighted sum of pixels."""
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).double()
    (result,) = torch.autograd.grad((pixels * weights).sum(), z)
    return result


def error(one: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float(((one - reference).norm() / reference.norm()).detach())


@contextlib.contextmanager
def saved_bytes() -> Iterator[dict[str, int]]:
    """Count the bytes that autograd saves for the backward pass, each storage once."""
    counted, seen = {"bytes": 0}, {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage  # kept alive, so that no address occurs twice
            counted["bytes"] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted


@EVERY
@pytest.mark.parametrize("method", ["decode", "decode_recomputing"])
def test_full_equals_diffusers_in_values_and_gradients(teacher, family, name, method):
    """`full` gives the frames and the gradient of the autoencoder, also where activations are computed again."""
    one = teacher(family, name)
    z, frames = latents(one), [2, 17, 31]
    expected = stock(one, z)[:, frames]
    pixels = getattr(one, method)(z, frames)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(pixels, z), gradient(expected, z), rtol=1e-9, atol=1e-12)


@EACH
def test_the_error_of_a_window_falls_to_zero(teacher, family):
    """A wider window has a smaller error in pixels; with all latent frames, pixels and gradients have none."""
    one = teacher(family)
    z, frame = latents(one), FRAMES - 6
    expected = stock(one, z)[:, [frame]]
    exact = gradient(expected, z)
    errors = []
    for size in (2, 4, 6, one.geometry.latent_frames):
        one.policy = DecodePolicy.parse(f"window:{size}")
        pixels = one.decode(z, [frame])
        errors.append((error(pixels, expected), error(gradient(pixels, z), exact)))
    values, gradients = zip(*errors, strict=True)
    assert values[0] > 0.01 and values[2] < 0.8 * values[0] and gradients[0] > 0.01
    assert all(value <= 1.5 * min(values[: k + 1]) for k, value in enumerate(values))
    assert values[-1] < 1e-12 and gradients[-1] < 1e-9


@EACH
def test_a_window_has_the_gradient_of_its_own_latent_frames(teacher, family):
    """Latents outside of the window have the gradient 0, and recomputing changes neither pixels nor gradient."""
    one = teacher(family, decode="window:3")
    z, frames = latents(one, count=2), torch.tensor([[FRAMES - 3, FRAMES - 2], [FRAMES - 1, FRAMES - 2]])
    pixels = one.decode(z, frames)
    assert pixels.shape == (2, 2, 3, 32, 32)
    torch.testing.assert_close(pixels[0, 1], one.decode(z, [FRAMES - 2])[0, 0])
    exact = gradient(pixels, z)
    slopes = exact.abs().amax(dim=(0, 1, 3, 4))
    assert (slopes[:-3] == 0).all() and (slopes[-2:] > 0).all()
    again = one.decode_recomputing(z, frames)
    torch.testing.assert_close(again, pixels, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(again, z), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "name"), [("wan", "small"), ("wan", "tokens"), ("cogvideox", "small"), ("ltx", "terminal")]
)
def test_the_first_latent_frame_of_a_causal_autoencoder_is_exact(teacher, family, name):
    """`first` gives frame 0 of the whole video and its gradient, and refuses other frames."""
    one = teacher(family, name, "first")
    z = latents(one)
    expected = stock(one, z)[:, :1]
    pixels = one.decode(z, [0])
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(pixels, z), gradient(expected, z), rtol=1e-9, atol=1e-12)
    assert decoded_frames(one) == 1
    with pytest.raises(ValueError, match="decodes frame 0 alone"):
        one.decode(z, [0, 3])


@EACH
def test_without_chosen_frames_every_policy_decodes_in_full(teacher, family):
    """Samples and evaluations are the autoencoder's, and `decode_exactly` gives its frames."""
    one = teacher(family, decode="first")
    z = latents(one).detach()
    assert torch.equal(one.decode(z), stock(one, z))
    assert torch.equal(one.decode_exactly(z, [4, 9]), stock(one, z)[:, [4, 9]])


def test_the_decoder_of_a_forward_pass_is_exact(tiny, teacher):
    """The decoder of a forward pass, of which scores are stored, is exact, so that no store depends on the policy."""
    one, full = teacher("wan", decode="window:2"), teacher("wan")
    assert one.fingerprint() == full.fingerprint()
    seen = one.seen(latents(one).detach().float(), torch.tensor([500]), one.embed(["a ball"]))
    assert torch.equal(seen.decode([20]), one.decode_exactly(seen.x0, [20]))


@EACH
def test_autograd_saves_less_than_in_diffusers(teacher, family):
    """Autograd saves less for `full` than in diffusers, and less again for a window and where it recomputes."""
    one = teacher(family)
    z, frames, saved = latents(one), [FRAMES - 2], {}
    for name, call in {
        "stock": lambda: stock(one, z)[:, frames],
        "full": lambda: one.decode(z, frames),
        "recomputing": lambda: one.decode_recomputing(z, frames),
    }.items():
        with saved_bytes() as counted:
            call()
        saved[name] = counted["bytes"]
    one.policy = DecodePolicy.parse("window:3")
    with saved_bytes() as counted:
        one.decode(z, frames)
    assert saved["full"] < 0.7 * saved["stock"]
    assert saved["recomputing"] < 0.7 * saved["full"]
    assert counted["bytes"] < 0.6 * saved["full"]


class Bright(torch.nn.Module):
    """A reward: the mean of its frames."""

    max_tokens = 100

    def count_tokens(self, text: str) -> int:
        """The number of words."""
        return len(text.split())

    def forward(self, frames: Tensor, captions: list[str]) -> Tensor:
        """Means (B,)."""
        self.received = frames
        return frames.flatten(1).mean(1)


def scored(one: Any, count: int, **options: Any) -> Tensor:
    """The frames that a reward of `count` frames receives of one video."""
    reward = Bright()
    scorer = RewardScorer({"bright": (reward, RewardConfig(frames=count))}, one, **options)
    routes = [guidedcd.Route(caption="a ball", rewards=frozenset({"bright"}))]
    scorer(latents(one), routes, torch.Generator().manual_seed(0))
    return reward.received


def test_rewards_read_what_the_policy_decodes_and_judges_the_whole_video(teacher):
    """With `first` a reward receives frame 0, and two frames are refused; a judge chooses from all frames."""
    one = teacher("wan", decode="first")
    exact = stock(one, latents(one))[0]
    assert torch.equal(scored(one, 1)[0], exact[:1])
    assert torch.equal(scored(one, 1, low_memory=True)[0], exact[:1])
    with pytest.raises(GuidedCDError, match="2 frames are wanted of videos with 1"):
        scored(one, 2)
    judged = scored(one, 2, exact=True)[0]
    assert all(any(torch.equal(frame, other) for other in exact) for frame in judged)


def test_a_reward_of_frames_that_are_not_decoded_is_refused_before_the_store(tiny):
    """With `first`, a reward of two frames is one sentence when it is rehearsed, and `full` passes."""
    from guidedcd.config.resolve import run_from_dict
    from guidedcd.rewards.contract import rehearse

    one = tiny("wan", "small")
    run = run_from_dict(
        {
            "teacher": {"wan": {"path": str(one.folder), **one.size, "decode": "first"}},
            "data": [{"shapes": {"size": 4}}],
            "rewards": {"motion": {"frames": 2}},
        }
    )
    assert run.teacher.config.decode == "first"  # as run.json records it
    built = guidedcd.load_teacher(run.teacher, device="cpu").teacher
    with pytest.raises(GuidedCDError, match="reads 2 frames, and of a video only the first one is decoded"):
        rehearse({"motion": Bright()}, run, built.geometry, torch.device("cpu"), built)
    built.policy = DecodePolicy()
    rehearse({"motion": Bright()}, run, built.geometry, torch.device("cpu"), built)


def tiny_state(channels: int, factors: tuple[int, int, int], patch: int = 1) -> dict[str, Tensor]:
    """Random weights of a tiny autoencoder with its encoder's, as published files have them."""
    torch.manual_seed(3)
    decoder = TinyDecoder((12, 8, 6, 4), factors, channels, patch)
    return {**decoder.state_dict(), "encoder.0.weight": torch.zeros(4, 3, 3, 3)}


def frame_by_frame(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """TAEHV's decoder for one video (L, C, h, w), written as a recursion over frames: all frames (n, 3, H, W)."""

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        weight, bias = state[f"decoder.{name}.weight"].double(), state.get(f"decoder.{name}.bias")
        return torch.nn.functional.conv2d(x, weight, None if bias is None else bias.double(), padding=padding)

    memory: dict[int, Tensor] = {}

    def block(x: Tensor, number: int) -> Tensor:
        y = torch.cat([x, memory.get(number, torch.zeros_like(x))], dim=1)
        memory[number] = x
        y = conv(conv(conv(y, f"{number}.conv.0").relu(), f"{number}.conv.2").relu(), f"{number}.conv.4")
        return (y + x).relu()

    def stage(x: Tensor, first: int) -> Iterator[Tensor]:
        if first > 15:
            yield torch.nn.functional.pixel_shuffle(conv(x.relu(), "22"), 1)
            return
        for number in range(first, first + 3):
            x = block(x, number)
        x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{first + 4}.conv", 0)
        width = state[f"decoder.{first}.conv.4.bias"].shape[0]
        for frame in x.split(width, dim=1):
            yield from stage(conv(frame, f"{first + 5}"), first + 6)

    frames = [frame for one in z.double() for frame in stage(conv(3 * torch.tanh(one[None] / 3), "1").relu(), 3)]
    return torch.cat(frames)


def with_tiny(one: Any, file: Path) -> Any:
    """A teacher of 13 frames that decodes by the tiny autoencoder of a file."""
    config = WanConfig(path=str(one.folder), frames=13, height=16, width=32, decode=f"tiny:{file}")
    return guidedcd.load_teacher(Chosen("wan", config), device="cpu").teacher


def test_the_tiny_decoder_is_taehvs(tmp_path, tiny):
    """Its frames equal a recursion over frames without the first t - 1, clamped; later latents do not matter."""
    one, state = tiny("wan", "small"), tiny_state(4, (1, 2, 2))
    save_file(state, tmp_path / "tiny.safetensors")
    loaded = with_tiny(one, tmp_path / "tiny.safetensors")
    loaded.vae.double()
    z = latents(loaded)
    expected = frame_by_frame(state, z[0].transpose(0, 1))[3:].clamp(0, 1)
    pixels = loaded.decode(z, [0, 5, 6])[0]
    assert (expected > 0).double().mean() > 0.05
    torch.testing.assert_close(pixels, expected[[0, 5, 6]], rtol=0, atol=1e-9)
    slopes = gradient(loaded.decode(z, [6]), z).abs().amax(dim=(0, 1, 3, 4))
    assert (slopes[:3] > 0).all() and slopes[3] == 0
    assert torch.equal(loaded.decode(z), stock(loaded, z))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_tiny_autoencoder_that_does_not_fit_is_one_sentence(tmp_path, tiny, suffix):
    """A missing file, one of other keys, of other latents or with a key too many are errors that name the file."""
    one, file = tiny("wan", "small"), tmp_path / f"tiny.{suffix}"

    def refused(state: dict[str, Tensor] | None) -> str:
        if state is not None:
            save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
        with pytest.raises(GuidedCDError) as caught:
            with_tiny(one, file)
        text = str(caught.value)
        assert str(file) in text and "\n" not in text
        return text

    assert "is not at" in refused(None) and "taew2_1" in refused(None)
    assert "layers of TAEHV" in refused({"decoder.1.weight": torch.zeros(4, 4, 3, 3)})
    assert "6 channels, 4 frames" in refused(tiny_state(6, (1, 2, 2)))
    assert "4 channels, 2 frames" in refused(tiny_state(4, (1, 1, 2)))
    assert "16 pixels" in refused(tiny_state(4, (1, 2, 2), patch=2))
    assert "decoder.9.more" in refused({**tiny_state(4, (1, 2, 2)), "decoder.9.more": torch.zeros(1)})
    short = tiny_state(4, (1, 2, 2))
    del short["decoder.10.conv.2.bias"]
    assert "decoder.10.conv.2.bias" in refused(short)


@pytest.mark.parametrize("text", ["none", "window", "window:1", "window:two", "first:2", "tiny", "tiny:", "full:3"])
def test_an_unknown_policy_is_one_sentence(text):
    """A value that is no policy is refused when the option is read, with all forms."""
    with pytest.raises(ValueError, match="'decode' is .*; it must be full, window:K .*, first, or tiny:FILE"):
        WanConfig(decode=text)
    for valid in ("full", "first", "window:2", "tiny:a:b.pth"):
        assert str(DecodePolicy.parse(valid)) == valid
