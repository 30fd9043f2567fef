"""Finding the files of published models, and filling modules from them strictly, without a second copy in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from guidedcd import hub
from guidedcd.checkpoints.files import SafetensorsState, read_object
from guidedcd.checkpoints.formats import wrong_keys
from guidedcd.checkpoints.placing import assign
from guidedcd.errors import GuidedCDError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


WRAPPERS = ("state_dict", "module", "model")
"""Entries under which training code puts the weights."""


COMMON = ("model.safetensors", "vocab.txt")
"""Names that say nothing about the model: looked for in the model's own folder of the cache only."""


@attrs.frozen(kw_only=True)
class Published:
    """A file on the Hugging Face hub, and where else it may already be."""

    repo: str
    files: tuple[str, ...]
    """Names of equivalent files, the preferred one first."""
    size: str
    """For messages, for example "2.0 GB"."""
    places: tuple[str, ...] = ()
    """Other folders where people have it, "~" allowed."""
    note: str = ""
    """What must be done before downloading."""


def cache_folder() -> Path:
    """Where files are looked for first: GUIDEDCD_CACHE, or ~/.cache/guidedcd."""
    return Path(os.environ.get("GUIDEDCD_CACHE") or "~/.cache/guidedcd").expanduser()


def own_folder(published: Published) -> Path:
    """This model's folder in the cache: files of different models may have the same name."""
    return cache_folder() / published.repo.rpartition("/")[2]


def find(path: str, published: Published, what: str) -> Path:
    """The file meant by a component's `path` option.

    "auto" looks in the model's own folder of the cache, in the cache itself, in the model's customary places and in the
    hub's cache, then downloads.

    Args:
        path: "auto" or a file.
        published: Where the file comes from.
        what: Whose file it is, for errors.

    Raises:
        GuidedCDError: There is no such file; says how to get it.
    """
    if path != "auto":
        found = Path(path).expanduser()
        if not found.is_file():
            raise GuidedCDError(f"{what}: there is no file {path}. {advice(published)}; then `auto` finds it.")
        return found
    folders = [own_folder(published), *(Path(place).expanduser() for place in published.places)]
    if published.files[0] not in COMMON:
        folders.insert(1, cache_folder())
    for candidate in (folder / name for folder in folders for name in published.files):
        if candidate.is_file():
            return candidate
    return _from_hub(published, what)


def advice(published: Published) -> str:
    """How to get a published file, in one sentence without its full stop."""
    name = published.files[0]
    return (
        f"To get {name} ({published.size}, published by {published.repo} on huggingface.co): {published.note}"
        f"hf download {published.repo} {name} --local-dir {own_folder(published)}"
    )


def _from_hub(published: Published, what: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for name in published.files:
        cached = try_to_load_from_cache(published.repo, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = hub.why_not()
    if not reason:
        for name in published.files:
            try:
                return Path(hf_hub_download(published.repo, name))
            except Exception as error:  # whatever went wrong on the way, the remedy is the same
                reason = f"downloading failed ({type(error).__name__})"
    raise GuidedCDError(f"{what}: {published.files[0]} is not on this machine and {reason}. {advice(published)}.")


def architecture(
    arch: str,
    published: Mapping[str, Any],
    what: str,
    named: Callable[[str], Mapping[str, Any] | None] = lambda name: None,
) -> dict[str, Any]:
    """Sizes of a network: the published ones, those in a JSON file, or those that a library has under a name.

    Args:
        arch: "published", a file, or a name.
        published: Sizes of the released model.
        what: Name of the model, for errors.
        named: Sizes by name, None for an unknown one.

    Raises:
        GuidedCDError: The file is missing or is not a JSON object.
    """
    if arch == "published":
        return dict(published)
    path = Path(arch).expanduser()
    if not path.is_file() and (sizes := named(arch)) is not None:
        return dict(sizes)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuidedCDError(f"{what}: the architecture {arch} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise GuidedCDError(f"{what}: the architecture {arch} must be a JSON object with the network's sizes.")
    return found


@contextmanager
def describing(what: str) -> Iterator[None]:
    """Building a network from a user's sizes: what the libraries say of wrong ones becomes one sentence.

    Raises:
        GuidedCDError: The sizes lack something, have something unknown, or do not fit together.
    """
    try:
        yield
    except (TypeError, KeyError, ValueError, AssertionError, AttributeError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise GuidedCDError(f"{what}: the architecture (option arch) describes no such network: {text}") from error


def open_weights(path: Path, what: str) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors, .pt or .bin file by key, memory-mapped, without wrappers; never runs code.

    Raises:
        GuidedCDError: The file is damaged, or holds code.
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
    """Give a module on the meta device the weights of `state`, each in the dtype the module has it in.

    Args:
        module: Its state dict names what is needed.
        state: Weights by key; a tensor that needs no conversion stays memory-mapped. None leaves the module on the
            meta device: a network's shapes are all that planning needs.
        what: Name of the model, for errors.
        unused: Whether a key that the module does not have is known and may be left out.

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
        assign(module, key, value.to(target.dtype))
    module.requires_grad_(False).eval()
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"{what}: {left[0]} was left without values")
