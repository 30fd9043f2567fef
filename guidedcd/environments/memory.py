"""An open file without a name that two processes map into memory: nothing to clean up, however they end."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from guidedcd.environments.server import DTYPES


def anonymous_file() -> int:
    """The descriptor of an empty file in memory, or of a deleted temporary file where the system has no such files.

    Its memory is freed when no process has it open. A file in memory cannot be made smaller, so that the other process
    cannot take away memory that this one reads.
    """
    if hasattr(os, "memfd_create"):
        fcntl = importlib.import_module("fcntl")  # Windows has neither
        descriptor = os.memfd_create("guidedcd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return descriptor
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def is_description(items: Any) -> bool:
    """Whether `items` describes tensors: a list of {"shape": whole numbers of at least 0, "dtype": a known name}."""
    return isinstance(items, Sequence) and all(_is_tensor(item) for item in items)


def _is_tensor(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("shape"), list) or item.get("dtype") not in DTYPES:
        return False
    return all(type(side) is int and 0 <= side < 2**40 for side in item["shape"])
