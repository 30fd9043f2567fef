"""Folders of pipelines in diffusers' layout: which models they contain, and how these are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.models.checkpoints import hub
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd_dits.published import configurations

TEACHERS = {"WanPipeline": "wan", "CogVideoXPipeline": "cogvideox", "LTXPipeline": "ltx"}
"""The teacher that reads a pipeline, by the pipeline's class."""


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
        index = _json(folder / "model_index.json", teacher, f"it is no folder of a {pipeline} in diffusers' layout")
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
            GuidedCDError: It is missing, of another class, or cannot be read.
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
            GuidedCDError: It is missing or cannot be read.
        """
        import transformers

        cls = self._transformers_class("text_encoder")
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
            GuidedCDError: It is missing, names no class, or cannot be read.
        """
        import diffusers

        path = self.folder / "scheduler" / "scheduler_config.json"
        name = _json(path, self.teacher, "it has no scheduler").get("_class_name")
        cls = getattr(diffusers, str(name), None)
        if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
            problem = f"names the scheduler {shortened(name)}, which diffusers lacks" if name else "names no class"
            raise GuidedCDError(f"{self.teacher}: {path} {problem}.")
        return self._read("scheduler", lambda: cls.from_pretrained(self.folder / "scheduler"))  # type: ignore[attr-defined]

    def _weights(self, name: str, cls: Any) -> Any:
        """A model with the weights of its subfolder, all of which must be there."""
        options = {"torch_dtype": self.dtype, "use_safetensors": True, "output_loading_info": True}
        model, report = self._read(name, lambda: cls.from_pretrained(self.folder / name, **options))
        if missing := sorted(report["missing_keys"]):
            raise GuidedCDError(
                f"{self.teacher}: {self.folder / name} lacks {len(missing)} weights that its config.json describes, "
                f"such as {missing[0]}."
            )
        return model.eval()

    def _config(self, name: str) -> dict[str, Any]:
        listed = "which model_index.json names" if self.has(name) else "and model_index.json names none"
        return _json(self.folder / name / "config.json", self.teacher, f"it has no {name}/, {listed}")

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

    def _read(self, name: str, read: Any) -> Any:
        try:
            return read()
        except GuidedCDError:
            raise
        except Exception as error:  # the libraries raise many classes for missing and damaged files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GuidedCDError(
                f"{self.teacher}: cannot read {self.folder / name}: {shortened(reason, 200).rstrip('.')}."
            ) from error


def locate(path: str, teacher: str, parts: tuple[str, ...], weights: bool) -> Path:
    """The folder of `path`: itself, or its parts in the hub's cache, downloaded if they are not there.

    Raises:
        GuidedCDError: There is no such folder, and it cannot be downloaded; the message has the command.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise GuidedCDError(f"{teacher}: {path} is a file; give the folder of the pipeline, with its model_index.json.")
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise GuidedCDError(f"{teacher}: there is no folder {path}.")
    patterns = ["model_index.json", *(f"{part}/*" for part in parts)] if weights else ["*.json"]
    downloaded, reason = hub.snapshot(path, patterns, ignore_patterns=["*.bin"])
    if downloaded is not None:
        return downloaded
    local = path.rpartition("/")[2]
    raise GuidedCDError(
        f"{teacher}: there is no folder {path}, and {reason}. On a machine with access: hf download {path} --local-dir "
        f"{local}; then --teacher {teacher}:{local}."
    )


def _json(path: Path, teacher: str, absent: str) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Raises:
        GuidedCDError: There is no such file, which `absent` explains, or it cannot be read or contains no object.
    """
    if not path.exists():
        where = path.parent if path.name == "model_index.json" else path.parent.parent
        raise GuidedCDError(f"{teacher}: {where} lacks {path.name} of {path.parent.name}: {absent}.")
    try:
        values: dict[str, Any] = read_json(path, dict)
    except GuidedCDError as error:
        raise GuidedCDError(f"{teacher}: {error}") from None
    return values
