"""Fast paths through autoencoders of videos: the stock values and gradients, and back."""

from __future__ import annotations

import copy
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from guidedcd_dits.wan import WanTeacher
from torch import Tensor, nn

from guidedcd.acceleration import autoencoders, switch
from guidedcd.acceleration.activation_checkpointing import light_gradients
from guidedcd.acceleration.apply import accelerate, accelerated
from guidedcd.acceleration.autoencoders import (
    is_fast_autoencoder,
    restore_autoencoder,
    speed_up_autoencoder,
    speed_up_autoencoder_of,
)
from guidedcd.acceleration.switch import restore
from guidedcd.training.step import _accelerate

NORMS, PATHS = WanTeacher.decoder_norms, WanTeacher.autoencoder_paths


def wan_autoencoder() -> AutoencoderKLWan:
    """A tiny one with all kinds of layers."""
    torch.manual_seed(0)
    tiny = AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True])
    return tiny.requires_grad_(False).eval()


def values(autoencoder: Any, *, light: bool = False) -> list[Tensor]:
    """Latents of a video, pixels of latents, and the gradient of the latter."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(1, 3, 5, 16, 24, generator=generator)
    z = torch.randn(1, 16, 3, 4, 6, generator=generator).requires_grad_()
    with torch.no_grad():
        latents = autoencoder.encode(video).latent_dist.mode()
    if light:
        with light_gradients(autoencoder, NORMS):
            pixels = autoencoder.decode(z, return_dict=False)[0]
    else:
        pixels = autoencoder.decode(z, return_dict=False)[0]
    (gradient,) = torch.autograd.grad((pixels * torch.linspace(-1, 1, pixels.shape[-1])).sum(), z)
    return [latents, pixels.detach(), gradient]


def assert_near(first: list[Tensor], second: list[Tensor]) -> None:
    """The same numbers up to float32's rounding."""
    for one, other in zip(first, second, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.fixture
def norms_compiled(monkeypatch):
    """Sizes of tensors that compiled norms receive; a function takes the compiler's place."""
    shapes = []

    def compiled(function, mode):
        def run(norm, activation, x):
            shapes.append(x.shape)
            return function(norm, activation, x)

        return run

    monkeypatch.setattr("guidedcd.acceleration.autoencoders.compiled", compiled)
    return shapes


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("compile", [None, "blocks"])
def test_the_fast_autoencoder_has_stock_values(norms_compiled, compile, light):
    """Latents, pixels and gradients are those of diffusers, also where few activations are saved, and in a copy."""
    stock = wan_autoencoder()
    fast = copy.deepcopy(stock)
    speed_up_autoencoder(fast, compile=compile, norms=NORMS, paths=PATHS)

    assert fast.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    expected = values(stock)
    for one in (fast, copy.deepcopy(fast)):
        assert_near(values(one, light=light), expected)
    assert bool(norms_compiled) == (compile is not None)


def test_the_activation_after_a_norm_is_computed_once(norms_compiled):
    """A norm that is compiled with its activation leaves nothing for the activation; another input is activated."""
    fast = wan_autoencoder()
    speed_up_autoencoder(fast, compile="blocks", norms=NORMS)
    block: Any = fast.decoder.mid_block.resnets[0]
    x = torch.randn(1, block.in_dim, 2, 4, 4)

    y = block.norm1(x)
    assert block.nonlinearity(y) is y
    assert torch.equal(block.nonlinearity(x), nn.functional.silu(x))


def test_an_autoencoder_is_restored(norms_compiled):
    """Afterwards every layer has its own forward method and layout, and gives the same numbers bit for bit."""
    fast = wan_autoencoder()
    expected = values(fast)
    speed_up_autoencoder(fast, compile="blocks", norms=NORMS, paths=PATHS)
    restore_autoencoder(fast)

    assert all("forward" not in vars(module) for module in fast.modules())
    assert fast.decoder.conv_in.weight.is_contiguous()
    assert all(map(torch.equal, values(fast), expected))


class Teacher:
    """A teacher, as far as faster paths are concerned."""

    decoder_norms, autoencoder_paths = NORMS, PATHS
    network: nn.Module
    vae: Any

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.network = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8, freq_dim=16
        )

    def fingerprint(self) -> str:
        """No one reads it."""
        return ""


@pytest.fixture
def on_gpu(monkeypatch):
    """Autoencoders count as modules on a GPU."""
    monkeypatch.setattr(autoencoders, "_device_type", lambda autoencoder: "cuda")


