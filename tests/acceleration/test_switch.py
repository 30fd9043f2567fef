"""Fast paths through `UNet3DConditionModel`: what they compute is what the stock network computes."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as nnf

from guidedcd import acceleration
from guidedcd.acceleration import attention_backend, convolutions, cuda_graphs, layers, operations, switch
from guidedcd.acceleration.activation_checkpointing import checkpoint_layers
from guidedcd.config import sections
from guidedcd.models import attention_probes
from guidedcd.models.student import Student

LAYOUTS = {
    "two levels": {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (8, 16),
    },
    "attention everywhere": {
        "down_block_types": ("CrossAttnDownBlock3D",) * 2,
        "up_block_types": ("CrossAttnUpBlock3D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 2,
    },
    "no attention in blocks": {
        "down_block_types": ("DownBlock3D",) * 3,
        "up_block_types": ("UpBlock3D",) * 3,
        "block_out_channels": (4, 8, 8),
    },
}


def network(layout: str = "two levels", dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """A tiny UNet whose every weight is random, also those that begin at zero."""
    from diffusers import UNet3DConditionModel

    sizes = {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = UNet3DConditionModel(sample_size=8, **{**sizes, **LAYOUTS[layout], **options})
        for parameter in found.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return found.to(dtype).eval()


def inputs(
    frames: int = 3, height: int = 4, width: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of two videos, timesteps and prompts."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, frames, height, width, generator=generator, dtype=torch.float64)
    prompt = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return z.to(dtype), torch.tensor([7, 930]), prompt.to(dtype)


def say(unet: nn.Module, z: Tensor, t: Tensor, prompt: Tensor, **options: object) -> Tensor:
    """As teachers call their network."""
    return unet(z, t, encoder_hidden_states=prompt, return_dict=False, **options)[0]


def gradients(unet: nn.Module, z: Tensor, t: Tensor, prompt: Tensor, **options: object) -> dict[str, Tensor]:
    """Of a nonlinear loss, with respect to the latents and to whatever is trained."""
    z = z.clone().requires_grad_(True)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(say(unet, z, t, prompt, **options).square().sum(), [z, *trained.values()])
    return dict(zip(("z", *trained), found, strict=True))


def keeping(function: Callable[[], Tensor]) -> int:
    """How many numbers besides weights autograd keeps for a call, each piece of memory counted once."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not isinstance(x._base, nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function()
    return sum(x.untyped_storage().nbytes() // x.element_size() for x in kept.values())


def assert_near(mine: dict[str, Tensor], stock: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Equal up to rounding, relative to each tensor's largest value."""
    assert list(mine) == list(stock)
    for name, value in stock.items():
        assert (mine[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_are_the_stock_ones(layout):
    """In float64 the output, and the gradient of latents and of every weight, agree to rounding."""
    stock, given = network(layout), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock))

    assert (say(quick, *given) - say(stock, *given)).abs().max() < 1e-11
    assert_near(gradients(quick, *given), gradients(stock, *given))


def test_sizes_and_frames_may_change_between_calls():
    """Another number of frames, and a height that is no multiple of the network's, are taken as they come."""
    stock = network()
    quick = acceleration.speed_up(copy.deepcopy(stock))
    for given in (inputs(3), inputs(5), inputs(3, height=3)):
        assert (say(quick, *given) - say(stock, *given)).abs().max() < 1e-11


def test_other_ways_to_call_are_answered_too():
    """A dict as output, a number as timestep, and attention arguments give what the stock network gives."""
    stock, (z, _, prompt) = network(), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock), graphs=True)

    assert (quick(z, 7, prompt).sample - stock(z, 7, prompt).sample).abs().max() < 1e-11
    with_kwargs = {"cross_attention_kwargs": {"scale": 1.0}}
    expected = say(stock, z, torch.tensor(7), prompt, **with_kwargs)
    assert (say(quick, z, torch.tensor(7), prompt, **with_kwargs) - expected).abs().max() < 1e-11


