"""Speed of devices: peaks of GPUs from data sheets, and the share of the peaks that these networks reach.

The time of a kernel is bound by its operations or by the memory that it moves. The time of a step is bound by the sum
of its kernels, or by the host that launches them.
"""

from __future__ import annotations

import re
import time

import attrs
import torch

from guidedcd.acceleration.options import resolved
from guidedcd.errors import GuidedCDError, shown
from guidedcd.planning.meter import Cost

GIB = 2**30
"""Memory is stated in these units, as the makers of GPUs do; disk in units of 1e9 bytes."""

DATA_SHEETS = {
    # name in lower case: dense 16-bit TFLOP/s, 32-bit TFLOP/s, memory TB/s, memory GB, from the makers' data sheets
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
"""By words in the driver's name of the GPU; the longest match is used."""

SHARES = {
    "no": 0.37,
    "layers": 0.65,
    "graphs": 0.65,
    "blocks": 0.62,
    "blocks-graphs": 0.62,
    "blocks-tuned": 0.62,
}
"""Share of a GPU's peaks that each path through a network reaches; the options `fast` of preprocess and train.

On an H200 at VideoCrafter2's size: stock kernels take 57 ms a sample and 0.81 s a step at batch 3, both 0.37; `layers`
31.5 ms and 0.44 s, 0.67 and 0.69; `blocks` 34 ms with older kernels.
"""
LAUNCH = 5e-5
"""Seconds that the host needs to launch one kernel from Python."""
_STOCK, _COMPILED = (0.68, 2.5e-5), (0.88, 1.1e-5)
TRANSFORMERS = {
    "no": _STOCK,
    "layers": _STOCK,
    "graphs": _STOCK,
    "blocks": _COMPILED,
    "blocks-graphs": _COMPILED,
    "blocks-tuned": _COMPILED,
}
"""The share of the peaks, and the seconds to launch a kernel, of a transformer of repeated blocks by path.

On an H200 at Wan 1.3B's size a stock pass takes 41 ms (33 frames of 256x448), 162 ms (four such videos) and 620 ms (81
frames of 480x832); a compiled one 31, 107 and 519. Compiled code launches fewer kernels than are counted.
"""
CPU_SHARE = 0.3
"""Share of the measured speed of a matrix product that these networks reach on a CPU."""
WITHIN = 1.25
"""Factor by which times of known and of measured devices may be wrong, in either direction."""
WITHIN_UNMEASURED = 3.0
"""The same factor where a matrix product alone was measured."""
CPU_BANDWIDTH = 1e10
"""Bytes per second that a CPU moves, before multiplication with `CPU_SHARE`."""


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
    """Share of the peaks that these networks reach with stock kernels."""
    within: float = WITHIN
    """Factor by which a predicted time may be wrong, in either direction."""
    slowdown: float = 1.0
    """Mean time of a measured pass in units of the fastest one; other work on the machine makes it larger."""
    launch: float = LAUNCH
    """Seconds that the host needs to launch one kernel."""
    source: str = ""
    """Origin of the figures, e.g. "data sheet"."""

    def with_layers(self, fast: str, *, transformer: bool = False) -> Machine:
        """The machine with the share of the path `fast`, an option of `preprocess` and `train`.

        `share` is that of stock kernels, from `SHARES` or measured; other paths are faster by the ratio of `SHARES`.

        Args:
            fast: Value of the option.
            transformer: Whether the network is a transformer of repeated blocks, which have shares of their own.
        """
        if self.kind != "cuda":
            return self
        if transformer:
            share, launch = TRANSFORMERS[resolved(fast, self.kind)]
            return attrs.evolve(self, share=self.share * share / SHARES["no"], launch=launch)
        return attrs.evolve(self, share=self.share * SHARES[resolved(fast, self.kind)] / SHARES["no"])

    def seconds(self, cost: Cost) -> float:
        """Seconds that a computation takes."""
        peaks = (self.single, self.half)
        busy = sum(max(k.flops / peaks[k.half], k.moved / self.bandwidth) for k in cost.kernels) / self.share
        return max(busy, len(cost.kernels) * self.launch) * self.slowdown

    def range_of(self, seconds: float) -> tuple[float, float]:
        """The shortest and the longest time that is to be expected where `seconds` is predicted."""
        return seconds / self.slowdown / self.within, seconds * self.within


def machine(
    device: torch.device, *, like: str | None = None, tflops: float | None = None, memory: float | None = None
) -> Machine:
    """The device that a run would use.

    Args:
        device: The run's device on this machine.
        like: Name of another GPU to plan for, or words of it ("h200", "4090").
        tflops: Peak of 16-bit operations, in TFLOP/s, in place of the data sheet or a measurement.
        memory: Memory in GB, likewise.

    Raises:
        GuidedCDError: No data sheet fits `like`, and `tflops` is None.
    """
    if like is not None:
        figures = _data_sheet(like)
        if figures is None:
            if tflops is None:
                names = ", ".join(DATA_SHEETS)
                raise GuidedCDError(
                    f"--on is {shown(like)}, which names no known GPU. Known: {names}. For another one, give "
                    "--device-tflops and --device-memory."
                )
            figures = (tflops, tflops / 10, tflops / 200, memory or 24)
        result = _gpu(like, figures)
    elif device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures = _data_sheet(properties.name)
        result = _gpu(properties.name, figures) if figures else _measured(properties.name, device)
        result = attrs.evolve(result, memory=float(properties.total_memory))
    else:
        result = _measured(f"{device.type}, {torch.get_num_threads()} threads", device)
    if tflops is not None:
        half, single = tflops * 1e12, tflops * 1e12 * result.single / result.half
        result = attrs.evolve(result, half=half, single=single, within=WITHIN, source="--device-tflops")
    return result if memory is None else attrs.evolve(result, memory=memory * GIB)


def _data_sheet(name: str) -> tuple[float, float, float, float] | None:
    """(16-bit TFLOP/s, 32-bit TFLOP/s, memory TB/s, memory GB) of a GPU; None without a data sheet."""
    matches = [words for words in DATA_SHEETS if all(_is_in(word, name.lower()) for word in words.split())]
    return DATA_SHEETS[max(matches, key=len)] if matches else None


def _is_in(word: str, name: str) -> bool:
    """Whether a name contains a word that no digit precedes or follows: an L40 is no L4."""
    return re.search(rf"(?<!\d){re.escape(word)}(?!\d)", name) is not None


def _gpu(name: str, figures: tuple[float, float, float, float]) -> Machine:
    half, single, bandwidth, memory = figures
    return Machine(
        name=name if any(c.isupper() for c in name) else name.upper(),
        kind="cuda",
        half=half * 1e12,
        single=single * 1e12,
        bandwidth=bandwidth * 1e12,
        memory=memory * GIB,
        share=SHARES["no"],
        source="data sheet",
    )


def _measured(name: str, device: torch.device) -> Machine:
    """A device without a data sheet, with the measured speed of a matrix product."""
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
        within=WITHIN_UNMEASURED,
        source="a matrix product, measured now",
    )


def _host_memory() -> int:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 * GIB
