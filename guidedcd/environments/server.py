"""The side in the other environment: it needs this file, Python 3.8 and torch 1.10, and imports nothing else of ours.

`python -I server.py DESCRIPTOR SECONDS` reads requests from its standard input and writes answers to its standard
output, one JSON object a line. DESCRIPTOR is an open file that both processes map into memory; tensors lie there as raw
bytes. Whatever the function prints goes to the standard error. The process ends itself, with all that it started, when
the other end of its input is closed or its parent is gone, and SECONDS after code stopped the interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import mmap
import os
import queue
import select
import signal
import sys
import threading
import traceback
import zlib

PROTOCOL = 1
"""Version of the requests and answers."""
ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes."""
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
"""torch's names of the dtypes that are transferred, with bytes per number."""


class Fault(Exception):
    """A request that cannot be answered: by the fault of the `function`, or of the `environment`."""

    def __init__(self, whose, text):
        super().__init__(text)
        self.whose = whose


def size_of(description):
    """Bytes of a tensor by its description {"shape", "dtype"}."""
    count = DTYPES[description["dtype"]]
    for side in description["shape"]:
        count *= side
    return count


def layout(descriptions):
    """The offset of each tensor, and the bytes of all."""
    offsets, end = [], 0
    for description in descriptions:
        offsets.append(end)
        end += -(-size_of(description) // ALIGNMENT) * ALIGNMENT
    return offsets, end


class Memory:
    """Tensors in an open file that two processes map; each side writes from the beginning when it is its turn."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.map = None

    def grow(self, size):
        """Map at least `size` bytes, after enlarging the file where it is smaller."""
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        if self.map is None or len(self.map) < size:
            self.map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)

    def _view(self, description, offset):
        import torch

        count = size_of(description) // DTYPES[description["dtype"]]
        dtype = getattr(torch, description["dtype"])
        if not count:
            return torch.empty(description["shape"], dtype=dtype)
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=offset).view(description["shape"])

    def write(self, tensors):
        """Copy tensors from any device into the memory, and return their descriptions."""
        names = [str(tensor.dtype).replace("torch.", "") for tensor in tensors]
        items = [{"shape": list(t.shape), "dtype": name} for t, name in zip(tensors, names)]
        offsets, end = layout(items)
        self.grow(max(end, 1))
        for tensor, item, offset in zip(tensors, items, offsets):
            self._view(item, offset).copy_(tensor.detach())
        return items

    def read(self, items, device="cpu"):
        """Copies on `device` of the tensors with these descriptions."""
        offsets, end = layout(items)
        self.grow(max(end, 1))
        return [self._view(item, offset).to(device, copy=True) for item, offset in zip(items, offsets)]

    def checksum(self, items):
        """CRC-32 of the bytes that tensors with these descriptions take."""
        _, end = layout(items)
        self.grow(max(end, 1))
        with memoryview(self.map) as view, view[:end] as used:
            return zlib.crc32(used)


class Call:
    """A call whose gradient may be requested: its inputs, and the result with its graph until that is used."""

    def __init__(self, tensor, texts, seed, result):
        self.tensor, self.texts, self.seed, self.result = tensor, texts, seed, result


class Server:
    """The loaded function, and its calls whose gradient may be requested."""

    def __init__(self, memory):
        self.memory = memory
        self.function = None
        self.device = None
        self.calls = {}

    def load(self, request):
        """Import and build the function."""
        try:
            import torch
        except ImportError as error:
            raise Fault("environment", f"it has no torch ({error})") from None
        torch.set_num_threads(request["threads"])
        self.function = build(request["function"], request["options"])
        if isinstance(self.function, torch.nn.Module):
            self.function.eval().requires_grad_(False)
        limit = getattr(self.function, "max_tokens", None)
        return {
            "protocol": PROTOCOL,
            "torch": torch.__version__,
            "max_tokens": None if limit is None else int(limit),
            "counts": callable(getattr(self.function, "count_tokens", None)),
        }

    def count(self, request):
        """Tokens of a text."""
        return {"count": int(self.function.count_tokens(request["text"]))}

    def call(self, request):
        """Results of the function for one tensor and texts."""
        for number in request["release"]:
            self.calls.pop(number, None)
        self._move(request["device"])
        (tensor,) = self.memory.read([request["tensor"]], request["device"])
        tensor.requires_grad_(request["gradient"])
        result = self._result(tensor, request["texts"], request["seed"])
        tensors = list(result.values()) if isinstance(result, dict) else [result]
        differentiable = request["gradient"] and not isinstance(result, dict) and result.requires_grad
        if differentiable:
            self.calls[request["id"]] = Call(tensor, request["texts"], request["seed"], result)
        names = list(result) if isinstance(result, dict) else None
        return dict(self._tensors(tensors), names=names, differentiable=differentiable)

    def gradient(self, request):
        """The product of the vector in the memory with the Jacobian of an earlier call."""
        import torch

        call = self.calls[request["of"]]
        result, call.result = call.result, None
        if result is None:  # torch freed the graph: this is a second product for the same call
            result = self._result(call.tensor, call.texts, call.seed)
        (vector,) = self.memory.read([request["tensor"]], result.device)
        (gradient,) = torch.autograd.grad(result, call.tensor, vector, allow_unused=True)
        if gradient is None:
            raise Fault("function", "returned a result that has no gradient with respect to its tensor")
        return self._tensors([gradient])

    def _move(self, device):
        import torch

        if device == self.device:
            return
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise Fault("environment", f"its torch {torch.__version__} finds no usable GPU; set the device to cpu")
        if hasattr(self.function, "to"):
            self.function.to(device)
        self.device = device

    def _result(self, tensor, texts, seed):
        import torch

        torch.manual_seed(seed)
        with torch.set_grad_enabled(tensor.requires_grad):
            # The function gets no leaf, which it could not change in place as it could the frames of a video.
            result = self.function(tensor * 1 if tensor.requires_grad else tensor, list(texts))
        for value in result.values() if isinstance(result, dict) else [result]:
            if not isinstance(value, torch.Tensor):
                raise Fault("function", f"returned a value of type {type(value).__name__}; it must return a tensor")
            if str(value.dtype).replace("torch.", "") not in DTYPES:
                raise Fault("function", f"returned a tensor of type {value.dtype}, which is not transferred")
        return result

    def _tensors(self, tensors):
        items = self.memory.write(tensors)
        return {"tensors": items, "checksum": self.memory.checksum(items)}


def build(name, options):
    """The function `module:attribute`, `file.py:attribute`, or a reward of guidedcd where that is installed."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        return reward_of_guidedcd(name, options)
    if module_name.endswith(".py"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(module_name)))
        spec = importlib.util.spec_from_file_location(os.path.basename(module_name)[:-3], module_name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    value = module
    for name in attribute.split("."):
        value = getattr(value, name)
    if isinstance(value, type):
        return value(**options)
    if options:
        raise Fault("function", "takes no options, because it is no class")
    if not callable(value):
        raise Fault("function", f"is a {type(value).__name__}, which cannot be called")
    return value


def reward_of_guidedcd(name, options):
    """A reward by its name in guidedcd, which must be installed in this environment."""
    try:
        from guidedcd.plugins.registry import load_plugins
    except ImportError:
        text = f"it has no guidedcd, and '{name}' is neither MODULE:ATTRIBUTE nor FILE.py:ATTRIBUTE"
        raise Fault("environment", text) from None
    component = load_plugins().get("reward", name)
    return component.build(component.config(**options))


def described(error):
    """An exception as a part of a sentence, with the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    location = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}: {text[:300]}{location}"


def end():
    """End this process and all that it started, at once."""
    if os.getpgrp() == os.getsid(0):  # a session of its own, as guidedcd starts it
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def watch(source, requests, seconds):
    """Put the lines of `source` into `requests`, and end the process when nobody can read its answers.

    The parent is looked at too, because a process that was forked from it may keep its end of the pipe open. The alarm
    ends the process without the interpreter, where code in another language holds that forever.
    """
    parent, buffer = os.getppid(), b""
    while True:
        signal.alarm(seconds)
        if os.getppid() != parent:
            end()
        if not select.select([source], [], [], 1.0)[0]:
            continue
        piece = os.read(source, 65536)
        if not piece:
            end()
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            requests.put(line)


def main():
    """Answer requests until the process is ended."""
    descriptor, seconds = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    source = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the function reads nothing
    os.dup2(2, 1)  # and what it prints is no answer
    requests = queue.Queue()
    threading.Thread(target=watch, args=(source, requests, seconds), daemon=True).start()
    server = Server(Memory(descriptor))
    while True:
        request = json.loads(requests.get())
        try:
            answer = getattr(server, request["do"])(request)
        except Fault as error:
            answer = {"fault": error.whose, "text": str(error)}
        except MemoryError:
            answer = {"fault": "function", "text": "needs more memory than there is"}
        except Exception as error:
            answer = {"fault": "function", "text": described(error)}
        answer["id"] = request["id"]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