def test_guidance_inputs_pass_through():
    """A student's timestep_cond reaches the time embedding."""
    stock, given = network(time_cond_proj_dim=6), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock))
    cond = torch.randn(2, 6, dtype=torch.float64)

    expected = say(stock, *given, timestep_cond=cond)
    assert (say(quick, *given, timestep_cond=cond) - expected).abs().max() < 1e-11
    assert (say(quick, *given) - expected).abs().max() > 1e-6


def test_checkpointing_computes_the_same():
    """Layers that are computed again in the backward pass give equal gradients, and keep less."""
    stock, given = network(), inputs()
    expected = gradients(stock, *given)
    quick = acceleration.speed_up(copy.deepcopy(stock))
    everything = keeping(lambda: say(quick, *given))
    checkpoint_layers(quick)

    assert_near(gradients(quick, *given), expected)
    assert keeping(lambda: say(quick, *given)) < 0.5 * everything


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

    given, stock = inputs(), adapted(network())
    quick = acceleration.speed_up(adapted(network())) if adapters_first else adapted(acceleration.speed_up(network()))
    assert_near(gradients(quick, *given), gradients(stock, *given))


def test_a_frozen_convolution_keeps_nothing_for_the_gradient_of_its_input():
    """Without weights to learn a block's gradient is the stock one, and inputs of its convolutions are not kept."""
    stock = network()
    stock, x = stock.down_blocks[0].temp_convs[0].requires_grad_(False), torch.randn(6, 8, 4, 6).double()
    quick = acceleration.speed_up(copy.deepcopy(stock))
    expected = torch.autograd.grad(stock(x.requires_grad_(True), 3).square().sum(), x)[0]
    found = torch.autograd.grad(quick(x, 3).square().sum(), x)[0]
    frozen = keeping(lambda: quick(x, 3))
    learned = keeping(lambda: quick.requires_grad_(True)(x, 3))

    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    assert learned - frozen >= 4 * x.numel()


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@hypothesis.given(
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    groups=st.sampled_from([1, 2]),
)
def test_a_frozen_convolution_has_the_gradient_of_any_other(kernel, stride, padding, dilation, size, groups):
    """Whatever stride, padding, dilation and groups, and where the last pixels are not reached, too."""
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    how = stride, padding, dilation, groups
    expected = nnf.conv2d(x, weight, None, *how)
    grad = torch.randn_like(expected)
    found = convolutions.FrozenConvolution.apply(x, weight, None, how)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in (found, expected)))


class Counting:
    """An attention processor that tells when it runs."""

    def __init__(self, processor: Callable[..., Tensor], ran: list[int]) -> None:
        self.processor, self.ran = processor, ran

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        self.ran.append(1)
        return self.processor(*args, **kwargs)


def test_recording_leaves_the_fast_path_in_place_and_other_hooks_do_not():
    """Stock attention runs under a hook that could change its input, which it sees as ever, and not for a record."""
    quick, given = acceleration.speed_up(network()), inputs()
    watched, ran, shapes = attention_probes.temporal_layers(quick), [], []
    for module in watched.values():
        module.processor = Counting(module.processor, ran)
    with attention_probes.record(quick, ["temporal-attention:all"], batch=2) as records:
        say(quick, *given)
    assert len(records["temporal-attention:all"]) == len(watched) and not ran

    name = next(name for name in watched if name.startswith("up_blocks"))
    handle = watched[name].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    say(quick, *given)
    handle.remove()
    assert len(ran) == 1
    assert [(len(shape), shape[1]) for shape in shapes] == [(3, given[0].shape[2])]


def test_attention_can_be_watched():
    """Probes read the same temporal attention, and its gradient, from a fast network."""
    stock, given = network("attention everywhere"), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock))
    need, found = "temporal-attention:all", []
    for unet in (stock, quick):
        z = given[0].clone().requires_grad_(True)
        with attention_probes.record(unet, [need], batch=2) as records:
            out = say(unet, z, *given[1:])
        maps = records[need]
        gradient = torch.autograd.grad(sum((m * m).sum() for m in maps.values()), z)[0]
        found.append({"out": out, "gradient": gradient, **maps})

    assert len(found[0]) > 5
    assert_near(found[1], found[0])


