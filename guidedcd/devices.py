"""Devices and dtypes by their names in options, the processes of a launch, times of parts, and errors of full memory.

Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from guidedcd.errors import GuidedCDError, shortened

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
"""torch's names of the floating-point types that options offer."""
FAST = ("auto", "no", "layers", "graphs", "blocks", "blocks-graphs")
"""Values of the option `fast` of sampling; those of training and preprocessing differ. See `acceleration.options`."""
QUANTIZE = ("no", "int8")
"""Values of options `quantize`, which round frozen weights."""
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names by the short ones."""


def device(name: str) -> torch.device:
    """The device called `name`; "auto" takes a GPU when there is one, of several processes each its own.

    Raises:
        GuidedCDError: This machine has no such device.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local_rank = _whole("LOCAL_RANK", 0) if process()[1] > 1 else 0
        return torch.device("cuda", local_rank) if 0 < local_rank < torch.cuda.device_count() else torch.device("cuda")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise GuidedCDError(f"no device named '{shortened(name, 40)}'. Use auto, cpu, cuda, cuda:N or mps.")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise GuidedCDError(f"--device {name}: this machine has no usable NVIDIA GPU. Use --device cpu or auto.")
        if (device.index or 0) >= count:
            raise GuidedCDError(f"--device {name}: this machine has {count} GPU(s), numbered from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise GuidedCDError("--device mps: this machine has no usable Apple GPU. Use --device cpu or auto.")
    return device


def dtype_of(name: str) -> torch.dtype:
    """The dtype that torch calls `name`.

    Raises:
        GuidedCDError: The name is unknown.
    """
    import torch

    if name not in DTYPES:
        raise GuidedCDError(f"dtype must be {DTYPES[0]}, {DTYPES[1]} or {DTYPES[2]}, not '{shortened(name, 40)}'.")
    return getattr(torch, name)


def dtype_of_short(name: str) -> torch.dtype:
    """The dtype of a key of `SHORT_DTYPES`."""
    return dtype_of(SHORT_DTYPES[name])


def dtype_of_precision(precision: str) -> torch.dtype | None:
    """The dtype in which networks compute with an option `precision`; None for "no", which changes nothing."""
    return None if precision == "no" else dtype_of_short(precision)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. The host does not wait until a CUDA GPU has done what was launched before.

    A blocking copy waits for that, and the GPU then runs out of work. Other copies block: on MPS a copy that does not
    block may read memory that was freed. Not for the capture of a CUDA graph, whose replays would read host memory
    that has other content by then.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def tensor_like(values: Any, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers as a tensor on the device of `like`, in its dtype or in `dtype`; see `to_device`."""
    import torch

    return to_device(torch.as_tensor(values, dtype=dtype or like.dtype), like.device)


def process() -> tuple[int, int]:
    """(rank, number of processes) of this launch, from the variables that torchrun and `accelerate launch` set.

    Raises:
        GuidedCDError: A variable is no whole number, or the rank is not below the number of processes.
    """
    rank, world = _whole("RANK", 0), _whole("WORLD_SIZE", 1)
    _whole("LOCAL_RANK", 0)
    if not rank < world:
        raise GuidedCDError(
            f"the environment variable RANK is {rank}, which must be less than WORLD_SIZE ({world}). "
            "Start several processes with torchrun or `accelerate launch`, or unset both."
        )
    return rank, world


def launch() -> str:
    """What the processes of one launch have in common and others have not, such as "127.0.0.1:29500"; "" for one alone.

    Like `process`, from the variables that torchrun and `accelerate launch` set.
    """
    if process()[1] == 1 or "MASTER_PORT" not in os.environ:
        return ""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ['MASTER_PORT']}"[:200]


def _whole(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise GuidedCDError(
            f"the environment variable {variable} must be a whole number, not {shortened(repr(text), 40)}. "
            "torchrun and `accelerate launch` set it; unset it to run one process."
        )
    return int(text)


class Stopwatch:
    """Times the parts of work on a device without waiting for it: a GPU's are marked by events.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_on = device, False
        self._marks: list[tuple[str, Any, Any, float | None]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as part `name`, if the stopwatch is on; parts of one name are summed, and may be nested."""
        if not self.is_on:
            yield
            return
        begin = self._mark()
        yield
        self._marks.append((name, begin, self._mark(), self._memory()))

    def take(self) -> Callable[[], dict[str, float]]:
        """The parts so far, which are forgotten, and stop; the result returns numbers once the device is done.

        They are `seconds/NAME`, and on a GPU `memory_gb/NAME`, the memory in use at the end of the part.
        """
        marks, self._marks, self.is_on = self._marks, [], False

        def numbers() -> dict[str, float]:
            sums: dict[str, float] = {}
            for name, begin, end, memory in marks:
                if isinstance(end, float):
                    elapsed = end - begin
                else:
                    end.synchronize()
                    elapsed = begin.elapsed_time(end) / 1000
                sums[f"seconds/{name}"] = round(sums.get(f"seconds/{name}", 0.0) + elapsed, 5)
                if memory is not None:
                    sums[f"memory_gb/{name}"] = round(max(sums.get(f"memory_gb/{name}", 0.0), memory), 3)
            return sums

        return numbers

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _memory(self) -> float | None:
        if self.device.type != "cuda":
            return None
        import torch

        return torch.cuda.memory_allocated(self.device) / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the host."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def blame_memory(name: str, advice: str = "") -> Iterator[None]:
    """Name the component at work: running out of memory inside becomes one sentence with `advice`.

    Raises:
        GuidedCDError: Memory ran out inside the block.
    """
    try:
        yield
    except GuidedCDError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        import torch

        held = (
            f" ({torch.cuda.max_memory_allocated() / 2**30:.1f} GB in use at the peak)"
            if torch.cuda.is_available()
            else ""
        )
        raise GuidedCDError(f"out of memory in {name}{held}. {advice or 'Use smaller batches.'}") from error
