"""Puts tensors of a checkpoint into a module that was built on the meta device, one at a time and strictly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from guidedcd.documents import parse_json, read_text
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.detection import wrong_keys
from guidedcd.models.checkpoints.reading import SafetensorsState, read_object

Network = TypeVar("Network", bound=nn.Module)


def skeleton(build: Callable[[], Network]) -> Network:
    """The module that `build` returns, with parameters on the meta device, which take no memory."""
    with torch.device("meta"):
        return build()


def shaped(value: Tensor, shape: torch.Size) -> Tensor | None:
    """`value` as `shape` when they differ only by trailing ones (a 1x1 convolution as a linear layer), else None."""
    if value.shape == shape:
        return value
    longer, shorter = sorted((tuple(value.shape), tuple(shape)), key=len, reverse=True)
    if longer[: len(shorter)] == shorter and set(longer[len(shorter) :]) == {1}:
        return value.reshape(shape)
    return None


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter or buffer `name` (dotted) of `module` by `value`, keeping its kind."""
    owner = module.get_submodule(name.rpartition(".")[0])
    leaf = name.rpartition(".")[2]
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        owner._buffers[leaf] = value


def check_floats(value: Tensor, target: Tensor, where: str) -> None:
    """Refuse whole numbers in the place of weights: a file that was quantised or damaged has them.

    Raises:
        GuidedCDError: `target` is floating point and `value` is not.
    """
    if target.is_floating_point() and not value.is_floating_point():
        raise GuidedCDError(
            f"{where} has values of type {str(value.dtype).removeprefix('torch.')}, where the network has floating "
            "point numbers. The file is quantised or damaged: use the file as it was published."
        )


def fill_renamed(
    module: nn.Module,
    rename: Mapping[str, str | tuple[str, ...]],
    state: Mapping[str, Tensor],
    *,
    what: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    unused: Collection[str] = (),
    copy: bool = True,
) -> None:
    """Fill `module` from a state dict with other names; keys, parameters and shapes must all match.

    Args:
        module: Module on the meta device.
        rename: From a key of `state` to a name in `module`, or to several that share the tensor along its first axis.
        state: The checkpoint; an item is read only when it is its turn.
        what: Name of the loader, for errors.
        dtype: Of the parameters afterwards.
        device: Where they are put.
        unused: Keys of `state` that may be there and are not read.
        copy: False leaves a tensor that needs no conversion where it is, for example in a mapped file.

    Raises:
        GuidedCDError: Keys are missing or unexpected, or a shape differs; the first of them are named.
    """
    targets = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    missing = [key for key in rename if key not in state]
    unexpected = [key for key in state if key not in rename and key not in unused]
    if missing or unexpected:
        raise GuidedCDError(wrong_keys(what, missing, unexpected, state))
    named = {key: (names,) if isinstance(names, str) else names for key, names in rename.items()}
    left = set(module.state_dict()) - {name for names in named.values() for name in names}
    if left:
        raise RuntimeError(f"{what}: the rename table leaves out {sorted(left)[:3]}")
    for key, names in named.items():
        value = state[key]
        expected = torch.Size([len(names) * targets[names[0]].shape[0], *targets[names[0]].shape[1:]])
        fitted = shaped(value, expected)
        if fitted is None:
            raise GuidedCDError(
                f"{what}: {key} has shape {list(value.shape)}, the architecture needs {list(expected)}; "
                "give the architecture that the file was made with (--arch config.json)"
            )
        check_floats(value, targets[names[0]], f"{what}: {key}")
        for name, tensor in zip(names, fitted.chunk(len(names)), strict=True):
            assign(module, name, tensor.to(device=device, dtype=dtype, copy=copy or len(names) > 1).contiguous())
    finish(module, device)


def finish(module: nn.Module, device: torch.device | str) -> None:
    """Give memory to the constant buffers that no checkpoint stores."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        if not name.endswith("position_ids"):
            raise RuntimeError(f"buffer {name} was left without values")
        assign(module, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone())


WRAPPERS = ("state_dict", "module", "model")
"""Entries under which training code puts the weights."""


def architecture(
    arch: str,
    published: Mapping[str, Any],
    what: str,
    named: Callable[[str], Mapping[str, Any] | None] = lambda name: None,
) -> dict[str, Any]:
    """The sizes of a network: the published ones, those in a JSON file, or a library's sizes of that name.

    Args:
        arch: "published", a file, or a name.
        published: Sizes of the released model.
        what: Name of the model, for errors.
        named: Returns a library's sizes by name, None for an unknown name.

    Raises:
        GuidedCDError: The file is missing or is not a JSON object.
    """
    if arch == "published":
        return dict(published)
    path = Path(arch).expanduser()
    if not path.is_file() and (library := named(arch)) is not None:
        return dict(library)
    text = read_text(path, missing=f"{what}: there is no architecture {arch}, neither a file nor a known name.")
    sizes = parse_json(text, f"{what}: the architecture {arch}")
    if not isinstance(sizes, dict):
        raise GuidedCDError(f"{what}: the architecture {arch} must be a JSON object with the network's sizes.")
    return sizes


@contextmanager
def describing(what: str) -> Iterator[None]:
    """Turn the libraries' errors about wrong sizes of a network into one sentence.

    Raises:
        GuidedCDError: The sizes are incomplete, unknown, or inconsistent.
    """
    try:
        yield
    except (TypeError, KeyError, ValueError, AssertionError, AttributeError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise GuidedCDError(f"{what}: the architecture (option arch) describes no such network: {text}") from error


def open_weights(path: Path, what: str) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors, .pt or .bin file by key, memory-mapped, without wrappers; never runs code.

    Raises:
        GuidedCDError: The file is damaged, or contains code.
    """
    try:
        state = read_object(path)
    except GuidedCDError as error:
        raise GuidedCDError(f"{what}: {error}") from error
    if isinstance(state, SafetensorsState):
        return state
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise GuidedCDError(f"{what}: {path} holds a {type(state).__name__}, not a table of weights.")
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor] | None,
    *,
    what: str,
    unused: Callable[[str], bool] = lambda key: False,
) -> None:
    """Fill a module on the meta device with the weights of `state`, in the module's dtypes.

    Args:
        module: Filled in place; its state dict defines the keys.
        state: Weights by key; a tensor that needs no conversion stays memory-mapped. None leaves the module on the
            meta device: a network's shapes are all that planning needs.
        what: Name of the model, for errors.
        unused: Whether a key that the module lacks may be ignored.

    Raises:
        GuidedCDError: Keys are missing or unexpected, or a shape differs; the first of them are named.
    """
    if state is None:
        module.requires_grad_(False).eval()
        return
    targets = module.state_dict(keep_vars=True)
    missing = [key for key in targets if key not in state]
    unexpected = [key for key in state if key not in targets and not unused(key)]
    if missing or unexpected:
        raise GuidedCDError(wrong_keys(what, missing, unexpected, state))
    for key, target in targets.items():
        value = state[key]
        if value.shape != target.shape:
            raise GuidedCDError(
                f"{what}: {key} has shape {list(value.shape)}, the network has {list(target.shape)}; "
                "give the sizes of the file's network with the option arch."
            )
        check_floats(value, target, f"{what}: {key}")
        assign(module, key, value.to(target.dtype))
    module.requires_grad_(False).eval()
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"{what}: {left[0]} was left without values")
