"""Attention over positions by the fastest fused kernel of its size: PyTorch's default, cuDNN's or FlashAttention 4.

`attention` serves layers that are written here; `order_of` serves stock modules, whose attentions it observes.
FlashAttention 4 takes part while it is active (`guidedcd.acceleration.flash_attention`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from guidedcd.acceleration import flash_attention

CHOOSE = True
"""Whether other kernels than the default are tried, which also needs `torch.backends.cudnn.benchmark`."""
MARGIN = 0.97
"""Another kernel is used if it needs less than this share of the default kernel's time."""
USUAL = "usual"
"""The order in which PyTorch itself tries its kernels."""
_OTHERS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ORDERS = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_OTHERS],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *_OTHERS],
    "math": [SDPBackend.MATH],
}
"""Other orders, by the kernel that comes first."""
WIDEST = 256
"""Numbers of the widest head that a fast kernel takes."""
LONGEST = 8192
"""Tokens up to which the gradient of wide heads may keep matrices of L x L: 0.7 GB there."""
_FASTEST: dict[tuple[Any, ...], str] = {}


def candidates(q: Tensor, graded: bool) -> list[str]:
    """Keys of `ORDERS` that are compared with PyTorch's own order, for queries (..., L, D).

    The fast kernels have heads of at most 256 numbers. Of wider ones, products of matrices may be faster than what
    PyTorch chooses, but keep several matrices of L x L for the gradient.
    """
    if q.shape[-1] > WIDEST:
        return [] if graded and q.shape[-2] > LONGEST else ["math"]
    return ["cudnn"] if flash_attention.active() is None else ["cudnn", "flash"]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v of (N, heads, L, D), differentiable."""
    with first(_fastest(q, k, v, scale)):
        return nnf.scaled_dot_product_attention(q, k, v, scale=scale)


def tries(q: Tensor) -> bool:
    """Whether the kernels are compared for such queries."""
    usual = CHOOSE and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    return usual and torch.backends.cudnn.benchmark


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments of a call, also those in tuples."""
    tensors: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list):
            tensors += [one for one in value if isinstance(one, Tensor)]
    return tensors


def order_of(kind: type, tensors: Sequence[Tensor], graded: bool, call: Callable[[], Any]) -> str:
    """The order of kernels that is fastest for the largest attention of a stock module; see `first`.

    Args:
        kind: Class of the module.
        tensors: Its inputs, for which `tries` holds; modules of a class with inputs of the same sizes share one choice.
        graded: Whether its weights need a gradient.
        call: The module's forward pass, which is called once for each size, to observe its attentions.
    """
    graded = graded or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    key = (kind, graded, flash_attention.active(), *((x.device, x.dtype, x.shape, x.stride()) for x in tensors))
    if key not in _FASTEST:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return USUAL
        with torch.no_grad(), _Attentions() as observed:
            call()
        _FASTEST[key] = USUAL if observed.largest is None else _fastest(*observed.largest, graded=graded)
    return _FASTEST[key]


def first(order: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which the first kernel of an order computes the attentions that it can."""
    if order == USUAL:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = sdpa_kernel(ORDERS[order], set_priority=True)
    return context


class _Attentions(TorchFunctionMode):
    """Observes the fused attentions that are computed inside the block."""

    largest: tuple[Tensor, Tensor, Tensor, float | None] | None = None
    """Queries, keys, values and scale of the attention without a mask that takes most operations."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and keep what it is called with."""
        kwargs = kwargs or {}
        if function is nnf.scaled_dot_product_attention:
            self._observe(*args, **kwargs)
        return function(*args, **kwargs)

    def _observe(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *others: Any, **options: Any
    ) -> None:
        size = query.numel() * key.shape[-2]
        if attn_mask is None and (self.largest is None or size > self.largest[0].numel() * self.largest[1].shape[-2]):
            self.largest = query, key, value, options.get("scale")


def _fastest(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *, graded: bool | None = None) -> str:
    if torch.compiler.is_compiling() or not tries(q):
        return USUAL
    if graded is None:
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    key = (q.device, q.dtype, graded, flash_attention.active(), *((x.shape, x.stride()) for x in (q, k, v)))
    if key not in _FASTEST:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return USUAL
        inputs = [x.detach() for x in (q, k, v)]
        # In a separate thread, because a checkpoint around the caller must not count these calls.
        with ThreadPoolExecutor(1) as thread:
            _FASTEST[key] = thread.submit(fastest, inputs, scale, graded).result()
    return _FASTEST[key]


def fastest(inputs: list[Tensor], scale: float | None, graded: bool) -> str:
    """The order whose kernel takes the least time for these q, k and v; with gradients if `graded`.

    A kernel that fails, or has another result than PyTorch's default one, does not take part.
    """
    device = inputs[0].device
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)
    q, k, v = (x.requires_grad_(graded) for x in inputs)

    def run() -> Tensor:
        out = nnf.scaled_dot_product_attention(q, k, v, scale=scale)
        if graded:
            torch.autograd.grad(out, (q, k, v), out.detach())
        return out.detach()

    with torch.set_grad_enabled(graded):
        usual = run()
        least, best = MARGIN * _seconds(run, device), USUAL
        for order in candidates(q, graded):
            try:
                with first(order):
                    output, seconds = run(), _seconds(run, device)
            except Exception:  # packages and their compilers have classes of their own
                continue
            same = (usual.float() - output.float()).norm() <= 1e-2 * usual.float().norm()
            if bool(same) and seconds < least:
                least, best = seconds, order
    return best


def _seconds(run: Any, device: torch.device, repeats: int = 5) -> float:
    """The mean duration of one call."""
    for timed in (False, True):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats if timed else 1):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats
