"""Opens checkpoint files without running what is in them and without reading them whole.

Safetensors and PyTorch zip files are mapped: a tensor costs memory when it is copied out, not before.
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

from guidedcd.errors import GuidedCDError

_PREFIX = len("_forward_module.")
"""How much DeepSpeed puts before every key; the reference loader drops as many characters, whatever they are."""


class View(Mapping):
    """The keys of a state dict that begin with `prefix`, without it; values are read when asked for."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "", hidden: tuple[str, ...] = ()) -> None:
        """Look at `state` through `prefix`, hiding the (shortened) keys in `hidden`."""
        self._state, self._prefix = state, prefix
        keys = (key[len(prefix) :] for key in state if key.startswith(prefix))
        self._keys = dict.fromkeys(key for key in keys if key not in hidden)

    def __getitem__(self, key: str) -> Tensor:
        """The tensor, read now."""
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
        """The tensor, read now."""
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
    """The path, if there is a file.

    Args:
        path: As the user gave it.
        what: What it should be, e.g. "VideoCrafter2's model.ckpt".
        where: Who publishes it and how to get it.

    Raises:
        GuidedCDError: There is nothing, or a folder.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        kind = "a diffusers folder: use --teacher unet3d:FOLDER" if (found / "unet").is_dir() else "a folder"
        raise GuidedCDError(f"{what} must be a file, but {path} is {kind}")
    if not found.is_file():
        raise GuidedCDError(f"{what} is not at {path}: {where}")
    return found


def read_object(path: str | Path) -> Any:
    """What a checkpoint file holds: a mapping of tensors or, from a PyTorch file, any structure of tensors.

    Raises:
        GuidedCDError: The file is truncated, is no checkpoint, or holds code.
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
    except PermissionError:
        raise GuidedCDError(f"{path} may not be read by this user") from None
    except Exception as error:
        size = path.stat().st_size if path.is_file() else 0
        reason = re.split(r"[.:]\s", str(error).strip())[0][:120] or type(error).__name__
        raise GuidedCDError(
            f"{path} is truncated or is no checkpoint ({size:,} bytes; {reason}): download it again"
        ) from None


def open_state(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict in a file: bare, under "state_dict", or under "module" (DeepSpeed), from .ckpt or safetensors.

    Raises:
        GuidedCDError: The file cannot be read, or holds no state dict.
    """
    found = read_object(path)
    if isinstance(found, Mapping) and not isinstance(found, SafetensorsState):
        if isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
        elif isinstance(found.get("module"), Mapping):
            found = _unwrapped(found["module"])
    if isinstance(found, list):
        raise GuidedCDError(
            f"{path} holds a list of {len(found)} tensors without names, as T2V-Turbo v1's unet_lora.pt does: "
            "use --student FILE together with the base model as --teacher videocrafter2:FILE"
        )
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise GuidedCDError(f"{path} holds {type(found).__name__}, not a state dict of named tensors")
    stray = next((key for key in found if not _is_tensor(found, key)), None)
    if stray is not None:
        raise GuidedCDError(f"{path} holds no plain state dict: {stray!r} is not a tensor")
    return found


def is_list_of_tensors(found: Any) -> bool:
    """Whether a file's content is a list of tensors without names."""
    return isinstance(found, list) and len(found) > 0 and all(isinstance(value, Tensor) for value in found)


def _is_tensor(found: Mapping, key: str) -> bool:
    return isinstance(found, (SafetensorsState, View)) or isinstance(found[key], Tensor)


def _unwrapped(module: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """DeepSpeed's keys without the name of its wrapper; keys that have none stay as they are."""
    stripped = {key[_PREFIX:]: value for key, value in module.items()}
    known = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "init_attn.")
    wrapped = all(key.startswith("_forward_module.") for key in module) or (
        any(key.startswith(known) for key in stripped) and not any(key.startswith(known) for key in module)
    )
    return stripped if wrapped else module


def _looks_safe(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON header, then the header."""
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
    """Refuse a zip file that grows when it is read: PyTorch compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size:
                raise GuidedCDError(
                    f"{path} is compressed, which no file of PyTorch is: refused, for it may fill the memory. "
                    "Unpack it, or download it again."
                )


def _refused(path: Path, text: str) -> str:
    """Why PyTorch's restricted unpickler stopped: the file holds code, or it ends too early."""
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
    """The first name outside torch and collections that a bare pickle would import; it is read, never run.

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
                found = None
                if opcode.name == "GLOBAL":
                    found = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    found = ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
                if found and not found.startswith(("torch.", "collections.")):
                    return found
    return None
