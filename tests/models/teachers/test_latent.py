"""The base class of UNet teachers and its attention probes."""

from __future__ import annotations

import pytest
import torch

from guidedcd.diffusion.randomness import noise
from guidedcd.errors import GuidedCDError
from guidedcd.models.attention_probes import record, select_layers, temporal_layers
from guidedcd.testing.tiny_teacher import tiny_teacher


@pytest.fixture(scope="module")
def teacher():
    """One tiny teacher for all tests."""
    return tiny_teacher(frames=3)


@pytest.fixture(scope="module")
def latents(teacher):
    """Two noisy samples."""
    return noise(0, 0, (2, *teacher.geometry.latent_shape))


def test_geometry_names_latents_and_pixels(teacher):
    """Shapes follow from frames, pixels and the VAE's compression."""
    assert teacher.geometry.latent_shape == (4, 3, 8, 6)
    assert teacher.geometry.pixel_shape == (3, 3, 16, 12)


def test_encoding_is_deterministic_and_per_frame(teacher):
    """The posterior's mode: twice the same, and a frame's latent depends on that frame alone."""
    video = torch.rand(2, 3, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    z = teacher.encode(video)

    assert (2, *teacher.geometry.latent_shape) == z.shape
    assert torch.equal(z, teacher.encode(video))
    torch.testing.assert_close(z[:, :, 1], teacher.encode(video[:, [1]])[:, :, 0], atol=1e-5, rtol=1e-4)


def test_chosen_frames_decode_as_among_all(teacher, latents):
    """Some frames are decoded as among all, the same for the batch or each its own; gradients reach the latents."""
    z = latents.clone().requires_grad_(True)
    whole = teacher.decode(z)
    assert whole.shape == (2, 3, 3, 16, 12)
    assert bool((whole >= 0).all()) and bool((whole <= 1).all())

    torch.testing.assert_close(teacher.decode(z, [2, 0]), whole[:, [2, 0]], atol=1e-5, rtol=1e-4)
    own = teacher.decode(z, torch.tensor([[1], [2]]))
    torch.testing.assert_close(own, torch.stack([whole[0, [1]], whole[1, [2]]]), atol=1e-5, rtol=1e-4)
    (grad,) = torch.autograd.grad(teacher.decode(z, [1]).sum(), z)
    assert grad[:, :, 1].any() and not grad[:, :, 0].any()


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_seen_holds_the_forward_pass(prediction, latents):
    """The output is the network's, levels are the schedule's, and x0 and eps rebuild z."""
    teacher = tiny_teacher(frames=3, prediction=prediction)
    t = torch.tensor([100, 900])
    seen = teacher.seen(latents, t, teacher.null(2), captions=("a", "b"))
    alpha, sigma = (v.view(2, 1, 1, 1, 1) for v in (seen.alpha, seen.sigma))

    assert torch.equal(seen.output, teacher.net(latents, t, teacher.null(2)))
    assert seen.captions == ("a", "b")
    torch.testing.assert_close(alpha * seen.x0 + sigma * seen.eps, latents, atol=1e-4, rtol=1e-4)
    assert seen.decode([0]).shape == (2, 1, 3, 16, 12)


def test_records_are_attention(teacher, latents):
    """Recorded maps are (B, positions * heads, F, F), rows sum to 1, and recording changes no output."""
    need = "temporal-attention:official"
    seen = teacher.seen(latents, torch.tensor([500]), teacher.null(2), (need,))

    assert torch.equal(seen.output, teacher.net(latents, torch.tensor([500]), teacher.null(2)))
    assert list(seen.records[need]) == [
        "up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1",
        "up_blocks.1.temp_attentions.1.transformer_blocks.0.attn1",
    ]
    for maps in seen.records[need].values():
        assert maps.shape == (2, 8 * 6 * 2, 3, 3)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 96, 3))


def test_records_are_what_the_layer_attends_with(teacher, latents):
    """A recorded map times the values is what the layer's own attention gives; positions are outer and heads inner."""
    name = "up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1"
    module = teacher.network.get_submodule(name)
    caught = {}
    handle = module.register_forward_hook(
        lambda m, args, kwargs, out: caught.update(x=args[0], out=out), with_kwargs=True
    )
    with record(teacher.network, [f"temporal-attention:{name}"], 2) as records:
        teacher.net(latents, torch.tensor([500]), teacher.null(2))
    handle.remove()
    (maps,) = records[f"temporal-attention:{name}"].values()
    values = module.to_v(caught["x"]).unflatten(-1, (module.heads, -1)).transpose(1, 2)
    maps = maps.reshape(-1, module.heads, 3, 3)

    torch.testing.assert_close(
        module.to_out[0]((maps @ values).transpose(1, 2).flatten(2)), caught["out"], atol=1e-5, rtol=1e-4
    )


