"""The denoiser of VideoCrafter2's size, forward and in training: stock, and accelerated by `guidedcd.acceleration`.

    python benchmarks/unet.py --out unet.json --budget 150
    for i in 1 2 3 4; do
        CUDA_VISIBLE_DEVICES=$((i-1)) python benchmarks/unet.py --part $i/4 --out unet$i.json > unet$i.txt 2>&1 &
    done; wait

Variants are measured in the order of what is expected of them; a row is printed as soon as it is known, the sorted
table at the end. Errors are those of bfloat16 results against the stock network in float32 with the same weights.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import bare  # also finds guidedcd where it is not installed
import torch
from guidedcd_shapes import attention as processors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidedcd import acceleration
from guidedcd.acceleration import attention_backend, operations
from guidedcd.acceleration.activation_checkpointing import checkpoint_layers
from guidedcd.training.master_weights import MasterWeights

OFFICIAL = {1: 78.8, 2: 64.0, 4: 57.3}
"""Milliseconds per sample of the official code with PyTorch's attention, by batch, on an H200."""


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
    """Layers that are computed again, see `student.checkpoint_layers`."""
    autocast: bool = False
    """Train float32 weights under autocast, rather than bfloat16 weights with float32 masters."""
    profile: bool = False


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
        return processors.speed_up(network, bare.FRAMES)

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
    """cuDNN's search, attention's backend and Triton as the variant says."""
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


class Bench:
    """Networks, references and what is known so far."""

    def __init__(self, options: Any) -> None:
        self.options, self.device = options, options.device
        self.results = bare.Results(options.out, options.budget)
        self.network = bare.unet(self.device, torch.bfloat16, options.tiny)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.reference = self.exact()
        count = sum(p.numel() for p in self.network.parameters())
        self.results.add(what="built", parameters=count, **bare.machine())

    def inputs(self, batch: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
        """Random inputs."""
        return bare.inputs(batch, self.device, dtype, self.options.tiny)

    @torch.no_grad()
    def exact(self) -> Tensor:
        """The stock network in float32 on the first sample."""
        z, t, prompt = self.inputs(1)
        network = copy.deepcopy(self.network).float()
        return network(z.float(), t, prompt.float(), return_dict=False)[0].cpu()

    def measure(self, variant: Variant) -> None:
        """One row; an exception becomes the row."""
        bare.reset(self.device)
        torch._dynamo.reset()
        about = {"name": variant.name, "kind": variant.kind, "batch": variant.batch}
        try:
            with settings(variant):
                how = self.forward if variant.kind == "forward" else self.train
                self.results.add(**about, **how(variant))
        except Exception as mistake:
            traceback.print_exc()
            self.results.add(**about, error=f"{type(mistake).__name__}: {str(mistake).splitlines()[0][:200]}")
        gc.collect()

    @torch.no_grad()
    def forward(self, variant: Variant) -> dict[str, Any]:
        """Milliseconds per sample, memory and error."""
        network = variant.prepare(copy.deepcopy(self.network))
        z, t, prompt = self.inputs(variant.batch)

        def run() -> Tensor:
            return network(z, t, encoder_hidden_states=prompt, return_dict=False)[0]

        start = time.perf_counter()
        out = run()
        bare.synchronize(self.device)
        first = time.perf_counter() - start
        relative, largest = bare.error(out[:1], self.reference)
        seconds, spread = bare.timed(run, self.device)
        row = {"ms_per_sample": 1e3 * seconds / variant.batch, "spread_ms": 1e3 * spread, "first_call_s": first}
        row |= {"peak_gb": bare.peak_gb(self.device), "relative_error": relative, "largest_error": largest}
        row |= {"official_ms": OFFICIAL.get(variant.batch, float("nan"))}
        if variant.profile and self.device.startswith("cuda"):
            profile(run, f"{variant.name}, batch {variant.batch}")
        return row

    def train(self, variant: Variant) -> dict[str, Any]:
        """Milliseconds of forward and backward, or of a whole step with clipping and AdamW in float32."""
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

        start = time.perf_counter()
        out = run()
        bare.synchronize(self.device)
        first = time.perf_counter() - start
        relative, largest = bare.error(out[:1], self.reference)
        seconds, spread = bare.timed(run, self.device, repeats=5)
        row = {"ms": 1e3 * seconds, "spread_ms": 1e3 * spread, "first_call_s": first}
        row |= {"peak_gb": bare.peak_gb(self.device), "relative_error": relative, "largest_error": largest}
        if whole:
            row |= {"moved": (weights.masters[0] - before).abs().max().item()}
        if variant.profile and self.device.startswith("cuda"):
            profile(run, f"{variant.name}, batch {variant.batch}")
        return row


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
    options = bare.parser(__doc__, budget=150).parse_args()
    bench = Bench(options)
    for variant in bare.chosen(variants(), options.part, options.only):
        if bench.results.spent():
            print(f"left out, the budget of {options.budget:.0f} s is spent: {variant.name}, batch {variant.batch}")
            continue
        bench.measure(variant)
    common = {"spread_ms": ".2f", "first_call_s": ".1f", "peak_gb": ".1f", "relative_error": ".2e", "name": ""}
    bench.results.table({"ms_per_sample": ".2f", "batch": "d", **common}, "ms_per_sample")
    bench.results.table({"ms": ".1f", "batch": "d", **common, "kind": ""}, "ms")


if __name__ == "__main__":
    main()
