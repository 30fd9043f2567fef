"""The kernels of `guidedcd.acceleration` one by one: microseconds, and bytes per second beside those of a copy.

    python benchmarks/fast_kernels.py --out fast_kernels.json
    TRITON_INTERPRET=1 python benchmarks/fast_kernels.py --tiny            # a CPU: whether they run

Sizes are those of VideoCrafter2's four levels at batch 4 in bfloat16. Bytes are the least that a kernel must read and
write. Rows of PyTorch measure what a kernel replaces. Other rows measure alternatives: a temporal convolution as three
matrix products, one product for queries, keys and values, and other divisions of a reduction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import harness  # first: it finds guidedcd where that is not installed
import networks
import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.nn.attention import sdpa_kernel

LEVELS = ((2560, 320), (640, 640), (160, 1280), (40, 1280))
"""Positions of a frame, and channels."""
VIDEOS = 4


@attrs.frozen
class Case:
    """One call."""

    name: str
    run: Callable[[], Any]
    moved: int = 0
    """Bytes; 0 where operations count."""
    flops: int = 0


class Cases:
    """All calls, built one by one."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.frames = VIDEOS * (2 if tiny else networks.FULL_SIZE.frames)

    def new(self, *shape: int) -> Tensor:
        """Random bfloat16."""
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def __iter__(self) -> Iterator[Case]:
        """Group norms first."""
        levels = [(4, 16)] if self.tiny else LEVELS
        for positions, channels in levels:
            for rows in (VIDEOS, self.frames):
                yield from self.group_norm(rows, self.frames // rows * positions, channels)
        if not self.tiny:
            yield from self.group_norm(1, 320 * 512, 128)  # a frame of the decoder
        yield from self.cuts(VIDEOS, self.frames // VIDEOS * levels[0][0], levels[0][1])
        for positions, channels in levels[:3]:
            yield from self.tokens(self.frames * positions, channels)
        for positions, channels in levels[:3]:
            yield from self.attention(positions, channels)
        for positions, channels in levels:
            yield from self.products(positions, channels)

    def group_norm(self, n: int, length: int, channels: int) -> Iterator[Case]:
        """Of frames or of videos, with SiLU and a shift, forward and backward."""
        from guidedcd.acceleration.kernels import group_norm as kernels

        x, grad, shift = self.new(n, length, channels), self.new(n, length, channels), self.new(n, channels)
        weight, bias = self.new(channels), self.new(channels)
        groups, where, size = channels // 4 if self.tiny else 32, f"({n}, {length}, {channels})", x.nbytes
        how = (groups, 1e-5, True, shift, torch.bfloat16)
        yield Case(f"group norm {where}", lambda: kernels.group_norm(x, weight, bias, *how), 3 * size)
        stats = kernels.group_norm(x, weight, bias, *how)[1]
        rest = (stats, weight, bias, groups, True, shift)
        yield Case(f"group norm backward {where}", lambda: kernels.group_norm_backward(grad, x, *rest), 5 * size)
        images = x.transpose(1, 2).contiguous()
        yield Case(
            f"PyTorch's group norm and SiLU, channels first {where}",
            lambda: nnf.silu(nnf.group_norm(images, groups, weight, bias)),
            3 * size,
        )

    def cuts(self, n: int, length: int, channels: int) -> Iterator[Case]:
        """The same group norm with its reductions cut otherwise."""
        from guidedcd.acceleration.kernels import group_norm as kernels

        x, weight, bias = self.new(n, length, channels), self.new(channels), self.new(channels)
        before = kernels.PROGRAMS, kernels.TILES

        def norm(programs: int, tiles: int) -> None:
            kernels.PROGRAMS, kernels.TILES = programs, tiles
            try:
                kernels.group_norm(x, weight, bias, channels // 4 if self.tiny else 32, 1e-5, True, None, x.dtype)
            finally:
                kernels.PROGRAMS, kernels.TILES = before

        for programs in (528, 1056, 2112, 4224):
            for tiles in (2, 4, 8) if programs == before[0] else (4,):
                name = f"group norm ({n}, {length}, {channels}) in {programs} programs, {tiles} tiles each"
                yield Case(name, lambda p=programs, t=tiles: norm(p, t), 3 * x.nbytes)

    def tokens(self, rows: int, channels: int) -> Iterator[Case]:
        """What transformers do to tokens."""
        from guidedcd.acceleration.kernels import backward
        from guidedcd.acceleration.kernels import forward as kernels

        x, delta, grad = (self.new(rows, channels) for _ in range(3))
        weight, bias, where = self.new(channels), self.new(channels), f"({rows}, {channels})"
        wide, narrow = self.new(rows, 8 * channels), self.new(rows, 4 * channels)
        size, norm = x.nbytes, (weight, bias, 1e-5, torch.bfloat16)
        yield Case(f"copy {where}", lambda: delta.copy_(x), 2 * size)
        yield Case(f"sum and layer norm {where}", lambda: kernels.layer_norm(x, delta, *norm), 4 * size)
        normed = backward.layer_norm_backward
        yield Case(f"layer norm backward {where}", lambda: normed(grad, delta, x, weight, 1e-5, True), 4 * size)
        yield Case(f"residual {where}", lambda: kernels.residual(x, delta, bias), 3 * size)
        yield Case(f"PyTorch's sum {where}", lambda: x + delta, 3 * size)
        inner = self.new(8 * channels)
        back = backward.geglu_backward
        yield Case(f"gated GELU {where}", lambda: kernels.geglu(wide, inner), 12 * size)
        yield Case(f"gated GELU backward {where}", lambda: back(narrow, wide, inner, True), 20 * size)
        yield Case(f"PyTorch's sum over tokens {where}", lambda: wide.sum(0), 8 * size)

    def attention(self, positions: int, channels: int) -> Iterator[Case]:
        """Within frames, by PyTorch's first choice and by cuDNN's kernel, forward and with its gradient."""
        from guidedcd.acceleration.attention_backend import ORDERS

        heads, where = max(1, channels // 64), f"({self.frames}, {positions}, {channels})"
        packed = self.new(self.frames, positions, 3 * channels)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        leaves = [part.detach().requires_grad_(True) for part in (q, k, v)]
        flops = 4 * self.frames * positions**2 * channels

        def run(cudnn: bool, graded: bool) -> Any:
            with sdpa_kernel(ORDERS["cudnn"], set_priority=True) if cudnn else contextlib.nullcontext():
                if not graded:
                    return nnf.scaled_dot_product_attention(q, k, v)
                out = nnf.scaled_dot_product_attention(*leaves)
                return torch.autograd.grad(out, leaves, out.detach())

        for graded in (False, True):
            for cudnn in (False, True):
                name = f"attention{' and gradient' * graded}, {'cuDNN' if cudnn else 'flash'} {where}"
                yield Case(name, lambda c=cudnn, g=graded: run(c, g), flops=flops * (7 if graded else 2) // 2)

    def products(self, positions: int, channels: int) -> Iterator[Case]:
        """Temporal convolutions and projections, in two ways each."""
        frames = self.frames // VIDEOS
        video = self.new(VIDEOS, frames, positions, channels)
        kernel = self.new(channels, channels, 3, 1).contiguous(memory_format=torch.channels_last)
        taps = [kernel[:, :, tap, 0].t().contiguous() for tap in range(3)]
        image, flops = video.permute(0, 3, 1, 2), 2 * 3 * video.numel() * channels

        def tapped() -> Tensor:
            out = video @ taps[1]
            after = out[:, 1:].flatten(1, 2)
            after.baddbmm_(video[:, :-1].flatten(1, 2), taps[0].expand(VIDEOS, -1, -1))
            before = out[:, :-1].flatten(1, 2)
            before.baddbmm_(video[:, 1:].flatten(1, 2), taps[2].expand(VIDEOS, -1, -1))
            return out

        where = f"({VIDEOS}, {frames}, {positions}, {channels})"
        yield Case(f"temporal convolution {where}", lambda: nnf.conv2d(image, kernel, padding=(1, 0)), flops=flops)
        yield Case(f"temporal convolution, three products {where}", tapped, flops=flops)
        tokens, three = video.flatten(0, 2), [self.new(channels, channels) for _ in range(3)]
        joint, where = torch.cat(three), f"({tokens.shape[0]}, {channels})"
        yield Case(f"queries, keys, values {where}", lambda: [nnf.linear(tokens, w) for w in three], flops=flops)
        yield Case(f"queries, keys, values in one product {where}", lambda: nnf.linear(tokens, joint), flops=flops)
        yield Case(
            f"the same, joined anew {where}", lambda: nnf.linear(tokens, torch.cat(three)), flops=flops
        )  # as in training, where weights change


def measure(recorder: harness.Recorder, case: Case, device: str) -> None:
    """Add the row of one kernel."""
    seconds = harness.time_kernel(case.run, device)
    rate = {"tb_per_s": case.moved / seconds / 1e12} if case.moved else {"tflop_per_s": case.flops / seconds / 1e12}
    recorder.add(case.name, {"us": 1e6 * seconds, **rate})


def main() -> None:
    """Measure."""
    options = harness.parser(__doc__, budget=60).parse_args()
    torch.backends.cudnn.benchmark = True
    recorder = harness.Recorder(options, "fast_kernels")
    for case in Cases(options.device, options.tiny):
        if harness.selected(case.name, options.only):
            recorder.attempt(case.name, lambda case=case: measure(recorder, case, options.device))


if __name__ == "__main__":
    main()
