"""How every benchmark measures and records: command line, time, memory, errors, and one JSON schema.

A script writes its results after every row to the file given by --out:

    {"schema": 1, "runs": [{
      "benchmark": "unet", "command": "python benchmarks/unet.py --repeats 11", "date": "2026-11-23", "tiny": false,
      "machine": {"device": "NVIDIA H200", "torch": "2.11.0+cu130", ...},
      "rows": [{"name": "fast, batch 4", "values": {"ms_per_sample": 31.6, "peak_gb": 8.1}, "details": {...}}]}]}

`values` are measured numbers, named with their unit: seconds, peak_gb (2^30 bytes), samples_per_hour. `details`
describe the setting or check the result. A row that was not measured has an `error` and no values. `results.json` is a
file of the same schema with many runs. Import this module first: it also finds guidedcd where that is not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import fnmatch
import gc
import importlib.metadata
import math
import platform
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "plugins")]

from figures import official  # noqa: E402

from guidedcd.acceleration.garbage import settled  # noqa: E402
from guidedcd.files import write_json  # noqa: E402

SCHEMA = 1
GB = 2**30
PACKAGES = ("diffusers", "triton", "transformers", "open_clip_torch")
"""Packages whose versions are recorded beside those of Python and torch."""


def parser(description: str | None, *, budget: float, repeats: int = 7, warm_up: int = 2) -> argparse.ArgumentParser:
    """The options that every benchmark has, with a script's own defaults."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="JSON file of all rows, rewritten after each of them")
    options.add_argument("--only", default="", help="comma-separated: rows whose name contains one; '*' is allowed")
    options.add_argument("--budget", type=float, default=budget, help="seconds after which no measurement begins")
    options.add_argument("--repeats", type=int, default=repeats, help="measured calls")
    options.add_argument("--warm-up", type=int, default=warm_up, help="calls before the measured ones")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--tiny", action="store_true", help="tiny networks: whether the script runs, on any machine")
    return options


def selected(name: str, only: str) -> bool:
    """Whether --only selects a row: its name contains one of the words or matches one with '*', or there are none."""
    words = [word for word in only.split(",") if word]
    return not words or any(word in name or fnmatch.fnmatch(name, word) for word in words)


def synchronize(device: str | torch.device) -> None:
    """Wait for the GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def free_memory() -> None:
    """Return unused memory to the GPU and to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_gb() -> float:
    """Most memory allocated on the GPU since the last reset, and what CUDA graphs reserve, in GB."""
    # Tensors between the kernels of a CUDA graph do not count as allocated.
    graphs = (segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) != (0, 0))
    reserved = sum(segment["total_size"] - segment["allocated_size"] for segment in graphs)
    return (torch.cuda.max_memory_allocated() + reserved) / GB


