"""The denoiser of VideoCrafter2's size, forward and in training: stock, and accelerated by `guidedcd.acceleration`.

    python benchmarks/unet.py --out unet.json
    CUDA_VISIBLE_DEVICES=0 python benchmarks/unet.py --part 1/4 --out unet1.json    # a quarter of the variants
    python benchmarks/unet.py --tiny --only fast                                    # a CPU, a tiny network

Variants are measured in the order of what is expected of them, and sorted in the table at the end. Errors are those of
bfloat16 results against the stock network in float32 with the same weights; the error of `stock` is that of bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import harness  # first: it finds guidedcd where that is not installed
import networks
import torch
from guidedcd_shapes import attention as processors
from harness import time_calls
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidedcd import acceleration
from guidedcd.acceleration import attention_backend, operations
from guidedcd.acceleration.activation_checkpointing import checkpoint_layers
from guidedcd.training.master_weights import MasterWeights


@attrs.frozen(kw_only=True)
class Variant:
    """One way to run the network."""

    name: str
    kind: str = "forward"
    """forward, train (forward and backward), or step (a whole consistency step with its optimiser)."""
    prepare: Callable[[nn.Module], nn.Module]
    batch: int = 4
    benchmark: bool = True
    """Let cuDNN try its convolutions."""
    attention: str = "faster"
    """Fused attention over positions: whichever is faster, or always flash, or always cudnn."""
    triton: bool = True
    norms: bool = True
    """Compiled layers call the group norm kernels."""
    checkpointing: str | None = None
    """Layers that are computed again, see `activation_checkpointing.checkpoint_layers`."""
    autocast: bool = False
    """Train float32 weights under autocast, rather than bfloat16 weights with float32 masters."""
    profile: bool = False

    @property
    def row(self) -> str:
        """The name of its row."""
        return f"{self.name}, batch {self.batch}"


def variants() -> list[Variant]:
    """All of them, the most promising first."""

    def stock(network: nn.Module) -> nn.Module:
        return network

    def quick(**options: Any) -> Callable[[nn.Module], nn.Module]:
        return lambda network: acceleration.speed_up(network, **options)

    def whole(network: nn.Module) -> nn.Module:
        network = acceleration.speed_up(network)
        network.forward = torch.compile(network.forward, dynamic=False)
        return network

    def layout(network: nn.Module) -> nn.Module:
        return network.to(memory_format=torch.channels_last)

    def tricks(network: nn.Module) -> nn.Module:
        return processors.speed_up(network, networks.FULL_SIZE.frames)

    blocks, both = quick(compile="blocks"), quick(compile="blocks", graphs=True)
    step = functools.partial(Variant, kind="step", batch=3)
    return [
        Variant(name="fast", prepare=quick(), profile=True),
        step(name="step fast", prepare=quick(), profile=True),
        step(name="step fast most", prepare=quick(), checkpointing="most", profile=True),
        Variant(name="fast graph", prepare=quick(graphs=True)),
        Variant(name="fast graph", prepare=quick(graphs=True), batch=1),
        Variant(name="fast cudnn-attention", prepare=quick(), attention="cudnn"),
        Variant(name="fast flash-attention", prepare=quick(), attention="flash"),
        step(name="step fast checkpointing", prepare=quick(), checkpointing="all"),
        Variant(name="fast", prepare=quick(), batch=8),
        Variant(name="fast graph", prepare=quick(graphs=True), batch=8),
        Variant(name="fast", prepare=quick(), batch=1),
        step(name="step fast temporal", prepare=quick(), checkpointing="temporal"),
        step(name="step fast flash-attention", prepare=quick(), attention="flash"),
        Variant(name="stock", prepare=stock, benchmark=False, profile=True),
        Variant(name="fast no-triton", prepare=quick(), triton=False),
        Variant(name="blocks", prepare=blocks, profile=True),
        step(name="step blocks", prepare=blocks),
        step(name="step stock autocast", prepare=stock, benchmark=False, autocast=True),
        Variant(name="blocks cudnn-attention", prepare=blocks, attention="cudnn"),
        Variant(name="blocks compiler-norms", prepare=blocks, norms=False),
        Variant(name="stock channels-last", prepare=layout),
        Variant(name="prompt-once + conv2d", prepare=tricks),
        step(name="step fast autocast", prepare=quick(), autocast=True),
        Variant(name="fast", prepare=quick(), batch=2),
        Variant(name="blocks graph", prepare=both, batch=1),
        Variant(name="stock", prepare=stock, batch=1, benchmark=False),
        Variant(name="stock cudnn-benchmark", prepare=stock),
        step(name="step blocks checkpointing", prepare=blocks, checkpointing="all"),
        Variant(name="stock", prepare=stock, batch=8, benchmark=False),
        Variant(name="fast graph", prepare=quick(graphs=True), batch=2),
        Variant(name="fast no-benchmark", prepare=quick(), benchmark=False),
        Variant(name="train fast", kind="train", prepare=quick(), batch=3),
        Variant(name="train stock", kind="train", prepare=stock, batch=3, benchmark=False),
        Variant(name="blocks", prepare=blocks, batch=8),
        Variant(name="whole", prepare=whole),
        Variant(name="blocks-tuned", prepare=quick(compile="blocks-tuned")),
    ]


@contextlib.contextmanager
def settings(variant: Variant) -> Iterator[None]:
    """Set cuDNN's search, the backend of attention and Triton for a variant."""
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if variant.attention == "cudnn":
        order[:2] = order[1::-1]
    attention_backend.CHOOSE = variant.attention == "faster"
    search, triton = torch.backends.cudnn.benchmark, operations.HAS_TRITON
    torch.backends.cudnn.benchmark = variant.benchmark
    operations.HAS_TRITON = triton and variant.triton
    operations.NORM_OPERATOR = variant.norms
    try:
        with sdpa_kernel(order, set_priority=True):
            yield
    finally:
        torch.backends.cudnn.benchmark, operations.HAS_TRITON = search, triton