def test_it_can_be_undone():
    """After `restore` the class's own code runs on weights that lie as before; names and values never change."""
    stock, given = network(), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock))
    kept = {name: value.clone() for name, value in quick.state_dict().items()}
    assert acceleration.is_fast(quick) and not acceleration.is_fast(stock)
    acceleration.restore(quick)

    assert not acceleration.is_fast(quick)
    assert torch.equal(say(quick, *given), say(stock, *given))
    for name, value in stock.state_dict().items():
        assert torch.equal(kept[name], value)
        assert quick.state_dict()[name].stride() == value.stride()
    assert list(kept) == list(stock.state_dict())


def test_copies_are_fast_and_independent():
    """A deep copy computes with its own weights, as a student that is copied from its teacher must."""
    quick, given = acceleration.speed_up(network(), graphs=True), inputs()
    twin, before = copy.deepcopy(quick), say(quick, *given)
    nn.init.zeros_(quick.conv_out.weight)

    assert acceleration.is_fast(twin)
    assert torch.equal(say(twin, *given), before)
    assert not torch.equal(say(quick, *given), before)


def test_a_student_of_a_fast_teacher_is_fast_and_equals_it():
    """The student's copy keeps the fast paths, says what its teacher says, and learns with checkpointing."""
    from tiny_run import teacher

    master = teacher()
    acceleration.speed_up(master.network)
    student = Student(master, sections.Student(), ("pta",))
    student.enable_gradient_checkpointing()
    z, t = torch.randn(1, *master.geometry.latent_shape), torch.tensor([500])
    cond = master.embed(["a"])
    out = student(z, t, cond, torch.tensor([7.0]), torch.zeros(1, 1))
    out.square().mean().backward()

    assert acceleration.is_fast(student.network)
    torch.testing.assert_close(out, master.net(z, t, cond))
    assert all(p.grad is not None for p in student.network.up_blocks.parameters())


def test_samples_are_made_on_the_paths_that_were_asked_for():
    """`auto` changes nothing on a CPU, `layers` gives the same video, and what is no choice is refused."""
    import tiny_run

    from guidedcd.acceleration.apply import accelerate
    from guidedcd.errors import GuidedCDError

    master = tiny_run.teacher()
    student = Student(master, sections.Student())
    accelerate(student, master)
    assert not acceleration.is_fast(student.network)
    z, t, cond = torch.randn(1, *master.geometry.latent_shape), torch.tensor([500]), master.embed(["a"])
    said, seen = student(z, t, cond), master.decode(z)
    for choice in ("layers", "graphs"):
        accelerate(student, master, choice)
        assert (
            acceleration.is_fast(student.network)
            and acceleration.is_fast(master.network)
            and acceleration.is_fast(master.vae)
        )
        assert (student(z, t, cond) - said).abs().max() < 1e-5
        assert (master.decode(z) - seen).abs().max() < 1e-5
    with pytest.raises(GuidedCDError, match="--fast must be one of auto, no, layers, graphs, blocks, not 'very'"):
        accelerate(student, master, "very")


def test_layers_that_are_built_otherwise_keep_their_own_path():
    """What `speed_up` does not know runs as stock: here residual blocks with another activation and gated attention."""
    stock, given = network(act_fn="mish"), inputs()
    stock.down_blocks[0].attentions[0].transformer_blocks[0].attn1.residual_connection = True
    quick = acceleration.speed_up(copy.deepcopy(stock))

    assert (say(quick, *given) - say(stock, *given)).abs().max() < 1e-11
    assert "forward" not in vars(quick.down_blocks[0].resnets[0])
    assert "forward" not in vars(quick.down_blocks[0].attentions[0])


def test_dropout_is_kept_in_training():
    """A network in training mode drops what the stock one drops: on average the same output, never twice the same."""
    stock, given = network(dtype=torch.float32).train(), inputs(dtype=torch.float32)
    quick = acceleration.speed_up(copy.deepcopy(stock))
    with torch.no_grad():
        one, other = say(quick, *given), say(quick, *given)
        still = say(acceleration.restore(quick).eval(), *given)

    assert not torch.equal(one, other)
    assert (one - still).abs().mean() < 0.5 * still.abs().mean()


