"""The dataset `fastvideo`: clips whose latents and embedded captions FastVideo's preprocessing wrote.

A row has the posterior's mean of the VAE, in the VAE's own scale, and the text encoder's output for the tokens of the
caption, both as bytes with a shape and a dtype (`fastvideo/dataset/dataloader/schema.py`, `pyarrow_schema_t2v`). Its
columns `width` and `height` are those of the source in some versions and swapped in others; they are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest
from guidedcd_fastvideo import FastVideoConfig
from guidedcd_fastvideo.tables import TAGS, Tables

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KNOWN = 3
"""Shapes that an error lists."""


class FastVideo:
    """The dataset `fastvideo`."""

    encoded = True

    def __init__(self, config: FastVideoConfig) -> None:
        """Keep the path.

        Raises:
            GuidedCDError: The config names none.
        """
        if config.path is None:
            raise GuidedCDError("dataset 'fastvideo' needs its folder: --data fastvideo:FOLDER.")
        self.path = config.path

    def open(self, geometry: Geometry) -> Sequence[Clip]:
        """All rows of the files; a row of another size than the teacher's raises ClipError when it is read.

        Raises:
            GuidedCDError: There is no file, pyarrow is not installed, a file lacks columns, or no latents have the
                size of the teacher's.
        """
        tables = Tables(self._files(), self.path)
        sizes: set[tuple[int, ...]] = set()
        for shape in tables.shapes():
            if shape == geometry.encoded_shape:
                break
            sizes |= {shape} if shape else set()
        else:
            if sizes:
                raise GuidedCDError(f"dataset 'fastvideo': {_mismatch(sizes, geometry)}")
        return Clips(tables, geometry)

    def fingerprint(self) -> str:
        """A digest of names, sizes and times of modification of the files."""
        files = self._files()
        about = [(file, file.stat()) for file in files]
        return digest([(self._name(file), status.st_size, int(status.st_mtime)) for file, status in about])

    def _files(self) -> list[Path]:
        """The files, sorted by name.

        Raises:
            GuidedCDError: There is none.
        """
        if self.path.is_file():
            return [self.path]
        if not self.path.exists():
            raise GuidedCDError(f"dataset 'fastvideo': there is no folder {self.path}.")
        files = sorted(self.path.rglob("*.parquet"), key=self._name)
        if not files:
            raise GuidedCDError(f"dataset 'fastvideo': there is no .parquet file in {self.path}.")
        return files

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if file != self.path else file.name


def _mismatch(sizes: set[tuple[int, ...]], geometry: Geometry) -> str:
    """A sentence about latents none of which has the teacher's size."""
    channels = {size[0] for size in sizes}
    if geometry.channels not in channels:
        return (
            f"its latents have {' or '.join(map(str, sorted(channels)))} channels, and this teacher's have "
            f"{geometry.channels}: another autoencoder encoded them (that of Wan 2.1 and Wan 2.2 A14B has 16 channels, "
            "that of Wan 2.2 TI2V 5B has 48)."
        )
    videos = [text for size in sorted(sizes) if size[0] == geometry.channels and (text := _video(size, geometry))]
    several = f"{', '.join(videos[:KNOWN])}{' and others' if len(videos) > KNOWN else ''}"
    return (
        f"its latents are of {several or 'another form'}, and this teacher's videos have "
        f"{_video(geometry.encoded_shape, geometry)}: set the teacher's frames, height and width to a size of the data."
    )


def _video(size: Sequence[int], geometry: Geometry) -> str:
    """The frames and pixels of latents (C, F', h, w)."""
    if len(size) != 4:
        return ""
    frames = (size[1] - 1) * geometry.temporal_compression + 1
    return f"{frames} frames of {size[2] * geometry.compression}x{size[3] * geometry.compression}"


class Clips(LazySequence[Clip]):
    """The rows of the files as clips with latents and embedded captions."""

    def __init__(self, tables: Tables, geometry: Geometry) -> None:
        """Keep the rows and the size of the teacher's videos."""
        self.tables, self.geometry = tables, geometry

    def __len__(self) -> int:
        """How many rows."""
        return len(self.tables)

    def read(self, index: int) -> Clip:
        """The clip of row `index`.

        Raises:
            ClipError: It cannot be used; the message begins with its id.
        """
        id_ = self.tables.name(index)
        try:
            return self._clip(id_, self.tables.row(index))
        except ClipError as error:
            raise ClipError(f"{id_}: {error}") from error

    def _clip(self, id_: str, row: Mapping[str, Any]) -> Clip:
        caption = row["caption"].strip() if isinstance(row["caption"], str) else ""
        if not caption:
            raise ClipError("has no caption")
        latents = tensor(row, "vae_latent")
        if latents.shape != self.geometry.encoded_shape:
            raise ClipError(
                f"its latents are {tuple(latents.shape)}, and this teacher's are {self.geometry.encoded_shape}"
            )
        embeds = tensor(row, "text_embedding")
        if embeds.ndim == 3 and len(embeds) == 1:  # older files keep the dimension of the batch
            embeds = embeds[0]
        if embeds.ndim != 2 or not embeds.numel():
            raise ClipError(f"its text embedding is {tuple(embeds.shape)}, and not (tokens, width)")
        return Clip(
            id=id_,
            dataset="fastvideo",
            caption=caption,
            tags={name: row[name] for name in TAGS if row.get(name) not in (None, "")},
            latents=latents,
            prompt_embeds=embeds,
        )


def tensor(row: Mapping[str, Any], name: str) -> Tensor:
    """The tensor of three columns of a row, as float32.

    Raises:
        ClipError: It is missing, its bytes do not have its shape, or its dtype is unknown.
    """
    content, shape, kind = (row[f"{name}_{end}"] for end in ("bytes", "shape", "dtype"))
    what = name.replace("_", " ")
    if content is None or not len(content):
        raise ClipError(f"has no {what}")
    dtype = DTYPES.get(str(kind).removeprefix("torch."))
    if dtype is None:
        raise ClipError(f"its {what} has the dtype {kind!r}; known are {', '.join(DTYPES)}")
    shape = tuple(shape or ())
    if min(shape, default=0) < 1 or torch.Size(shape).numel() * dtype.itemsize != len(content):
        raise ClipError(f"its {what} has {len(content)} bytes, which are no {kind} of shape {shape}")
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape).float()