def test_records_carry_gradients(teacher, latents):
    """The gradient of a record reaches the latents, and no weight."""
    z = latents.clone().requires_grad_(True)
    need = "temporal-attention:all"
    records = teacher.seen(z, torch.tensor([500]), teacher.null(2), (need,)).records[need]
    (grad,) = torch.autograd.grad(sum(maps.square().sum() for maps in records.values()), z)

    assert grad.any() and grad.isfinite().all()
    assert all(p.grad is None for p in teacher.parameters())
    assert len(records) == len(temporal_layers(teacher.network))


def test_names_and_prefixes_choose_layers(teacher):
    """Named sets, prefixes and lists of prefixes choose layers; what matches nothing is answered with what exists."""
    network = teacher.network
    every = set(temporal_layers(network))

    assert set(select_layers(network, "all")) == every
    assert set(select_layers(network, "motionclone")) == {n for n in every if n.startswith("up_blocks.1.")}
    assert set(select_layers(network, "mid_block, transformer_in")) == {n for n in every if n[:3] in ("mid", "tra")}
    assert not set(select_layers(network, "official")) & {n for n in every if n.endswith("attn2")}
    for wrong in ("up_blocks.9", "mid", "mid_block,nothing"):
        with pytest.raises(GuidedCDError, match=r"official, motionclone, all .* this network has: transformer_in"):
            select_layers(network, wrong)
    with pytest.raises(GuidedCDError, match="cross-attention"):
        teacher.seen(torch.zeros(1, 4, 3, 8, 6), torch.tensor([1]), teacher.null(1), ("cross-attention:all",))


def test_the_official_layers_of_videocrafter2_are_nine():
    """In VideoCrafter2's block layout the official set is the first temporal attention of nine modules."""
    from diffusers import UNet3DConditionModel

    with torch.device("meta"):
        network = UNet3DConditionModel(block_out_channels=(64, 128, 256, 256), norm_num_groups=32)
    names = list(select_layers(network, "official"))

    expected = [f"up_blocks.{u}.temp_attentions.{j}.transformer_blocks.0.attn1" for u in (1, 2, 3) for j in range(3)]
    assert expected == names
    assert len(select_layers(network, "motionclone")) == 6


def test_the_fingerprint_depends_on_weights_and_settings(teacher):
    """Other weights, another schedule or another size is another teacher; rounding by `to` is not."""
    first = tiny_teacher(frames=3).fingerprint()

    assert first == teacher.fingerprint()
    assert first != tiny_teacher(frames=3, seed=1).fingerprint()
    assert first != tiny_teacher(frames=4).fingerprint()
    assert first != tiny_teacher(frames=3, prediction="v").fingerprint()
    rounded = tiny_teacher(frames=3).to("cpu", torch.bfloat16)
    assert first == rounded.fingerprint()
    assert torch.bfloat16 == rounded.dtype


def test_pixels_are_rounded_after_they_are_scaled():
    """In bfloat16, pixels near grey keep the digits that they have in [-1, 1]."""
    teacher = tiny_teacher(frames=3).to("cpu", torch.bfloat16)
    video = torch.rand(1, 3, 3, 16, 12) * 0.1 + 0.45
    own = teacher.vae.encode((video[0] * 2 - 1).bfloat16()).latent_dist.mode().float()
    torch.testing.assert_close(teacher.encode(video), teacher.scaled(own[None].transpose(1, 2)))


def test_half_precision_keeps_latents_float32(latents):
    """A bfloat16 network answers float32 latents in float32, and encodes to float32."""
    teacher = tiny_teacher(frames=3).to("cpu", torch.bfloat16)

    assert torch.float32 == teacher.net(latents, torch.tensor([500]), teacher.null(2)).dtype
    assert torch.float32 == teacher.encode(torch.rand(1, 3, 3, 16, 12)).dtype
    assert torch.float32 == teacher.decode(latents, [0]).dtype
