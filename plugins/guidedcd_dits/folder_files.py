"""Files of pipelines in diffusers' layout: where a folder is, its JSON objects, and its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.models.checkpoints import hub

AGAIN = "Copy or download the folder again."
"""What to do about a missing file."""


@contextmanager
def silent() -> Iterator[None]:
    """Within this context diffusers and transformers log nothing: their errors become one sentence of ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)


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


def read_object(path: Path, teacher: str, absent: str) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Raises:
        GuidedCDError: There is no such file, which is the sentence `absent`, or it cannot be read or contains no
            object.
    """
    if not path.exists():
        raise GuidedCDError(f"{teacher}: {absent}")
    try:
        values: dict[str, Any] = read_json(path, dict)
    except GuidedCDError as error:
        raise GuidedCDError(f"{teacher}: {error}") from None
    return values


def check_weights(folder: Path, name: str, teacher: str) -> None:
    """Check that a component's folder has the weights that the libraries read: safetensors, and no variant.

    Args:
        folder: Of the component.
        name: The file; several shards have an index instead, with ".index.json" after the name.
        teacher: Name of the teacher, for errors.

    Raises:
        GuidedCDError: It has other files of weights, which the message names, or none.
    """
    if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
        return
    others = [
        path.name for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin") and path.is_file()
    ]
    if not others:
        raise GuidedCDError(f"{teacher}: {folder / name} is missing. {AGAIN}")
    raise GuidedCDError(
        f"{teacher}: {folder} has neither {name} nor {name}.index.json, only {shortened(', '.join(others))}. "
        "Save the pipeline as safetensors without a variant: `pipe.save_pretrained(FOLDER)`."
    )
