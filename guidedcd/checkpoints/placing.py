"""Puts tensors of a checkpoint into a module that was built on the meta device, one at a time and strictly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from guidedcd.checkpoints.formats import wrong_keys
from guidedcd.errors import GuidedCDError


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """The module `build` makes, without memory for its parameters."""
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


def place(
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
    """Fill `module` from `state`; every key must be known, every parameter filled, every shape equal.

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
        wanted = torch.Size([len(names) * targets[names[0]].shape[0], *targets[names[0]].shape[1:]])
        fitted = shaped(value, wanted)
        if fitted is None:
            raise GuidedCDError(
                f"{what}: {key} has shape {list(value.shape)}, the architecture asks for {list(wanted)}; "
                "give the architecture that the file was made with (--arch config.json)"
            )
        for name, part in zip(names, fitted.chunk(len(names)), strict=True):
            assign(module, name, part.to(device=device, dtype=dtype, copy=copy or len(names) > 1).contiguous())
    finish(module, device)


def finish(module: nn.Module, device: torch.device | str) -> None:
    """Give memory to the constant buffers that no checkpoint stores."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        if not name.endswith("position_ids"):
            raise RuntimeError(f"buffer {name} was left without values")
        assign(module, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone())
