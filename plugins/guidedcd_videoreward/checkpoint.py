"""The released checkpoint: its folder, its settings, and its weights under transformers' present names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.documents import parse_json, read_text
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.hub import cache_folder, snapshot
from guidedcd.models.checkpoints.loading import check_floats, open_weights

REPO = "KwaiVGI/VideoReward"
SIZE = "5.0 GB"
HEADS = ("VQ", "MQ", "TA")
"""Names of visual quality, motion quality and text alignment in the checkpoint."""
WRAPPER = "base_model.model."
_ADAPTER = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?:\w+\.)?weight")


@attrs.frozen
class Release:
    """A downloaded repository."""

    folder: Path
    """Contains model.pth and tokenizer/."""
    settings: Mapping[str, Any]
    """The sections of model_config.json."""

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.folder / "model.pth"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.folder / "tokenizer"

    def section(self, name: str) -> Mapping[str, Any]:
        """One section of model_config.json; empty if it is absent."""
        return self.settings.get(name) or {}

    @property
    def max_pixels(self) -> int | None:
        """The largest area of a frame in training, pixels."""
        return self.section("data_config").get("max_frame_pixels")

    @property
    def normalisation(self) -> tuple[tuple[float, float], ...]:
        """Mean and standard deviation of the three scores; 0 and 1 where the file has none, as in the released code."""
        values = self.section("inference_config")
        if not values:
            return ((0.0, 1.0),) * len(HEADS)
        try:
            result = tuple((float(values[f"{head}_mean"]), float(values[f"{head}_std"])) for head in HEADS)
        except (KeyError, TypeError, ValueError) as error:
            raise GuidedCDError(f"videoreward: inference_config of model_config.json lacks {error}.") from error
        if not all(math.isfinite(mean) and 0 < std < math.inf for mean, std in result):
            raise GuidedCDError(
                "videoreward: inference_config of model_config.json has a deviation that is not positive."
            )
        return result

    @property
    def scaling(self) -> float:
        """Factor of the adapters' products."""
        lora = self.section("peft_lora_config")
        rank, alpha = lora.get("lora_r"), lora.get("lora_alpha")
        if not rank or alpha is None:
            raise GuidedCDError("videoreward: peft_lora_config of model_config.json states no lora_r and lora_alpha.")
        return alpha / (math.sqrt(rank) if lora.get("use_rslora") else rank)


def find_release(path: str) -> Release:
    """The release that the option `path` selects.

    Args:
        path: `auto` (the cache folder, else the hub), the repository's folder, a checkpoint-* folder, or its model.pth.

    Raises:
        GuidedCDError: It is missing or incomplete; the message states how to get it, or what it lacks.
    """
    source = _automatic() if path == "auto" else Path(path).expanduser()
    if not source.exists():
        raise GuidedCDError(f"videoreward: there is no {path}. {_advice()}.")
    if source.is_file():
        source = source.parent
    folder = source
    if (source / "model_config.json").is_file() and not (source / "model.pth").is_file():
        folder = _last_checkpoint(source)
    settings_path = next(
        (f for f in (folder / "model_config.json", folder.parent / "model_config.json") if f.is_file()), None
    )
    if settings_path is None:
        raise GuidedCDError(f"videoreward: {source} has no model_config.json. {_advice()}.")
    settings = parse_json(read_text(settings_path), f"videoreward: {settings_path}")
    if not isinstance(settings, dict):
        raise GuidedCDError(f"videoreward: {settings_path} is no JSON object.")
    release = Release(folder, settings)
    _check_settings(release, settings_path)
    if not release.weights.is_file():
        other = "adapter_model.safetensors"
        advice = "merge it into one model.pth first" if (folder / other).is_file() else _advice()
        raise GuidedCDError(f"videoreward: {folder} has no model.pth; {advice}.")
    return release


