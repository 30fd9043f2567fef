"""Lines of a benchmark as they become known, and what a call costs in time and memory."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GB = 2**30


class Report:
    """Lines as they come, on the terminal and in the file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began, self.lines = options, time.perf_counter(), []
        self.failed = False
        self.about = {"torch": torch.__version__, "dtype": options.dtype, "device": _device_name(options.device)}
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """The last line."""
        self._done.set()
        self.add("done", seconds=round(self.seconds, 1), ok=not self.failed)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.began

    def add(self, line: str, **values: Any) -> None:
        """One more line."""
        self.lines.append({"line": line, **values, "at": round(self.seconds, 1)})
        print(json.dumps(self.lines[-1]), flush=True)
        if self.options.out:
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            part = self.options.out.with_suffix(".part")
            part.write_text(json.dumps({**self.about, "lines": self.lines}, indent=1) + "\n")
            part.replace(self.options.out)

    def check(self) -> None:
        """Refuse to begin something new when the time is over."""
        if self.seconds > self.options.limit:
            raise TimeoutError(f"left out after {self.seconds:.0f} s")

    @contextmanager
    def going_on(self, line: str) -> Iterator[None]:
        """A failure inside becomes a line."""
        try:
            yield
        except Exception as error:
            self.failed = True
            self.add(line, error=f"{type(error).__name__}: {str(error)[:500]}")
            traceback.print_exc()
        finally:
            free()

    def _watch(self) -> None:
        if not self._done.wait(self.options.limit + 20):
            print("stopped: the time is over", flush=True)
            os._exit(1)


class Anonymous:
    """The peak of this process's anonymous memory above where it began, GB: mapped pages of files do not count."""

    def __enter__(self) -> Anonymous:
        free()
        self._running, self._start = True, _anonymous()
        self._peak = self._start
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._time = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._time
        self._running = False
        self._thread.join()
        self.gb = (max(self._peak, _anonymous()) - self._start) / GB

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, _anonymous())
            time.sleep(0.01)


def _anonymous() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def measured(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[Any, dict[str, Any]]:
    """The last result of `run`, and its median seconds and peak GB on the device after a call that is not counted."""
    gpu = device.type == "cuda"

    def once() -> tuple[Any, float]:
        began = time.perf_counter()
        result = run()
        if gpu:
            torch.cuda.synchronize()
        return result, time.perf_counter() - began

    before = torch.cuda.memory_allocated() if gpu else 0
    result, first = once()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        del result
        result, seconds = once()
        times.append(seconds)
    found: dict[str, Any] = {"seconds": round(statistics.median(times), 4), "first_seconds": round(first, 3)}
    if gpu:
        found["weights_gb"] = round(before / GB, 2)
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
    return result, found


def finite(value: Tensor) -> dict[str, Any]:
    """Whether a tensor is finite, and its norm."""
    return {"finite": bool(torch.isfinite(value).all()), "norm": float(f"{float(value.float().norm()):.4g}")}