class NetworkBenchmark:
    """The network, inputs for it, and the output to compare with."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.recorder = harness.Recorder(options, "unet")
        self.network = networks.unet(self.device, torch.bfloat16, options.tiny)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.reference = self.exact_output()

    def inputs(self, batch: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents, timesteps and prompt embeddings."""
        return networks.inputs(batch, self.device, dtype, self.options.tiny)

    @torch.no_grad()
    def exact_output(self) -> Tensor:
        """The stock network's prediction in float32 for the first sample."""
        z, t, prompt = self.inputs(1)
        network = copy.deepcopy(self.network).float()
        return network(z.float(), t, prompt.float(), return_dict=False)[0].cpu()

    def measure(self, variant: Variant) -> None:
        """Add the row of a variant."""
        torch._dynamo.reset()
        with settings(variant):
            run, moved = self.forward(variant) if variant.kind == "forward" else self.train(variant)
            repeats = self.options.repeats if variant.kind == "forward" else min(self.options.repeats, 5)
            timing = time_calls(run, self.device, repeats=repeats, warm_up=self.options.warm_up)
            if variant.profile and torch.device(self.device).type == "cuda":
                profile(run, variant.row)
        values = timing.values(per=variant.batch if variant.kind == "forward" else 1)
        milliseconds = 1e3 * values.pop("seconds")
        key = "ms_per_sample" if variant.kind == "forward" else "ms"
        errors = harness.relative_errors(timing.first_output[:1], self.reference)
        self.recorder.add(variant.row, {key: milliseconds, **values, **errors}, kind=variant.kind, **moved())

    def forward(self, variant: Variant) -> tuple[Callable[[], Tensor], Callable[[], dict[str, float]]]:
        """The forward pass without gradient."""
        network = variant.prepare(copy.deepcopy(self.network))
        z, t, prompt = self.inputs(variant.batch)

        @torch.no_grad()
        def run() -> Tensor:
            return network(z, t, encoder_hidden_states=prompt, return_dict=False)[0]

        return run, dict

    def train(self, variant: Variant) -> tuple[Callable[[], Tensor], Callable[[], dict[str, float]]]:
        """Forward and backward, or a whole step with clipping and AdamW in float32; and how far weights have moved."""
        network = copy.deepcopy(self.network).requires_grad_(True)
        whole = variant.kind == "step"
        network = variant.prepare(network.float() if variant.autocast or whole else network)
        if variant.checkpointing:
            checkpoint_layers(network, variant.checkpointing)
        z, t, prompt = self.inputs(variant.batch, torch.float32 if variant.autocast else torch.bfloat16)
        goal = torch.randn(z.shape, device=z.device)
        kind, narrow = torch.device(self.device).type, None if variant.autocast else torch.bfloat16
        weights = MasterWeights(network, dtype=narrow) if whole else None  # the trainer's own
        optimizer = torch.optim.AdamW(weights.masters, lr=1e-6, fused=kind == "cuda") if whole else None
        before = weights.masters[0].clone() if whole else None

        def run() -> Tensor:
            with torch.autocast(kind, torch.bfloat16, enabled=variant.autocast):
                out = network(z, t, encoder_hidden_states=prompt, return_dict=False)[0].float()
                if whole:
                    with torch.no_grad():
                        network(z, t, encoder_hidden_states=prompt, return_dict=False)
            ((out - goal).square() + 1e-6).sqrt().mean().backward()
            if whole:
                weights.collect()
                torch.nn.utils.clip_grad_norm_(weights.masters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                weights.publish()
            network.zero_grad(set_to_none=True)
            return out.detach()

        def moved() -> dict[str, float]:
            return {"moved": (weights.masters[0] - before).abs().max().item()} if whole else {}

        return run, moved


GROUPS = {
    "optimiser": r"FusedOptimizer|multi_tensor_apply|lpnorm",
    "frame attention": r"_attend",
    "gated GELU": r"geglu|gelu",
    "sums of layers": r"^_residual$|CUDAFunctor_add",
    "sums over tokens": r"reduce_kernel",
    "attention": r"flash|fmha|sdpa|attention|cudnn_generated_fort",
    "convolution": r"conv|implicit|xmma_fprop|cutlass.*fprop|dgrad|wgrad",
    "matrix product": r"gemm|nvjet|cutlass|cublas|splitK|gemv",
    "norm": r"norm|moments|_combine|^_sums$|^_slopes$|^_back$|welford|RowwiseMoments|native_group|var_mean",
    "layout and copy": r"nchw|nhwc|transpose|copy|Memcpy|CatArray|permute",
    "triton": r"triton",
}
"""Kernels by name; the first match counts."""


def group_of(kernel: str) -> str:
    """The first group whose words a kernel's name contains."""
    return next((g for g, words in GROUPS.items() if re.search(words, kernel, re.IGNORECASE)), "elementwise, other")


def profile(run: Callable[[], Any], title: str) -> None:
    """Where one call's GPU time goes: by group, and the 25 kernels that take most of it."""
    from torch.autograd import DeviceType

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    kernels, calls = Counter(), Counter()
    for event in trace.events():
        if event.device_type == DeviceType.CUDA:
            kernels[event.name] += event.device_time
            calls[event.name] += 1
    total = sum(kernels.values()) or 1.0
    groups = Counter()
    for name, spent in kernels.items():
        groups[group_of(name)] += spent
    print(f"\nprofile of {title}: {total / 1e3:.1f} ms in {sum(calls.values())} kernels")
    for group, spent in groups.most_common():
        print(f"  {spent / 1e3:8.2f} ms {100 * spent / total:5.1f} %  {group}")
    for name, spent in kernels.most_common(25):
        print(f"    {spent / 1e3:8.3f} ms {calls[name]:5d}x  {name[:110]}")
    print(flush=True)


def main() -> None:
    """Measure, and print the tables."""
    parser = harness.parser(__doc__, budget=150)
    parser.add_argument("--part", default="1/1", help="i/n: measure every n-th variant, beginning with the i-th")
    options = parser.parse_args()
    benchmark = NetworkBenchmark(options)
    first, count = (int(word) for word in options.part.split("/"))
    for variant in variants()[first - 1 :: count]:
        if harness.selected(variant.row, options.only):
            benchmark.recorder.attempt(variant.row, lambda variant=variant: benchmark.measure(variant))
    columns = {"spread_s": ".4f", "first_call_s": ".1f", "peak_gb": ".1f", "relative_error": ".2e", "name": ""}
    benchmark.recorder.table({"ms_per_sample": ".2f", **columns}, "ms_per_sample")
    benchmark.recorder.table({"ms": ".1f", **columns}, "ms")


if __name__ == "__main__":
    main()