def _check_settings(release: Release, path: Path) -> None:
    supported = (
        ("model_config", "reward_token", "special"),
        ("model_config", "use_special_tokens", True),
        ("data_config", "prompt_template_type", "detailed_special"),
        ("data_config", "eval_dim", list(HEADS)),
    )
    for section, key, value in supported:
        actual = release.section(section).get(key, value)
        if actual != value:
            raise GuidedCDError(f"videoreward: {path} states {key} {actual!r}; only {value!r} is supported.")


def _last_checkpoint(folder: Path) -> Path:
    numbers = {
        int(match[1]): child
        for child in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", child.name))
    }
    if not numbers:
        raise GuidedCDError(f"videoreward: {folder} has no folder checkpoint-NUMBER. {_advice()}.")
    return numbers[max(numbers)]


def _advice() -> str:
    folder = cache_folder() / "VideoReward"
    return f"To get it ({SIZE}, Apache-2.0): hf download {REPO} --local-dir {folder}; then `auto` finds it"


def _automatic() -> Path:
    folder = cache_folder() / "VideoReward"
    if folder.is_dir():
        return folder
    downloaded, reason = snapshot(REPO, ["model_config.json", "checkpoint-*/*"])
    if downloaded is None:
        raise GuidedCDError(f"videoreward: {REPO} is not on this machine and {reason}. {_advice()}.")
    return downloaded


def present_name(key: str) -> str:
    """A key of the checkpoint, of transformers 4.45 inside peft, as transformers since 4.52 has it."""
    name = key.removeprefix(WRAPPER).replace(".base_layer.", ".")
    if name.startswith(("model.visual.", "model.language_model.")):
        return name
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


@attrs.frozen(eq=False)
class Weights(Mapping[str, Tensor]):
    """The weights of a checkpoint by present name; an adapter is added to its weight when that is read."""

    keys_by_name: Mapping[str, str]
    """Key of the file by present name."""
    adapters: Mapping[str, tuple[str, str]]
    """Keys of the matrices A and B by present name of the weight."""
    state: Mapping[str, Tensor]
    scaling: float

    def __getitem__(self, name: str) -> Tensor:
        """W, or W + scaling * B A, computed in float32."""
        key = self.keys_by_name[name]
        weight = self.state[key]
        if name not in self.adapters:
            return weight
        down, up = (self.state[key].float() for key in self.adapters[name])
        if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != tuple(weight.shape):
            shapes = f"{list(up.shape)} and {list(down.shape)}"
            raise GuidedCDError(
                f"videoreward: the adapter of {key} has shapes {shapes}, its weight {list(weight.shape)}."
            )
        check_floats(weight, down, f"videoreward: {key}")
        return torch.addmm(weight.float(), up, down, alpha=self.scaling)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        return len(self.keys_by_name)


def merged_weights(release: Release) -> Weights:
    """The weights of a release; each is read from the mapped file when it is its turn.

    The language head is left out: it is a copy of the embedding, and no score reads it.

    Raises:
        GuidedCDError: The file is damaged or contains code, an adapter lacks its weight or half of it, or its rank is
            another than that of the settings.
    """
    state = open_weights(release.weights, "videoreward")
    names: dict[str, str] = {}
    halves: dict[str, dict[str, str]] = {}
    for key in state:
        match = _ADAPTER.fullmatch(key)
        if match:
            halves.setdefault(present_name(f"{match['module']}.weight"), {})[match["part"]] = key
        elif not key.removeprefix(WRAPPER).startswith("lm_head."):
            names[present_name(key)] = key
    for name, parts in halves.items():
        if set(parts) != {"A", "B"} or name not in names:
            key = next(iter(parts.values()))
            raise GuidedCDError(
                f"videoreward: {release.weights}: the adapter {key} lacks its other half or its weight."
            )
    adapters = {name: (parts["A"], parts["B"]) for name, parts in halves.items()}
    scaling = release.scaling if adapters else 0.0
    rank = release.section("peft_lora_config").get("lora_r")
    for down, _ in adapters.values():
        if len(state[down]) != rank:
            raise GuidedCDError(f"videoreward: {down} has rank {len(state[down])}, model_config.json states {rank}.")
    return Weights(names, adapters, state, scaling)