@attrs.frozen
class Timing:
    """Seconds of repeated calls, and the GPU memory at their peak."""

    seconds: tuple[float, ...]
    """Of every measured call, in order."""
    first_seconds: float
    """Of the first call, compilation included; a warm-up call where there is one."""
    first_output: Any = attrs.field(repr=False, default=None)
    peak_gb: float = math.nan
    """Of the measured calls, weights included; not a number on a CPU."""
    reserved_gb: float = math.nan

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Seconds between the fastest and the slowest call."""
        return max(self.seconds) - min(self.seconds)

    def values(self, *, per: int = 1) -> dict[str, float]:
        """The values of a row: seconds for each of `per` items that a call computes, spread, first call, memory."""
        return {
            "seconds": self.median / per,
            "spread_s": self.spread,
            "first_call_s": self.first_seconds,
            "peak_gb": self.peak_gb,
            "reserved_gb": self.reserved_gb,
        }

    @staticmethod
    def joined(rounds: Sequence[Timing]) -> Timing:
        """Several rounds of one setting as one measurement."""
        return Timing(
            tuple(seconds for one in rounds for seconds in one.seconds),
            rounds[0].first_seconds,
            peak_gb=max(one.peak_gb for one in rounds),
            reserved_gb=max(one.reserved_gb for one in rounds),
        )


def time_calls(
    call: Callable[[], Any],
    device: str | torch.device,
    *,
    repeats: int = 7,
    warm_up: int = 2,
    deferred: bool = False,
) -> Timing:
    """Time `repeats` calls after `warm_up` others, each until the GPU has finished.

    Args:
        call: What is measured.
        device: Where it computes.
        repeats: Measured calls, at least 1.
        warm_up: Calls before them, which may compile and search for the fastest kernels.
        deferred: `call` only launches its work and returns a function that waits for it. That function is called
            after the next launch, as the trainer does with the metrics of a step.
    """
    on_gpu = torch.device(device).type == "cuda"
    seconds: list[float] = []
    first_output = pending = None
    with settled():  # as in the loops of the package
        for number in range(warm_up + repeats):
            if on_gpu and number == warm_up:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            output = call()
            if deferred:
                if pending is not None:
                    pending()
                pending = output
            else:
                synchronize(device)
            seconds.append(time.perf_counter() - start)
            if number == 0:
                first_output = output
            del output
        if pending is not None:
            pending()
        synchronize(device)
    memory = (peak_gb(), torch.cuda.max_memory_reserved() / GB) if on_gpu else (math.nan, math.nan)
    return Timing(tuple(seconds[warm_up:]), seconds[0], first_output, *memory)


def time_kernel(call: Callable[[], Any], device: str | torch.device) -> float:
    """Seconds of one call among many, on the GPU alone; on a CPU those of one call."""
    if torch.device(device).type != "cuda":
        return time_calls(call, device, repeats=1, warm_up=0).median
    for _ in range(3):
        call()
    seconds = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # Calls are launched while this runs, so that the GPU never waits for Python between them.
        torch.cuda._sleep(2_000_000)
        start.record()
        for _ in range(10):
            call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e4)
    return statistics.median(seconds)


def relative_errors(output: Tensor, reference: Tensor) -> dict[str, float]:
    """Norm of the difference over the norm of the reference, and largest difference over the largest value."""
    output, reference = output.double().cpu(), reference.double().cpu()
    difference = output - reference
    return {
        "relative_error": (difference.norm() / reference.norm()).item(),
        "largest_error": (difference.abs().max() / reference.abs().max()).item(),
    }


def machine(device: str | torch.device) -> dict[str, Any]:
    """What rows are measured on: device, versions and processor."""
    on_gpu = torch.device(device).type == "cuda"
    about: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if on_gpu else "cpu"}
    if on_gpu:
        about |= {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
        about["cudnn"] = torch.backends.cudnn.version()
    about |= {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.processor()}
    for name in PACKAGES:
        try:
            about[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return about


class Recorder:
    """Rows of one script, printed and written as they become known."""

    def __init__(self, options: argparse.Namespace, benchmark: str) -> None:
        self.out, self.budget, self.only = options.out, options.budget, options.only
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        self._began = time.perf_counter()
        self.run: dict[str, Any] = {
            "benchmark": benchmark,
            "command": command(benchmark, sys.argv[1:]),
            "date": datetime.date.today().isoformat(),
            "tiny": options.tiny,
            "machine": machine(options.device),
            "rows": self.rows,
        }

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._began

    @property
    def out_of_time(self) -> bool:
        """Whether no measurement may begin."""
        return self.seconds > self.budget

    def add(self, name: str, values: Mapping[str, float] | None = None, **details: Any) -> None:
        """Print one row, with the official value beside it where there is one, and write the file.

        Args:
            name: Of the setting, once in a run.
            values: Measured numbers by name; those that are not finite are left out.
            details: Anything else that JSON can contain.
        """
        numbers = {key: _rounded(value) for key, value in (values or {}).items() if math.isfinite(value)}
        details = {key: _rounded(value) if isinstance(value, float) else value for key, value in details.items()}
        row: dict[str, Any] = {"name": name}
        if "error" in details:
            row["error"] = details.pop("error")
        self.rows.append(row | {"values": numbers, "details": details, "at_s": round(self.seconds, 1)})
        shown = [f"{key}={value}" for key, value in (numbers | details | row).items() if key != "name"]
        shown += [f"official {key}={value}" for key, value in official(f"{self.run['benchmark']}: {name}").items()]
        print(f"{name:32s}", *shown, sep="  ", flush=True)
        if self.out:
            write_json(self.out, {"schema": SCHEMA, "runs": [self.run]})

    def attempt(self, name: str, measure: Callable[[], Any]) -> None:
        """Call `measure`, which adds rows; without time or after an exception, add a row with the error instead."""
        try:
            if self.out_of_time:
                raise TimeoutError(f"not measured: the budget of {self.budget:.0f} s is spent")
            measure()
        except Exception as error:
            self.failed = True
            if not isinstance(error, TimeoutError):
                traceback.print_exc()
            self.add(name, error=f"{type(error).__name__}: {str(error)[:300]}")
        free_memory()

    def in_turn(self, measures: Mapping[str, Callable[[], Timing]], rounds: int = 2) -> dict[str, Timing]:
        """Measure every setting once a round, so that a slow minute of the host touches all of them.

        Returns:
            The settings that were measured; a row with the error is added for each of the others.
        """
        timings: dict[str, list[Timing]] = {name: [] for name in measures}
        failed: set[str] = set()
        for _ in range(rounds):
            for name, measure in measures.items():
                if name in failed or (timings[name] and self.out_of_time):
                    continue
                rows = len(self.rows)
                self.attempt(name, lambda name=name, measure=measure: timings[name].append(measure()))
                if len(self.rows) > rows:
                    failed.add(name)
        return {name: Timing.joined(rounds) for name, rounds in timings.items() if rounds and name not in failed}

    def table(self, columns: Mapping[str, str], sort_by: str) -> None:
        """Print the rows that have a value `sort_by`, sorted by it; `columns` are names and formats."""
        rows = [{"name": row["name"], **row["details"], **row["values"]} for row in self.rows]
        rows = sorted((row for row in rows if sort_by in row), key=lambda row: row[sort_by])
        if not rows:
            return
        lines = [[format(row[key], form) if key in row else "-" for key, form in columns.items()] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        print()
        for line in (list(columns), *lines):
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def command(benchmark: str, arguments: Iterable[str]) -> str:
    """The command that measured a run, without its output file."""
    return shlex.join(["python", f"benchmarks/{benchmark}.py", *_without_out(arguments)])


def _without_out(arguments: Iterable[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            yield word


def _rounded(value: float) -> float:
    """Six significant digits."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
