"""Reading checkpoint files without running code from them and without loading them whole.

Safetensors and PyTorch zip files are memory-mapped: a tensor takes memory only when it is copied.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.errors import GuidedCDError, unreadable

_PREFIX = len("_forward_module.")
"""The length of DeepSpeed's key prefix; the reference loader drops that many characters of any key."""


class View(Mapping):
    """The entries of a state dict whose keys begin with `prefix`, without the prefix; values are read on access."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "", hidden: tuple[str, ...] = ()) -> None:
        """View `state` through `prefix`, without the (shortened) keys in `hidden`."""
        self._state, self._prefix = state, prefix
        keys = (key[len(prefix) :] for key in state if key.startswith(prefix))
        self._keys = dict.fromkeys(key for key in keys if key not in hidden)

    def __getitem__(self, key: str) -> Tensor:
        """The tensor, which is read on access."""
        if key not in self._keys:
            raise KeyError(key)
        return self._state[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        """The keys in file order."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)


class SafetensorsState(Mapping):
    """A safetensors file as a mapping, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Open the file."""
        from safetensors import safe_open

        self._file = safe_open(path, framework="pt")
        self._keys = dict.fromkeys(self._file.keys())

    def __getitem__(self, key: str) -> Tensor:
        """The tensor, which is read on access."""
        if key not in self._keys:
            raise KeyError(key)
        return self._file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)


def exists(path: str | Path, what: str, where: str) -> Path:
    """Return the path if it is a file.

    Args:
        path: The user's path.
        what: The description of the file, e.g. "VideoCrafter2's model.ckpt".
        where: A sentence about its publisher and how to get it.

    Raises:
        GuidedCDError: There is no file, or it is a folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        kind = "a diffusers folder: use --teacher unet3d:FOLDER" if (file / "unet").is_dir() else "a folder"
        raise GuidedCDError(f"{what} must be a file, but {path} is {kind}")
    if not file.is_file():
        raise GuidedCDError(f"{what} is not at {path}: {where}")
    return file


def read_object(path: str | Path) -> Any:
    """The content of a checkpoint file: a mapping of tensors or, from a PyTorch file, any structure of tensors.

    Raises:
        GuidedCDError: The file is truncated, is no checkpoint, or contains code.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".safetensors" or _looks_safe(path):
            return SafetensorsState(path)
        return _torch_object(path)
    except GuidedCDError:
        raise
    except pickle.UnpicklingError as error:
        raise GuidedCDError(_refused(path, str(error))) from None
    except FileNotFoundError:
        raise GuidedCDError(f"{path} does not exist") from None
    except PermissionError as error:
        raise unreadable(error, path) from None
    except Exception as error:
        size = path.stat().st_size if path.is_file() else 0
        reason = re.split(r"[.:]\s", str(error).strip())[0][:120] or type(error).__name__
        raise GuidedCDError(
            f"{path} is truncated or is no checkpoint ({size:,} bytes; {reason}): download it again"
        ) from None


def open_state(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict of a .ckpt or safetensors file: bare, under "state_dict", or under "module" (DeepSpeed).

    Raises:
        GuidedCDError: The file cannot be read, or contains no state dict.
    """
    content = read_object(path)
    if isinstance(content, Mapping) and not isinstance(content, SafetensorsState):
        if isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        elif isinstance(content.get("module"), Mapping):
            content = _unwrapped(content["module"])
    if isinstance(content, list):
        raise GuidedCDError(
            f"{path} holds a list of {len(content)} tensors without names, as T2V-Turbo v1's unet_lora.pt does: "
            "use --student FILE together with the base model as --teacher videocrafter2:FILE"
        )
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise GuidedCDError(f"{path} holds {type(content).__name__}, not a state dict of named tensors")
    stray = next((key for key in content if not _is_tensor(content, key)), None)
    if stray is not None:
        raise GuidedCDError(f"{path} holds no plain state dict: {stray!r} is not a tensor")
    return content


def is_list_of_tensors(content: Any) -> bool:
    """Whether a file's content is a list of tensors without names."""
    return isinstance(content, list) and len(content) > 0 and all(isinstance(value, Tensor) for value in content)


def _is_tensor(content: Mapping, key: str) -> bool:
    return isinstance(content, (SafetensorsState, View)) or isinstance(content[key], Tensor)


def _unwrapped(module: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """DeepSpeed's keys without the name of its wrapper; other keys stay."""
    stripped = {key[_PREFIX:]: value for key, value in module.items()}
    usual = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "init_attn.")
    wrapped = all(key.startswith("_forward_module.") for key in module) or (
        any(key.startswith(usual) for key in stripped) and not any(key.startswith(usual) for key in module)
    )
    return stripped if wrapped else module


def _looks_safe(path: Path) -> bool:
    """Whether the file begins as safetensors do: with the length of a JSON header, then the header."""
    with open(path, "rb") as handle:
        head = handle.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _torch_object(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise EOFError("empty file")
    if zipfile.is_zipfile(path):
        _check_stored(path)
    # Files of PyTorch before 1.6 cannot be mapped; they are read whole.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle's protocol: what cannot be read becomes an error
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _check_stored(path: Path) -> None:
    """Refuse a compressed zip file, which may fill the memory; PyTorch writes none."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size:
                raise GuidedCDError(
                    f"{path} is compressed, which no file of PyTorch is: refused, for it may fill the memory. "
                    "Unpack it, or download it again."
                )


def _refused(path: Path, text: str) -> str:
    """The error message when PyTorch's restricted unpickler stops: the file contains code, or it ends too early."""
    named = re.search(r"GLOBAL ([\w.]+)", text)
    name = named[1] if named else None
    if not zipfile.is_zipfile(path):
        try:
            name = _first_global(path) or name
        except (ValueError, IndexError, UnicodeDecodeError):
            name = None
    if name is None:
        return f"{path} is truncated or is no checkpoint ({path.stat().st_size:,} bytes): download it again"
    return (
        f"{path} holds code ({name}) beside its tensors: refused, and nothing of it was run; "
        "ask its publisher for a safetensors file or a plain state dict"
    )


def _first_global(path: Path) -> str | None:
    """The first name outside torch and collections that a bare pickle would import; nothing is run.

    Raises:
        ValueError: The pickle ends too early.
    """
    strings: list[str] = []
    size = path.stat().st_size
    with open(path, "rb") as handle:
        for _ in range(4):  # PyTorch before 1.6 wrote three short pickles before the tensors' one
            if handle.tell() == size:
                break
            for opcode, argument, _ in pickletools.genops(handle):
                name = None
                if opcode.name == "GLOBAL":
                    name = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    name = ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
                if name and not name.startswith(("torch.", "collections.")):
                    return name
    return None