def test_an_autoencoder_decodes_the_same():
    """Values and gradients of the decoder, and the encoder's mode, in float64; and it can be undone."""
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stock = AutoencoderKL(**sizes, **kinds).double().eval().requires_grad_(False)
    quick = acceleration.speed_up(copy.deepcopy(stock))
    z = torch.randn(3, 4, 6, 4, dtype=torch.float64, requires_grad=True)
    mine, theirs = quick.decode(z).sample, stock.decode(z).sample

    blocks = [m for m in quick.modules() if type(m).__name__ == "ResnetBlock2D"]
    assert len(blocks) == 10 and all("forward" in vars(m) for m in blocks)
    assert (mine - theirs).abs().max() < 1e-12
    one, other = (torch.autograd.grad(x.square().sum(), z)[0] for x in (mine, theirs))
    assert (one - other).abs().max() < 1e-10
    pixels = theirs.detach()
    assert (quick.encode(pixels).latent_dist.mode() - stock.encode(pixels).latent_dist.mode()).abs().max() < 1e-12
    assert torch.equal(acceleration.restore(quick).decode(z).sample, theirs)


def test_unknown_ways_to_compile_are_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match="None, blocks, blocks-tuned: 'all'"):
        acceleration.speed_up(network(), compile="all")


@pytest.mark.slow
def test_compiled_layers_compute_the_same(monkeypatch):
    """What the compiler is given has no graph breaks, is shared by layers of one size, and has the stock gradients."""
    from torch._dynamo.testing import CompileCounterWithBackend

    functions = {}

    def compiled(function, mode):
        counter = CompileCounterWithBackend("aot_eager")
        found = torch.compile(function, dynamic=False, backend=counter, fullgraph=True)
        return functions.setdefault(function, (found, counter))[0]

    monkeypatch.setattr(switch, "compiled", compiled)
    stock, given = network("attention everywhere"), inputs()
    quick = acceleration.speed_up(copy.deepcopy(stock), compile="blocks")

    assert_near(gradients(quick, *given), gradients(stock, *given))
    assert functions[layers.temporal_convolution][1].frame_count == 2  # 8 channels at two sizes, ten layers
    with attention_probes.record(quick, ["temporal-attention:all"], batch=2) as records:
        say(quick, *given)
    assert len(records["temporal-attention:all"]) == len(attention_probes.temporal_layers(stock))


