"""How fast a device is: peaks of known GPUs, and what share of them these networks reach.

A kernel is bound by its operations or by the memory it moves; a step is bound by the sum of its kernels, or by the
host that launches them.
"""

from __future__ import annotations

import time

import attrs
import torch

from guidedcd.acceleration.options import resolved
from guidedcd.errors import GuidedCDError
from guidedcd.planning.meter import Cost

GB = 2**30

KNOWN = {
    # name in lower case: dense 16-bit TFLOP/s, 32-bit TFLOP/s, memory TB/s, memory GB; makers' data sheets
    "b200": (2250, 75, 8.0, 180),
    "h200": (989, 67, 4.8, 141),
    "h100 nvl": (835, 60, 3.9, 94),
    "h100 pcie": (756, 51, 2.0, 80),
    "h100": (989, 67, 3.35, 80),
    "gh200": (989, 67, 4.0, 96),
    "a100 40gb": (312, 19.5, 1.56, 40),
    "a100": (312, 19.5, 2.0, 80),
    "a6000": (155, 38.7, 0.77, 48),
    "rtx 6000 ada": (182, 91, 0.96, 48),
    "l40s": (362, 91.6, 0.86, 48),
    "l4": (121, 30.3, 0.3, 24),
    "a10": (125, 31.2, 0.6, 24),
    "v100": (125, 15.7, 0.9, 32),
    "t4": (65, 8.1, 0.32, 16),
    "5090": (209, 104.8, 1.79, 32),
    "4090": (165, 82.6, 1.01, 24),
    "3090": (71, 35.6, 0.94, 24),
}
"""GPUs by a part of the name that the driver gives; the longest part that fits counts."""

SHARES = {"no": 0.37, "layers": 0.65, "graphs": 0.65, "blocks": 0.62, "blocks-tuned": 0.62}
"""Of a GPU's peaks, reached by each path through a network, the options `fast` of preprocess and train.

On an H200 at VideoCrafter2's size: stock kernels take 57 ms a sample and 0.81 s a step at batch 3, both 0.37; `layers`
31.5 ms and 0.44 s, 0.67 and 0.69; `blocks` 34 ms with older kernels.
"""
LAUNCH = 5e-5
"""Seconds of the host per kernel, run from Python."""
CPU_SHARE = 0.3
"""Of the matrix product's speed that is measured on the spot, reached on a CPU."""
CPU_BANDWIDTH = 1e10
"""Bytes per second that a CPU moves, with the share above still to come off."""


@attrs.frozen(kw_only=True)
class Machine:
    """One device of a run."""

    name: str
    kind: str
    """cpu, cuda or mps."""
    half: float
    """Peak of 16-bit operations per second."""
    single: float
    """Peak of 32-bit operations per second."""
    bandwidth: float
    """Peak bytes per second."""
    memory: float
    """Bytes."""
    share: float
    """Of the peaks, what these networks reach."""
    launch: float = LAUNCH
    """Seconds of the host per kernel."""
    source: str = ""
    """Where the figures come from."""

    def with_layers(self, fast: str) -> Machine:
        """The same with the path `fast` through the networks, an option of `preprocess` and `train`."""
        if self.kind != "cuda":
            return self
        return attrs.evolve(self, share=SHARES[resolved(fast, self.kind)])

    def seconds(self, cost: Cost) -> float:
        """How long a computation takes."""
        peaks = (self.single, self.half)
        busy = sum(max(k.flops / peaks[k.half], k.moved / self.bandwidth) for k in cost.kernels) / self.share
        return max(busy, len(cost.kernels) * self.launch)


def machine(device: torch.device, *, like: str | None = None, tflops: float | None = None, memory: float | None = None):
    """The device a run would use.

    Args:
        device: What the run says, resolved on this machine.
        like: Name of a GPU to plan for instead, a part of it is enough ("h200", "4090").
        tflops: Peak of 16-bit operations, in TFLOP/s, instead of the known or measured one.
        memory: Its memory in GB, likewise.

    Raises:
        GuidedCDError: `like` is not known.
    """
    if like is not None:
        found = _known(like)
        if found is None and tflops is None:
            raise GuidedCDError(
                f"--on {like}: no such GPU is known ({', '.join(KNOWN)}). Give --device-tflops and --device-memory."
            )
        made = _gpu(like, found or (tflops, tflops / 10, tflops / 200, memory or 24))
    elif device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found = _known(about.name)
        made = _gpu(about.name, found) if found else _measured(about.name, device)
        made = attrs.evolve(made, memory=float(about.total_memory))
    else:
        made = _measured(f"{device.type}, {torch.get_num_threads()} threads", device)
    if tflops is not None:
        changed = {"half": tflops * 1e12, "single": tflops * 1e12 * made.single / made.half}
        made = attrs.evolve(made, **changed, source="--device-tflops")
    return made if memory is None else attrs.evolve(made, memory=memory * GB)


def _known(name: str) -> tuple[float, float, float, float] | None:
    fits = [part for part in KNOWN if all(word in name.lower() for word in part.split())]
    return KNOWN[max(fits, key=len)] if fits else None


def _gpu(name: str, figures: tuple[float, float, float, float]) -> Machine:
    half, single, bandwidth, memory = figures
    return Machine(
        name=name if any(c.isupper() for c in name) else name.upper(),
        kind="cuda",
        half=half * 1e12,
        single=single * 1e12,
        bandwidth=bandwidth * 1e12,
        memory=memory * GB,
        share=SHARES["no"],
        source="data sheet",
    )


def _measured(name: str, device: torch.device) -> Machine:
    """A device without a data sheet here: a matrix product is timed."""
    gpu = device.type != "cpu"
    side = 4096 if gpu else 512
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        a = torch.ones(side, side, device=device, dtype=dtype)
        float((a @ a)[0, 0])
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.05:
            float((a @ a)[0, 0])
            count += 1
        speeds[dtype] = 2 * side**3 * count / (time.perf_counter() - began)
    single = speeds[torch.float32]
    return Machine(
        name=name,
        kind=device.type,
        half=speeds.get(torch.bfloat16, single),
        single=single,
        bandwidth=single / 200 if gpu else CPU_BANDWIDTH,
        memory=float(_host_memory()),
        share=SHARES["no"] if gpu else CPU_SHARE,
        source="a matrix product timed now",
    )


def _host_memory() -> int:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 * GB