def test_only_autoencoders_of_videos_on_a_gpu_have_paths(monkeypatch):
    """On a CPU, with `no`, without convolutions over time, and without an autoencoder, nothing changes."""
    videos, images = wan_autoencoder(), nn.Sequential(nn.Conv2d(2, 2, 1))
    assert speed_up_autoencoder_of(Teacher(videos), "layers") is None
    monkeypatch.setattr(autoencoders, "_device_type", lambda autoencoder: "cuda")
    for vae, option in ((videos, "no"), (images, "layers"), (None, "layers")):
        assert speed_up_autoencoder_of(Teacher(vae), option) is None
        assert not is_fast_autoencoder(vae)


@pytest.mark.parametrize(("option", "compiles"), [("auto", False), ("graphs", False), ("blocks-graphs", True)])
def test_the_option_selects_the_paths(on_gpu, norms_compiled, option, compiles):
    """On a GPU convolutions are channels-last; with compiled blocks norms are compiled, also after another option."""
    vae = wan_autoencoder()
    expected = values(vae)
    assert speed_up_autoencoder_of(Teacher(vae), "layers") is vae
    assert speed_up_autoencoder_of(Teacher(vae), option) is vae

    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert_near(values(vae), expected)
    assert bool(norms_compiled) == compiles


def test_a_teacher_is_fast_inside_the_block_and_stock_after_it(on_gpu):
    """Preprocessing switches the autoencoder too, and restores it; one that was fast before stays so."""
    teacher = Teacher(wan_autoencoder())
    with accelerated(teacher, fast="layers", precision="no"):
        assert is_fast_autoencoder(teacher.vae)
    assert not is_fast_autoencoder(teacher.vae)

    accelerate(types.SimpleNamespace(network=teacher.network), teacher, "layers")
    assert is_fast_autoencoder(teacher.vae)
    restore(teacher.network)
    with accelerated(teacher, fast="layers", precision="no"):
        pass
    assert is_fast_autoencoder(teacher.vae)


def test_training_decodes_on_the_fast_paths(on_gpu):
    """A training step switches the decoder together with the denoiser."""
    teacher: Any = Teacher(wan_autoencoder())
    _accelerate(teacher, "layers", None)
    assert is_fast_autoencoder(teacher.vae)


def test_threads_may_share_a_layer():
    """The faster convolution does not change the layer while it computes."""
    fast = wan_autoencoder()
    speed_up_autoencoder(fast, paths=PATHS)
    conv, before = fast.decoder.conv_in, fast.decoder.conv_in.padding
    x = torch.randn(1, 16, 2, 8, 8)
    expected = conv(x)
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda _: conv(x), range(64)))

    assert conv.padding == before
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.slow
def test_norms_are_compiled_with_their_activations():
    """The compiler has no graph break in a norm with its activation, and gives the stock values."""
    torch._dynamo.reset()
    stock = wan_autoencoder()
    fast = copy.deepcopy(stock)
    switch.compiled.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        compile = torch.compile
        patch.setattr(torch, "compile", lambda f, **options: compile(f, backend="aot_eager", fullgraph=True))
        speed_up_autoencoder(fast, compile="blocks", norms=NORMS, paths=PATHS)
        assert_near(values(fast), values(stock))
    switch.compiled.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [None, "blocks"])
def test_the_fast_autoencoder_on_a_gpu(compile, monkeypatch):
    """In bfloat16 the fast paths, with heads of 384 numbers, differ from float32 by little more than stock ones do."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.manual_seed(0)
    exact = AutoencoderKLWan(base_dim=96).requires_grad_(False).eval().cuda()
    narrow = copy.deepcopy(exact).bfloat16()
    z = torch.randn(1, 16, 2, 12, 20, device="cuda")

    def decoded(autoencoder: Any, latents: Tensor) -> list[Tensor]:
        latents = latents.detach().requires_grad_()
        with light_gradients(autoencoder, NORMS):
            pixels = autoencoder.decode(latents, return_dict=False)[0]
        (gradient,) = torch.autograd.grad((pixels.float() ** 2).sum(), latents)
        return [pixels.detach().float(), gradient.float()]

    reference, usual = decoded(exact, z), decoded(narrow, z.bfloat16())
    fast = copy.deepcopy(narrow)
    speed_up_autoencoder(fast, compile=compile, norms=NORMS, paths=PATHS)
    for _ in range(2):
        for one, other, true in zip(decoded(fast, z.bfloat16()), usual, reference, strict=True):
            assert (one - true).norm() < 1.5 * (other - true).norm() + 1e-3 * true.norm()
