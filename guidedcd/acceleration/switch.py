"""Switch a stock diffusers network to faster, exact paths and back: same classes, same weights, same keys."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch._functorch import config as functorch

from guidedcd.acceleration import attention, blocks, layers
from guidedcd.acceleration.cuda_graphs import Replay

MODES = {None: None, "blocks": "default", "blocks-tuned": "max-autotune-no-cudagraphs"}
"""Values of `compile`, with the modes of `torch.compile`."""
SLOT = "_guidedcd_fast"
WRONG_FUSION = "triton.mix_order_reduction"
"""See `inductor_options`."""


class State:
    """The state that the layers of one network share."""

    def __init__(self, compile: str | None) -> None:
        """Set the mode of compilation, a key of `MODES`."""
        self.compile = compile
        self.frames = 1

    def function(
        self, function: Callable[..., Tensor], *watched: nn.Module, variant: str = ""
    ) -> Callable[..., Tensor]:
        """`function`, compiled if a mode is set and no `watched` module has hooks, which compiled code skips.

        Functions of different variants are compiled separately: compiled code keeps the order of attention kernels in
        which it was compiled.
        """
        if self.compile is None or any(m._forward_pre_hooks or m._forward_hooks for m in watched):
            return function
        return compiled(variant_of(function, variant), MODES[self.compile])


@functools.cache
def variant_of(function: Callable[..., Tensor], variant: str) -> Callable[..., Tensor]:
    """A copy of a function with code of its own, by which torch.compile finds what it has compiled."""
    if not variant or not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name=f"{function.__name__}_{variant}")
    copied = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


@functools.cache
def compiled(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    """One compiled function for all layers of a kind: compiled again for another size, not for another layer."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 128)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2048)
    config.optimize_ddp = False  # it would split a layer at the buckets of DDP, which overlap from layer to layer
    functorch.donated_buffer = False  # several energies take their gradients through one pass
    functorch.enable_autograd_cache = False  # its files do not tell orders of attention kernels apart
    return torch.compile(function, dynamic=False, options=inductor_options(mode))


def inductor_options(mode: str) -> dict[str, Any]:
    """Options of Inductor for a mode of `torch.compile`, without a fusion whose gradients are wrong.

    Since PyTorch 2.10 Inductor fuses reductions over rows with those over columns. If the gradient of a chunked tensor,
    such as the shifts and scales of a transformer's block, is such a reduction, then it is never written, and contains
    what was in memory (https://github.com/pytorch/pytorch/issues/193061).
    """
    import torch._inductor as inductor  # a second, for what only compiled layers need

    choices: dict[str, Any] = dict(inductor.list_mode_options(mode))
    if WRONG_FUSION in inductor.list_options():
        choices[WRONG_FUSION] = False
    return choices


