"""Fast paths through `UNet3DConditionModel` and `AutoencoderKL` compute what the stock networks compute."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_unet import LAYOUTS, assert_near, gradients, inputs, predict, tiny_unet
from torch import nn

from guidedcd import acceleration


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_are_the_stock_ones(layout):
    """In float64 the output, and the gradient of latents and of every weight, agree to rounding."""
    stock, batch = tiny_unet(layout), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock))

    assert (predict(fast, *batch) - predict(stock, *batch)).abs().max() < 1e-11
    assert_near(gradients(fast, *batch), gradients(stock, *batch))


def test_sizes_and_frames_may_change_between_calls():
    """Other numbers of frames, and a height that is no multiple of the network's, are supported."""
    stock = tiny_unet()
    fast = acceleration.speed_up(copy.deepcopy(stock))
    for batch in (inputs(3), inputs(5), inputs(3, height=3)):
        assert (predict(fast, *batch) - predict(stock, *batch)).abs().max() < 1e-11


def test_all_forms_of_calls_are_supported():
    """A dict as output, a number as timestep, and attention arguments give what the stock network gives."""
    stock, (z, _, prompt) = tiny_unet(), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock), graphs=True)

    assert (fast(z, 7, prompt).sample - stock(z, 7, prompt).sample).abs().max() < 1e-11
    with_kwargs = {"cross_attention_kwargs": {"scale": 1.0}}
    expected = predict(stock, z, torch.tensor(7), prompt, **with_kwargs)
    assert (predict(fast, z, torch.tensor(7), prompt, **with_kwargs) - expected).abs().max() < 1e-11


def test_guidance_inputs_pass_through():
    """A student's timestep_cond reaches the time embedding."""
    stock, batch = tiny_unet(time_cond_proj_dim=6), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock))
    cond = torch.randn(2, 6, dtype=torch.float64)

    expected = predict(stock, *batch, timestep_cond=cond)
    assert (predict(fast, *batch, timestep_cond=cond) - expected).abs().max() < 1e-11
    assert (predict(fast, *batch) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("adapters_first", [False, True])
def test_adapters_learn_as_in_the_stock_network(adapters_first):
    """With peft's adapters on every linear and convolutional layer, their gradients are the stock network's."""
    from peft import LoraConfig, inject_adapter_in_model

    def adapted(unet: nn.Module) -> nn.Module:
        targets = [name for name, m in unet.named_modules() if type(m) in (nn.Linear, nn.Conv2d, nn.Conv3d)]
        unet.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            unet = inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), unet).double()
            for name, parameter in unet.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(std=0.1)
        return unet

    batch, stock = inputs(), adapted(tiny_unet())
    fast = (
        acceleration.speed_up(adapted(tiny_unet())) if adapters_first else adapted(acceleration.speed_up(tiny_unet()))
    )
    assert_near(gradients(fast, *batch), gradients(stock, *batch))


def test_restore_undoes_speed_up():
    """After `restore` the class's own code runs on weights in their former layout; names and values never change."""
    stock, batch = tiny_unet(), inputs()
    fast = acceleration.speed_up(copy.deepcopy(stock))
    state = {name: value.clone() for name, value in fast.state_dict().items()}
    assert acceleration.is_fast(fast) and not acceleration.is_fast(stock)
    acceleration.restore(fast)

    assert not acceleration.is_fast(fast)
    assert torch.equal(predict(fast, *batch), predict(stock, *batch))
    for name, value in stock.state_dict().items():
        assert torch.equal(state[name], value)
        assert fast.state_dict()[name].stride() == value.stride()
    assert list(state) == list(stock.state_dict())


def test_copies_are_fast_and_independent():
    """A deep copy computes with its own weights, as a student that is copied from its teacher must."""
    fast, batch = acceleration.speed_up(tiny_unet(), graphs=True), inputs()
    twin, before = copy.deepcopy(fast), predict(fast, *batch)
    nn.init.zeros_(fast.conv_out.weight)

    assert acceleration.is_fast(twin)
    assert torch.equal(predict(twin, *batch), before)
    assert not torch.equal(predict(fast, *batch), before)


def test_unsupported_layers_keep_their_own_path():
    """Unsupported layers run as stock: here residual blocks with another activation and gated attention."""
    stock, batch = tiny_unet(act_fn="mish"), inputs()
    stock.down_blocks[0].attentions[0].transformer_blocks[0].attn1.residual_connection = True
    fast = acceleration.speed_up(copy.deepcopy(stock))

    assert (predict(fast, *batch) - predict(stock, *batch)).abs().max() < 1e-11
    assert "forward" not in vars(fast.down_blocks[0].resnets[0])
    assert "forward" not in vars(fast.down_blocks[0].attentions[0])


def test_dropout_is_kept_in_training():
    """A network in training mode has dropout as the stock one: the same output on average, never twice the same."""
    stock, batch = tiny_unet(dtype=torch.float32).train(), inputs(dtype=torch.float32)
    fast = acceleration.speed_up(copy.deepcopy(stock))
    with torch.no_grad():
        first, second = predict(fast, *batch), predict(fast, *batch)
        still = predict(acceleration.restore(fast).eval(), *batch)

    assert not torch.equal(first, second)
    assert (first - still).abs().mean() < 0.5 * still.abs().mean()


def test_an_autoencoder_decodes_the_same():
    """Values and gradients of the decoder, and the encoder's mode, in float64; and `restore` undoes the switch."""
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stock = AutoencoderKL(**sizes, **kinds).double().eval().requires_grad_(False)
    fast = acceleration.speed_up(copy.deepcopy(stock))
    z = torch.randn(3, 4, 6, 4, dtype=torch.float64, requires_grad=True)
    fast_pixels, stock_pixels = fast.decode(z).sample, stock.decode(z).sample

    blocks = [m for m in fast.modules() if type(m).__name__ == "ResnetBlock2D"]
    assert len(blocks) == 10 and all("forward" in vars(m) for m in blocks)
    assert (fast_pixels - stock_pixels).abs().max() < 1e-12
    fast_gradient, stock_gradient = (torch.autograd.grad(x.square().sum(), z)[0] for x in (fast_pixels, stock_pixels))
    assert (fast_gradient - stock_gradient).abs().max() < 1e-10
    pixels = stock_pixels.detach()
    assert (fast.encode(pixels).latent_dist.mode() - stock.encode(pixels).latent_dist.mode()).abs().max() < 1e-12
    assert torch.equal(acceleration.restore(fast).decode(z).sample, stock_pixels)


def test_norms_round_once_under_autocast():
    """With float32 weights under bfloat16 autocast, a fast network is at least as near to float32 as the stock one."""
    stock, batch = tiny_unet("attention everywhere", torch.float32), inputs(dtype=torch.float32)
    fast, exact = acceleration.speed_up(copy.deepcopy(stock)), predict(stock, *batch)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(predict(unet, *batch).float() - exact).norm() / exact.norm() for unet in (stock, fast)]

    assert errors[1] < 1.2 * errors[0] and errors[1] < 0.05
