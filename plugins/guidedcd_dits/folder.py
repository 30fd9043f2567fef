"""Folders of pipelines in diffusers' layout: which models they contain, and how these are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.console import counted
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.documents import is_number
from guidedcd.errors import GuidedCDError, refusal, shortened
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd_dits.folder_files import AGAIN, check_weights, locate, read_object, silent
from guidedcd_dits.published import configurations

TEACHERS = {"WanPipeline": "wan", "CogVideoXPipeline": "cogvideox", "LTXPipeline": "ltx"}
"""The teacher that reads a pipeline, by the pipeline's class."""
POSITIVE = ("num_train_timesteps", "shift", "flow_shift")
"""Entries of a scheduler that are numbers above 0, or null."""
_BLOCK = re.compile(r"blocks?\.\d+\.")
"""In the name of a weight, one of a model's repeated blocks."""


@attrs.frozen(kw_only=True)
class PipelineFolder:
    """A folder of one family.

    Its models are read with `dtype`; without `weights` they are built on the meta device from their configurations.
    """

    folder: Path
    teacher: str
    """Name of the teacher, for errors."""
    index: dict[str, Any]
    """model_index.json."""
    dtype: torch.dtype
    weights: bool
    temporary: Any = None
    """What removes a temporary `folder` when this object is deleted."""

    @classmethod
    def open(
        cls, path: str, pipeline: str, parts: tuple[str, ...], *, dtype: torch.dtype, weights: bool
    ) -> PipelineFolder:
        """Find a folder, or download its parts, and check that it is of the family.

        Without weights, the configurations of a published pipeline need neither a folder nor the network.

        Args:
            path: Folder or hub id.
            pipeline: Class of the family's pipeline.
            parts: Subfolders that are needed, of those that model_index.json names.
            dtype: Of the models.
            weights: Whether weights are read.

        Raises:
            GuidedCDError: There is no such folder, it cannot be downloaded, or it is of another family.
        """
        teacher = TEACHERS[pipeline]
        temporary = None if weights or Path(path).expanduser().exists() else configurations(path)
        folder = locate(path, teacher, parts, weights) if temporary is None else Path(temporary.name)
        absent = f"{folder} has no model_index.json: it is no folder of a {pipeline} in diffusers' layout."
        index = read_object(folder / "model_index.json", teacher, absent)
        name = index.get("_class_name")
        if name is None:
            raise GuidedCDError(f"{teacher}: {folder / 'model_index.json'} names no pipeline (_class_name).")
        if name != pipeline:
            other = TEACHERS.get(str(name))
            advice = f"use --teacher {other}:{path}" if other else f"{teacher} reads a {pipeline}"
            raise GuidedCDError(f"{teacher}: {folder} is a {shortened(name)}: {advice}.")
        return cls(folder=folder, teacher=teacher, index=index, dtype=dtype, weights=weights, temporary=temporary)

    def has(self, name: str) -> bool:
        """Whether the pipeline has the component `name`, by its model_index.json."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and None not in entry

    def model(self, name: str, kind: str) -> Any:
        """The model of diffusers in the subfolder `name`, of the class `kind`.

        Raises:
            GuidedCDError: It is missing, of another class, or cannot be read, or its weights are others than those
                that its configuration describes.
        """
        import diffusers

        config = self._config(name)
        if config.get("_class_name") != kind:
            stated = config.get("_class_name")
            problem = f"is a {shortened(stated)}" if stated else "names no class (_class_name)"
            raise GuidedCDError(f"{self.teacher}: {self.folder / name / 'config.json'} {problem}; it must be a {kind}.")
        cls = getattr(diffusers, kind)
        if not self.weights:
            return skeleton(lambda: cls.from_config(config)).to(self.dtype)
        return self._weights(name, cls)

    def text_encoder(self) -> Any:
        """The text encoder of transformers that model_index.json names.

        Raises:
            GuidedCDError: It is missing or cannot be read, or its weights are others than those of its configuration.
        """
        import transformers

        cls = self._transformers_class("text_encoder")
        self._config("text_encoder")
        if not self.weights:
            config = self._read(
                "text_encoder", lambda: transformers.AutoConfig.from_pretrained(self.folder / "text_encoder")
            )
            return skeleton(lambda: cls(config)).to(self.dtype)
        return self._weights("text_encoder", cls)

    def tokenizer(self) -> Any:
        """The tokenizer; None without weights.

        Raises:
            GuidedCDError: It is missing or cannot be read.
        """
        if not self.weights:
            return None
        import transformers

        if not (self.folder / "tokenizer").is_dir():
            raise GuidedCDError(f"{self.teacher}: {self._without('tokenizer')}. {AGAIN}")
        entry = self.index.get("tokenizer")
        stated = getattr(transformers, str(entry[1]), None) if isinstance(entry, list) and len(entry) == 2 else None

        def read() -> Any:
            try:
                return transformers.AutoTokenizer.from_pretrained(self.folder / "tokenizer")
            except (KeyError, ValueError, OSError):
                if stated is None:
                    raise
                return stated.from_pretrained(self.folder / "tokenizer")

        tokenizer = self._read("tokenizer", read)
        if tokenizer.pad_token is None:
            raise GuidedCDError(
                f"{self.teacher}: the tokenizer of {self.folder / 'tokenizer'} has no padding token: its "
                "tokenizer_config.json is missing or incomplete."
            )
        return tokenizer

    def scheduler(self) -> Any:
        """The scheduler of diffusers, of the class that its own configuration names.

        Raises:
            GuidedCDError: It is missing, names no class, has a value of a wrong kind, or cannot be read.
        """
        import diffusers

        path, values = self.file("scheduler"), self._config("scheduler")
        name = values.get("_class_name")
        cls = getattr(diffusers, str(name), None)
        if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
            problem = f"names the scheduler {shortened(name)}, which diffusers lacks" if name else "names no class"
            raise GuidedCDError(f"{self.teacher}: {path} {problem}.")
        for key in POSITIVE:
            if values.get(key) is not None:
                self.number("scheduler", values, key, above=0)
        dynamic = values.get("use_dynamic_shifting", False)
        if not isinstance(dynamic, bool):
            raise self.refused("scheduler", "use_dynamic_shifting", dynamic, "true or false")
        return self._read("scheduler", lambda: cls.from_pretrained(self.folder / "scheduler"))  # type: ignore[attr-defined]

    def schedule(self, scheduler: Any, mu: float | None = None) -> NoiseSchedule:
        """The noise levels of the folder's scheduler, see `NoiseSchedule.from_scheduler`.

        Raises:
            GuidedCDError: They cannot be computed, or are not between 0 and 1; the message names the file.
        """
        path = self.file("scheduler")
        try:
            schedule = NoiseSchedule.from_scheduler(scheduler, mu)
        except GuidedCDError as error:
            raise GuidedCDError(f"{self.teacher}: {path}: {error}") from None
        except Exception as error:  # of a value that diffusers itself does not check
            raise GuidedCDError(
                f"{self.teacher}: {path} has a value with which {type(scheduler).__name__} computes no noise levels: "
                f"{shortened(error, 200).rstrip('.')}."
            ) from error
        low, high = float(schedule.sigma.min()), float(schedule.sigma.max())
        if not (low >= 0 and high < 1.001):
            raise GuidedCDError(
                f"{self.teacher}: {path} has noise levels from {low:.3g} to {high:.3g}; they must be from 0 to 1. "
                "Correct its shifts."
            )
        return schedule

    def file(self, name: str) -> Path:
        """The configuration of the component `name`; of the pipeline itself if that is empty."""
        names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
        return self.folder / name / names.get(name, "config.json")

    def number(
        self, name: str, config: Mapping[str, Any], key: str, *, above: float = -math.inf, below: float = math.inf
    ) -> float:
        """The number `key` of the component `name`.

        Raises:
            GuidedCDError: It is no number, or not between the bounds; the message names the file.
        """
        value: Any = config.get(key)
        if not (is_number(value) and above < value < below):
            limits = {"above": above, "below": below}
            bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
            raise self.refused(name, key, value, f"a number {bounds}".rstrip())
        return float(value)

    def refused(self, name: str, key: str, value: Any, requirement: str) -> GuidedCDError:
        """The error of an entry of the component `name`: its file, the value, and what it must be."""
        return GuidedCDError(refusal(f"{self.teacher}: {self.file(name)}: {key}", value, requirement))

    def _weights(self, name: str, cls: Any) -> Any:
        """A model with the weights of its subfolder, which has all weights of its configuration and no more blocks."""
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        check_weights(self.folder / name, f"{stem}.safetensors", self.teacher)
        options = {"torch_dtype": self.dtype, "use_safetensors": True, "output_loading_info": True}
        model, report = self._read(name, lambda: cls.from_pretrained(self.folder / name, **options))
        if missing := sorted(report["missing_keys"]):
            raise GuidedCDError(
                f"{self.teacher}: {self.folder / name} lacks {counted(len(missing), 'weight')} that its config.json "
                f"describes, such as {missing[0]}."
            )
        # Other surplus weights, such as a table of positions or the decoder of a text encoder, change no output.
        own = "encoder." if name == "text_encoder" else ""
        surplus = [key for key in report["unexpected_keys"] if key.startswith(own) and _BLOCK.search(key)]
        if surplus:
            raise GuidedCDError(
                f"{self.teacher}: {self.folder / name} has {counted(len(surplus), 'weight')} that its config.json does "
                f"not describe, such as {min(surplus)}. Use the config.json that was saved with the weights."
            )
        return model.eval()

    def _config(self, name: str) -> dict[str, Any]:
        path = self.file(name)
        absent = f"{path} is missing" if path.parent.is_dir() else self._without(name)
        return read_object(path, self.teacher, f"{absent}. {AGAIN}")

    def _without(self, name: str) -> str:
        listed = "which model_index.json names" if self.has(name) else "and model_index.json names none"
        return f"{self.folder} has no {name}/, {listed}"

    def _transformers_class(self, name: str) -> Any:
        import transformers

        entry = self.index.get(name)
        stated = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        cls = getattr(transformers, str(stated), None)
        if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
            raise GuidedCDError(
                f"{self.teacher}: {self.folder / 'model_index.json'} names no {name} of transformers "
                f"({shortened(stated)})."
            )
        return cls

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            with silent():
                return read()
        except GuidedCDError:
            raise
        except Exception as error:  # the libraries raise many classes for missing and damaged files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GuidedCDError(
                f"{self.teacher}: cannot read {self.folder / name}: {shortened(reason, 200).rstrip('.')}."
            ) from error