class FrameCounter:
    """A pre-hook of the network's forward pass that records the number of frames for the layers."""

    def __init__(self, state: State) -> None:
        """Set the state to write to."""
        self.state = state

    def __call__(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Read the frames of `sample` (B, C, F, H, W)."""
        self.state.frames = (args[0] if args else kwargs["sample"]).shape[2]


def speed_up(
    network: nn.Module, *, compile: str | None = None, graphs: bool = False, repeated: Collection[str] = ()
) -> nn.Module:
    """Switch a denoiser or an `AutoencoderKL` to the fast paths, in place; equal up to rounding.

    Of a transformer, the repeated blocks take the fastest attention kernel of their size, and may be compiled, once for
    all of them. Of a `UNet3DConditionModel` and an `AutoencoderKL`, activations and convolution weights become
    channels-last, temporal convolutions two-dimensional, keys and values of a prompt are computed once per video, norms
    and activations are fused on GPUs. It works in training, with gradient checkpointing, adapters, and hooks on
    temporal attentions; a deep copy is fast too. Call it before adapters are added, on the whole network. Layers that
    differ from the stock network's keep their own forward pass.

    Args:
        network: Any configuration and dtype.
        compile: None compiles nothing. "blocks" compiles one function per kind and size of layer, which takes tens of
            seconds at the first call of each kind (with and without gradient). "blocks-tuned" also tries several
            kernels for every matrix product, which takes minutes.
        graphs: Record a CUDA graph for each input size and replay it, for passes of a denoiser without gradient. Each
            graph occupies memory.
        repeated: Names of the classes of a transformer's repeated blocks; by default those that diffusers names.

    Returns:
        `network`.

    Raises:
        ValueError: `compile` is none of these.
    """
    if compile not in MODES:
        raise ValueError(f"compile must be one of {', '.join(str(mode) for mode in MODES)}: {compile!r}")
    restore(network)
    state, repeated = State(compile), blocks.repeated_blocks(network, repeated)
    for name, module in network.named_modules():
        forward = _path(name, module, repeated)
        if forward is not None:
            setattr(module, SLOT, state)
            module.forward = types.MethodType(forward, module)
        if repeated:
            continue
        if isinstance(module, nn.Conv3d):
            set_layout(module, torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            set_layout(module, torch.channels_last)
    if any(type(module) is Transformer2DModel for module in network.modules()):
        network.register_forward_pre_hook(FrameCounter(state), with_kwargs=True)
    if graphs:
        network.forward = Replay(network)
    return network


def restore(network: nn.Module) -> nn.Module:
    """Undo `speed_up` in place and return `network`; a network that is not fast stays unchanged."""
    if not is_fast(network):
        return network
    for module in network.modules():
        if SLOT in vars(module):
            delattr(module, SLOT)
            vars(module).pop(blocks.RECOMPUTE, None)
            del module.forward
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            set_layout(module, torch.contiguous_format)
    if isinstance(vars(network).get("forward"), Replay):
        del network.forward
    for key, hook in list(network._forward_pre_hooks.items()):
        if isinstance(hook, FrameCounter):
            del network._forward_pre_hooks[key]
            network._forward_pre_hooks_with_kwargs.pop(key, None)
    return network


def is_fast(network: nn.Module) -> bool:
    """Whether `speed_up` has switched anything in `network`."""
    return any(SLOT in vars(module) for module in network.modules())


def set_layout(conv: nn.Conv2d | nn.Conv3d, layout: torch.memory_format) -> None:
    """Give a convolution's weight another layout in memory, in place."""
    conv.weight.data = conv.weight.data.contiguous(memory_format=layout)


def _path(name: str, module: nn.Module, repeated: Collection[str]) -> Callable[..., Any] | None:
    """The forward method for one module, or None where the stock one stays; of a transformer's `repeated` blocks."""
    if repeated:
        return _block if type(module).__name__ in repeated else None
    if name.rpartition(".")[2] == "conv_norm_out" and type(module) is nn.GroupNorm:
        return _norm
    if type(module) is Upsample2D and module.use_conv and not module.use_conv_transpose and module.name == "conv":
        return _upsample if module.norm is None and module.interpolate else None
    if type(module) is GEGLU:
        return _gated
    if type(module) is ResnetBlock2D:
        # An autoencoder's decoder has the norm "group" and no time embedding, which makes it the default block.
        default_norm = module.time_embedding_norm == "default" or (
            module.time_embedding_norm == "group" and module.time_emb_proj is None
        )
        usual = default_norm and not (module.skip_time_act or module.up or module.down)
        return _resnet if usual and type(module.nonlinearity) is nn.SiLU else None
    if type(module) is TemporalConvLayer:
        return _temporal_convolution
    if type(module) is Transformer2DModel:
        return _transformer if module.is_input_continuous and _is_standard(module) else None
    if type(module) is TransformerTemporalModel:
        return _temporal_transformer if _is_standard(module) else None
    return None


def _is_standard(transformer: Transformer2DModel | TransformerTemporalModel) -> bool:
    blocks = transformer.transformer_blocks
    attentions = (m for m in transformer.modules() if isinstance(m, Attention))
    return all(map(attention.is_standard, attentions)) and all(
        type(block) is BasicTransformerBlock and layers.is_standard(block) for block in blocks
    )


def _state(module: nn.Module) -> State:
    return getattr(module, SLOT)


def _block(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return blocks.forward(_state(self), self, args, kwargs)


def _norm(self: nn.Module, x: Tensor) -> Tensor:
    return _state(self).function(layers.norm_out)(self, x)


def _gated(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return layers.gated(self, hidden_states)  # compiled with the layer around it


def _upsample(self: nn.Module, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    if output_size is not None:
        return type(self).forward(self, hidden_states, output_size, *args, **kwargs)
    return _state(self).function(layers.upsample)(self, hidden_states)


def _resnet(self: nn.Module, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    return _state(self).function(layers.resnet)(self, input_tensor, temb)


def _temporal_convolution(self: nn.Module, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
    return _state(self).function(layers.temporal_convolution)(self, hidden_states, num_frames)


def _attentions(self: Transformer2DModel | TransformerTemporalModel) -> list[Attention]:
    return [attn for block in self.transformer_blocks for attn in (block.attn1, block.attn2)]


def _transformer(
    self: Transformer2DModel,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    timestep: Tensor | None = None,
    added_cond_kwargs: dict | None = None,
    class_labels: Tensor | None = None,
    cross_attention_kwargs: dict | None = None,
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    state, hooked = _state(self), any(m._forward_pre_hooks or m._forward_hooks for m in _attentions(self))
    others = (cross_attention_kwargs, attention_mask, encoder_attention_mask)
    if hooked or any(value is not None and value != {} for value in others) or return_dict:
        return type(self).forward(
            self, hidden_states, encoder_hidden_states, timestep, added_cond_kwargs, class_labels,
            cross_attention_kwargs, attention_mask, encoder_attention_mask, return_dict,
        )  # fmt: skip
    return (state.function(layers.transformer)(self, hidden_states, encoder_hidden_states, state.frames),)


def _temporal_transformer(
    self: TransformerTemporalModel,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    timestep: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_frames: int = 1,
    cross_attention_kwargs: dict | None = None,
    return_dict: bool = True,
) -> Any:
    if encoder_hidden_states is not None or cross_attention_kwargs or return_dict:
        return type(self).forward(
            self, hidden_states, encoder_hidden_states, timestep, class_labels, num_frames,
            cross_attention_kwargs, return_dict,
        )  # fmt: skip
    function = _state(self).function(layers.temporal_transformer, *_attentions(self))
    return (function(self, hidden_states, num_frames),)
