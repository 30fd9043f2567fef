"""Attention over positions by the faster fused kernel of its size: PyTorch's default or cuDNN's.

`attention` serves layers that are written here; `kernels_of` serves stock modules, whose attentions it observes.
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

CHOOSE = True
"""Whether cuDNN's kernel is tried, which also needs `torch.backends.cudnn.benchmark`."""
MARGIN = 0.97
"""cuDNN's kernel is used if it needs less than this share of the default kernel's time."""
CUDNN = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_FASTER: dict[tuple[Any, ...], bool] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v of (N, heads, L, D), differentiable."""
    with cudnn_first() if _cudnn_is_faster(q, k, v, scale) else contextlib.nullcontext():
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


def kernels_of(
    kind: type, tensors: Sequence[Tensor], graded: bool, call: Callable[[], Any]
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A context in which a stock module computes its attentions with the kernel that is faster for the largest one.

    Args:
        kind: Class of the module.
        tensors: Its inputs, for which `tries` holds; modules of a class with inputs of the same sizes share one choice.
        graded: Whether its weights need a gradient.
        call: The module's forward pass, which is called once for each size, to observe its attentions.
    """
    graded = graded or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    key = (kind, graded, *((x.device, x.dtype, x.shape, x.stride()) for x in tensors))
    if key not in _FASTER:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return contextlib.nullcontext
        with torch.no_grad(), _Attentions() as observed:
            call()
        _FASTER[key] = observed.largest is not None and _cudnn_is_faster(*observed.largest, graded=graded)
    return cudnn_first if _FASTER[key] else contextlib.nullcontext


def cudnn_first() -> contextlib.AbstractContextManager[Any]:
    """A context in which cuDNN's kernel computes the attentions that it can."""
    context: contextlib.AbstractContextManager[Any] = sdpa_kernel(CUDNN, set_priority=True)
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


def _cudnn_is_faster(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *, graded: bool | None = None) -> bool:
    if torch.compiler.is_compiling() or not tries(q):
        return False
    if graded is None:
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    key = (q.device, q.dtype, graded, *((x.shape, x.stride()) for x in (q, k, v)))
    if key not in _FASTER:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        inputs = [x.detach() for x in (q, k, v)]
        # In a separate thread, because a checkpoint around the caller must not count these calls.
        with ThreadPoolExecutor(1) as thread:
            _FASTER[key] = thread.submit(is_faster, inputs, scale, graded).result()
    return _FASTER[key]


def is_faster(inputs: list[Tensor], scale: float | None, graded: bool) -> bool:
    """Whether cuDNN's kernel takes less time for these q, k and v with the same result; with gradients if `graded`.

    A kernel that fails is not faster.
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
        usual, usual_seconds = run(), _seconds(run, device)
        try:
            with sdpa_kernel(CUDNN, set_priority=True):
                cudnn, cudnn_seconds = run(), _seconds(run, device)
        except RuntimeError:
            return False
    same = (usual.float() - cudnn.float()).norm() <= 1e-2 * usual.float().norm()
    return bool(same) and cudnn_seconds < MARGIN * usual_seconds


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
