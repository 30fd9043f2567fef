"""Checkpoints of every shape the original classes can have, held against a second implementation of the networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from lvdm_oracle import Oracle
from tiny_checkpoint import unet_state, whole_state

from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.unet import load_unet
from guidedcd.models.checkpoints.videocrafter2 import load_text, load_vae, split
from guidedcd.models.guidance_inputs import set_fps
from guidedcd.testing.tiny_networks import LVDM_CONFIG, LVDM_UNET

EXACT = torch.float64
UNETS = {
    "one level": {"channel_mult": [1], "attention_resolutions": [1]},
    "three blocks": {"num_res_blocks": 3, "channel_mult": [1, 1]},
    "attention missing in the middle": {"channel_mult": [1, 2, 3], "attention_resolutions": [1, 4]},
    "attention only in the middle": {"channel_mult": [1, 2, 1], "attention_resolutions": [2]},
    "no attention": {"attention_resolutions": [], "num_res_blocks": 2},
    "convolutions around attention": {"use_linear": False},
    "other widths": {"model_channels": 96, "num_head_channels": 16, "context_dim": 24, "in_channels": 5},
}
PARTS = {
    "one level": ({"ch_mult": [1]}, {}, "penultimate"),
    "three levels of three blocks": ({"ch_mult": [1, 2, 1], "num_res_blocks": 3}, {}, "penultimate"),
    "last layer": ({}, {"width": 24, "heads": 3, "layers": 2}, "last"),
    "quick activation": ({}, {"quick_gelu": True, "mlp_ratio": 2.0}, "penultimate"),
    "few words": ({}, {"vocab_size": 100, "context_length": 77}, "penultimate"),
}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal up to the rounding of float64, which norms over single values enlarge."""
    return bool((ours - theirs).abs().max() <= 1e-8 * theirs.abs().max())


def normal(*shape: int) -> torch.Tensor:
    """Noise that depends on the shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=EXACT)


def cases() -> list:
    """Every shape on an image and on videos; most of them only in the long run of tests."""
    quick = {"one level", "convolutions around attention"}
    cases = []
    for name, changes in UNETS.items():
        for batch, frames, wide in ((1, 1, 3), (3, 5, 1)):
            marks = [] if name in quick and frames == 5 else [pytest.mark.slow]
            cases.append(pytest.param(changes, batch, frames, wide, id=f"{name}, {frames} frames", marks=marks))
    return cases


@pytest.mark.parametrize("changes, batch, frames, wide", cases())
def test_every_shape_of_unet_is_read_exactly(changes, batch, frames, wide):
    """Teacher, and student on its four paths, equal the original's equations at any size, time and frame rate."""
    config = {**LVDM_UNET, **changes}
    side = 2 ** (len(config["channel_mult"]) - 1)
    z = normal(batch, config["in_channels"], frames, side * (4 - wide), side * wide)
    t, fps = torch.tensor([0, 999, 37])[:batch], torch.tensor([1, 60, 8])[:batch]
    context = normal(batch, 6, config["context_dim"])
    omega, strength = normal(batch, 256), normal(batch, 256).flip(1)
    for energies in (None, 0, 1):
        state = unet_state(config, student=energies)
        unet = load_unet(config, state, fps=None, dtype=EXACT)
        set_fps(unet, fps)
        oracle = Oracle(state, config["num_head_channels"])
        paths = [(), (omega,), (omega, strength)][: 1 if energies is None else energies + 2]
        for guidance in paths:
            cond = torch.cat(guidance, dim=1) if guidance else None
            with torch.no_grad():
                output = unet(z, t, context, timestep_cond=cond).sample

            assert close(output, oracle.unet(z, t, context, fps, *guidance))


@pytest.fixture
def exact_by_default() -> Iterator[None]:
    """Float64 as torch's default dtype, in which transformers before 5 makes the mask of a text tower."""
    torch.set_default_dtype(EXACT)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("ddconfig, words, layer", PARTS.values(), ids=PARTS)
def test_every_shape_of_autoencoder_and_text_tower_is_read_exactly(ddconfig, words, layer, exact_by_default):
    """Means, log-variances, decoded images and text embeddings equal the original's equations."""
    config = copy.deepcopy(LVDM_CONFIG)
    params = config["model"]["params"]
    params["first_stage_config"]["params"]["ddconfig"] |= ddconfig
    params["cond_stage_config"]["params"]["layer"] = layer
    config["open_clip_arch"]["quick_gelu"] = words.get("quick_gelu", False)
    config["open_clip_arch"]["text_cfg"] |= {key: value for key, value in words.items() if key != "quick_gelu"}
    arch, views = Architecture.from_config(config), split(whole_state(config))
    image, z = normal(2, 3, 4 * arch.compression, 6 * arch.compression).tanh(), normal(2, 4, 4, 6)
    ids = torch.randint(arch.text["vocab_size"], (3, arch.text["context_length"]))
    vae, text = load_vae(arch, views["vae"], dtype=EXACT), load_text(arch, views["text"], dtype=EXACT)
    oracle, tower = Oracle(views["vae"]), Oracle(views["text"])
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        embedded = text(input_ids=ids).last_hidden_state
        decoded = vae.decode(z).sample

    mean, logvar = oracle.encode(image)
    assert close(posterior.mean, mean) and close(posterior.logvar, logvar)
    assert close(decoded, oracle.decode(z))
    skip = int(layer == "penultimate")
    assert close(embedded, tower.text(ids, arch.text["heads"], skip, arch.text["quick_gelu"]))


def test_the_second_opinion_agrees_with_the_published_numbers(shared):
    """The oracle of these tests reproduces the original code's own outputs."""
    from safetensors.torch import load_file

    folder = shared("videocrafter2", "vc2_tiny")
    views, io = split(load_file(folder / "model.safetensors")), load_file(folder / "io.safetensors")
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in io.items()}
    unet = Oracle(views["unet"], head=8)
    output = unet.unet(inputs["unet.x"], inputs["unet.t_pair"], inputs["unet.context"], inputs["unet.fps_pair"])

    assert (output - inputs["out.unet.eps_tmixed_fpsmixed"]).abs().max() < 1e-5
    assert (Oracle(views["vae"]).decode(inputs["vae.z"]) - inputs["out.vae.decode_z"]).abs().max() < 1e-5
    assert (Oracle(views["text"]).text(inputs["text.tokens"], 4) - inputs["out.text.embedding"]).abs().max() < 1e-5