def test_graphs_are_recorded_only_where_they_can_be():
    """Not for gradients, not under hooks inside the network, and not again for the same sizes."""
    quick = acceleration.speed_up(network(), graphs=True)
    replay, given = quick.forward, dict(zip(("sample", "timestep", "encoder_hidden_states"), inputs(), strict=True))

    assert isinstance(replay, cuda_graphs.Replay)
    assert not replay.possible(given)
    with torch.no_grad():
        assert replay.possible(given)
        with attention_probes.record(quick, ["temporal-attention:all"], batch=2):
            assert not replay.possible(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert replay.possible(given)
            quick.conv_out.float()  # whose narrow copy autocast would remember
            assert not replay.possible(given)
    quick.requires_grad_(False)
    assert replay.possible(given)


@pytest.fixture
def kernels(monkeypatch, device):
    """The Triton functions, run by Triton's interpreter or on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # what they are compared with is exact
    return importlib.import_module("guidedcd.acceleration.kernels.autograd")


@pytest.fixture
def compare(device):
    """`compare(mine, plain, *inputs)`: values and gradients of a float32 function against a float64 one."""

    def compare(mine, plain, *given: Tensor, tolerance: float = 2e-6) -> None:
        ours = [x.to(device, copy=True).requires_grad_(True) for x in given]
        theirs = [x.to(device).double().requires_grad_(True) for x in given]
        found, expected = mine(*ours), plain(*theirs)
        found, expected = ([x] if isinstance(x, Tensor) else list(x) for x in (found, expected))
        weights = [torch.randn_like(x) for x in found]
        found += torch.autograd.grad(found, ours, weights)
        expected += torch.autograd.grad(expected, theirs, [w.double() for w in weights])
        for one, other in zip(found, expected, strict=True):
            assert (one.double() - other).norm() <= tolerance * other.norm()

    return compare


@pytest.mark.parametrize(("shape", "groups", "shift", "silu"), [((2, 70, 48), 4, 0, True), ((3, 33, 80), 8, 3, False),
                                                               ((2, 150, 16), 4, 1, True)])  # fmt: skip
def test_the_group_norm_kernel_is_group_norm(kernels, compare, shape, groups, shift, silu):
    """Over tokens in odd numbers, far from zero, with and without shift and SiLU: values and gradients."""
    channels = shape[2]
    given = [torch.randn(shape) + 5, torch.randn(channels), torch.randn(channels)]
    if shift:
        given.append(torch.randn(shift, channels))

    def mine(x, w, b, s=None):
        return kernels.GroupNorm.apply(x, w, b, s, groups, 1e-5, silu, torch.float32)

    def plain(x, w, b, s=None):
        y = nnf.group_norm((x if s is None else x + s[:, None]).transpose(1, 2), groups, w, b, 1e-5).transpose(1, 2)
        return nnf.silu(y) if silu else y

    compare(mine, plain, *given)


@pytest.mark.parametrize("n", [1, 4, 64])
@pytest.mark.parametrize("length", [1, 40, 640, 2560, 40960, 163840])
def test_reductions_are_cut_so_that_every_token_counts_once(n, length):
    """Chunks cover all tokens, none is empty, tiles fill them, and long reductions have work for a large GPU."""
    group_norms = pytest.importorskip("guidedcd.acceleration.kernels.group_norm")
    for columns in (2, 5, 20):
        chunk, chunks = group_norms.chunks_of(n, length, columns)
        assert chunk % group_norms.ROWS == 0 and chunk % group_norms.SUMMED == 0
        assert (chunks - 1) * chunk < length <= chunks * chunk
        programs = n * columns * chunks
        assert programs <= 2 * max(group_norms.PROGRAMS, n * columns)
        assert programs > group_norms.PROGRAMS // 2 or chunk <= 4 * group_norms.ROWS


@pytest.mark.parametrize("trained", ["x", "x and shift", "x and weights"])
def test_norm_kernels_compute_the_gradients_that_are_wanted(kernels, device, trained):
    """With frozen weights, or a frozen shift, the others' gradients are the same, and nobody gets one unasked."""
    x, w, b, s = (y.to(device) for y in (torch.randn(2, 70, 16) + 1, *torch.randn(2, 16), torch.randn(2, 16)))
    x.requires_grad_(True)
    s.requires_grad_("shift" in trained)
    for p in (w, b):
        p.requires_grad_("weights" in trained)
    plain = nnf.silu(nnf.group_norm((x + s[:, None]).transpose(1, 2), 4, w, b).transpose(1, 2))
    layered = nnf.layer_norm(x + s[:, None], (16,), w, b)
    wanted = [p for p in (x, w, b, s) if p.requires_grad]
    for mine, stock in (
        (kernels.GroupNorm.apply(x, w, b, s, 4, 1e-5, True, torch.float32), plain),
        (kernels.LayerNorm.apply(x + s[:, None], None, w, b, 1e-5, torch.float32)[1], layered),
    ):
        weight = torch.randn_like(x)
        for one, other in zip(*(torch.autograd.grad(y, wanted, weight) for y in (mine, stock)), strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()
    assert all(p.grad is None for p in (w, b, s))


@pytest.mark.slow
def test_compiled_layers_call_the_kernels(kernels, device, monkeypatch):
    """A compiled layer that calls the kernels, for norms and over frames, has no breaks and the stock gradients."""
    from guidedcd.acceleration import attention

    monkeypatch.setattr(operations, "calls", lambda x: torch.compiler.is_compiling())
    monkeypatch.setattr(attention, "takes", lambda q: True)
    unet = network(dtype=torch.float32).to(device)
    x, temb = torch.randn(2, 8, 2, 2, device=device), torch.randn(2, 32, device=device)
    for function, module, rest in (
        (layers.temporal_transformer, unet.down_blocks[0].temp_attentions[0], (2,)),
        (layers.temporal_convolution, unet.down_blocks[0].temp_convs[0], (2,)),
        (layers.resnet, unet.down_blocks[0].resnets[0], (temb,)),
    ):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
        found = []
        for call, layer in ((type(module).forward, copy.deepcopy(module).double()), (compiled, module)):
            kind = next(layer.parameters()).dtype
            given = [x.to(kind, copy=True).requires_grad_(True)]
            given += [a.to(kind, copy=True).requires_grad_(True) if isinstance(a, Tensor) else a for a in rest]
            options = {}
            if call is not compiled and function is not layers.resnet:
                options = {"num_frames": given.pop()}
            out = call(layer, *given, **options)
            out = out if isinstance(out, Tensor) else out.sample
            wanted = [a for a in given if isinstance(a, Tensor)]
            weights = list(layer.parameters())
            grads = torch.autograd.grad(out.square().sum(), [*wanted, *weights])
            found.append([out, *grads])
        for mine, stock in zip(found[1], found[0], strict=True):
            assert (mine - stock).abs().max() <= 1e-4 * stock.abs().max()


def test_without_gradients_functions_say_the_same(kernels, device):
    """Where no gradient is wanted, every function gives the values of the differentiable one, and no graph."""
    x, other, video = (torch.randn(shape, device=device) for shape in ((2, 6, 16), (2, 6, 16), (1, 4, 3, 48)))
    w, b = torch.randn(2, 16, device=device)
    calls = (
        (kernels.GroupNorm, x, w, b, other[:, 0], 4, 1e-5, True, torch.float32),
        (kernels.LayerNorm, x, other, w, b, 1e-5, torch.float32),
        (kernels.LayerNorm, x, None, w, b, 1e-5, torch.float32),
        (kernels.Geglu, x, b),
        (kernels.Geglu, x, None),
        (kernels.Residual, x, other, b),
        (kernels.FrameAttention, video, 2, 0.3),
        (kernels.FrameAttention, *video.chunk(3, dim=-1), 2, 0.3),
    )
    for function, first, *rest in calls:
        found = function.of(first.clone().requires_grad_(True), *rest)
        with torch.no_grad():
            plain = function.of(first.clone().requires_grad_(True), *rest)
        found, plain = ([y] if isinstance(y, Tensor) else y for y in (found, plain))
        for one, same in zip(found, plain, strict=True):
            assert one.requires_grad and torch.equal(one, same)
            assert same.grad_fn is None


def test_the_layer_norm_kernel_is_layer_norm(kernels, compare):
    """With and without a summand: the sum, its norm, and the gradients through both."""
    x, delta, w, b = torch.randn(37, 24), torch.randn(37, 24), torch.randn(24), torch.randn(24)
    compare(
        lambda x, d, w, b: kernels.LayerNorm.apply(x, d, w, b, 1e-5, torch.float32),
        lambda x, d, w, b: (x + d, nnf.layer_norm(x + d, (24,), w, b, 1e-5)),
        x, delta, w, b,
    )  # fmt: skip
    compare(
        lambda x, w, b: kernels.LayerNorm.apply(x, None, w, b, 1e-5, torch.float32)[1],
        lambda x, w, b: nnf.layer_norm(x, (24,), w, b, 1e-5),
        x, w, b,
    )  # fmt: skip


def test_the_quicker_attention_is_found_once_for_each_size(monkeypatch):
    """Kernels are compared at a size's first call, with and without gradients, and results stay the same."""
    sizes, stock = [], nnf.scaled_dot_product_attention
    monkeypatch.setattr(attention_backend, "_FASTER", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    monkeypatch.setattr(
        attention_backend, "is_faster", lambda given, *how: sizes.append((*given[0].shape, how[1])) or True
    )
    for length, graded in ((5, False), (5, False), (7, False), (5, True), (5, True)):
        q, k, v = torch.randn(3, 2, 2, length, 8).requires_grad_(graded)
        assert torch.equal(attention_backend.attention(q, k, v, 0.4), stock(q, k, v, scale=0.4))

    assert sizes == [(2, 2, 5, 8, False), (2, 2, 7, 8, False), (2, 2, 5, 8, True)]


@pytest.mark.parametrize("graded", [False, True])
def test_comparing_attention_leaves_no_trace(monkeypatch, graded):
    """Timing both kernels works, keeps nothing in a checkpoint around it, and a kernel that is wrong is not taken."""
    monkeypatch.setattr(attention_backend, "_FASTER", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    q, k, v = torch.randn(3, 2, 2, 5, 8).requires_grad_(graded)
    held = keeping(lambda: attention_backend.attention(q, k, v, 0.4))
    assert held == (keeping(lambda: nnf.scaled_dot_product_attention(q, k, v, scale=0.4)) if graded else 0)
    assert len(attention_backend._FASTER) == 1

    given = [x.detach() for x in (q, k, v)]
    clock = iter([2.0, 1.0] * 2)
    monkeypatch.setattr(attention_backend, "_seconds", lambda run, device: next(clock))
    assert attention_backend.is_faster(given, 0.4, graded)
    answers = iter([torch.ones(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)])
    monkeypatch.setattr(nnf, "scaled_dot_product_attention", lambda *a, **k: next(answers).requires_grad_(graded))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: None)
    assert not attention_backend.is_faster(given, 0.4, graded)


def test_the_elementwise_kernels_are_what_they_say(kernels, compare):
    """Gated GELU, and a sum of two and a bias."""

    def gated(x, b=0):
        value, gate = (x + b).chunk(2, dim=-1)
        return value * nnf.gelu(gate)

    compare(lambda x: kernels.Geglu.apply(x, None), gated, torch.randn(9, 80))
    compare(kernels.Geglu.apply, gated, torch.randn(3, 7, 80), torch.randn(80))
    compare(kernels.Residual.apply, lambda x, y, b: x + y + b, *torch.randn(2, 3, 5, 20), torch.randn(20))


@pytest.mark.parametrize(("frames", "heads", "width"), [(5, 2, 8), (16, 1, 64)])
def test_the_frame_attention_kernel_is_attention(kernels, compare, frames, heads, width):
    """Over any number of frames and channels: values, and gradients through PyTorch's operator registration."""
    from guidedcd.acceleration.kernels.operators import frame_attention, packed_frame_attention

    def plain(*given):
        q, k, v = (x.transpose(1, 2).unflatten(-1, (heads, -1)).transpose(2, 3) for x in given)
        out = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
        return out.transpose(2, 3).flatten(3).transpose(1, 2)

    given = torch.randn(3, 2, frames, 3, heads * width)
    compare(lambda q, k, v: frame_attention(q, k, v, heads, 0.3), plain, *given)
    packed = torch.cat([*given], dim=-1)
    compare(lambda x: packed_frame_attention(x, heads, 0.3), lambda x: plain(*x.chunk(3, dim=-1)), packed)


@pytest.mark.slow
def test_a_network_on_the_kernels_is_the_stock_network(kernels, device, monkeypatch):
    """All kernels in their places, forward and backward, in float32 against the stock network in float64."""
    from guidedcd.acceleration import attention

    stock, given = network(), inputs(2, 2, 2)
    quick = acceleration.speed_up(network(dtype=torch.float32).to(device))
    called = []
    for module in (operations, layers):
        monkeypatch.setattr(module, "fused", lambda x: True)
    monkeypatch.setattr(attention, "takes", lambda q: called.append(q) or True)
    mine = gradients(quick, *(x.to(device, torch.float32 if x.is_floating_point() else None) for x in given))

    assert len(called) == len(attention_probes.temporal_layers(stock))
    assert_near({k: v.cpu().double() for k, v in mine.items()}, gradients(stock, *given), 2e-4)


def test_norms_round_once_under_autocast():
    """With float32 weights under bfloat16 autocast, a fast network is at least as near to float32 as the stock one."""
    stock, given = network("attention everywhere", torch.float32), inputs(dtype=torch.float32)
    quick, exact = acceleration.speed_up(copy.deepcopy(stock)), say(stock, *given)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(say(unet, *given).float() - exact).norm() / exact.norm() for unet in (stock, quick)]

    assert errors[1] < 1.2 * errors[0] and errors[1] < 0.05
