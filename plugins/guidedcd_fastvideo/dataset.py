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

from guidedcd.data.buckets import ClipSize
from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.data.routing import Sample
from guidedcd.devices import DTYPES, dtype_of
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest
from guidedcd_fastvideo import FastVideoConfig
from guidedcd_fastvideo.tables import TAGS, Tables

TRIED = 16
"""Rows whose shape is read to find out which autoencoder encoded the files."""


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
            GuidedCDError: There is no file, pyarrow is not installed, a file lacks columns, or another autoencoder
                than the teacher's encoded the clips.
        """
        clips = Clips(Tables(self._files(), self.path), geometry)
        channels = next((shape[0] for n in range(min(len(clips), TRIED)) if (shape := clips.tables.shape(n))), None)
        if channels not in (None, geometry.channels):
            raise GuidedCDError(
                f"dataset 'fastvideo': its latents have {channels} channels, and this teacher's have "
                f"{geometry.channels}: another autoencoder encoded them (that of Wan 2.1 and Wan 2.2 A14B has 16 "
                "channels, that of Wan 2.2 TI2V 5B has 48)."
            )
        return clips

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

    def size(self, index: int) -> ClipSize:
        """The size of the video whose latents row `index` has.

        Raises:
            ClipError: The row has no latents of a video.
        """
        shape, geometry = self.tables.shape(index), self.geometry
        if len(shape) != 4 or min(shape) < 1:
            raise ClipError(f"{self.tables.name(index)}: has no latents of a video")
        return ClipSize(
            frames=(shape[1] - 1) * geometry.temporal_compression + 1,
            height=shape[2] * geometry.compression,
            width=shape[3] * geometry.compression,
            encoded=True,
        )

    def sample(self, index: int) -> Sample:
        """The metadata of the clip of row `index`, whose tensors are not read.

        Raises:
            ClipError: It has no caption.
        """
        id_ = self.tables.name(index)
        try:
            return metadata(id_, self.tables.metadata(index))
        except ClipError as error:
            raise ClipError(f"{id_}: {error}") from error

    def _clip(self, id_: str, row: Mapping[str, Any]) -> Clip:
        sample = metadata(id_, row)
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
            id=sample.id,
            dataset=sample.dataset,
            caption=sample.caption,
            tags=sample.tags,
            latents=latents,
            prompt_embeds=embeds,
        )


def metadata(id_: str, row: Mapping[str, Any]) -> Sample:
    """The id, the caption and the tags of a row.

    Raises:
        ClipError: It has no caption.
    """
    caption = row.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise ClipError("has no caption")
    tags = {name: row[name] for name in TAGS if row.get(name) not in (None, "")}
    return Sample(id=id_, dataset="fastvideo", caption=caption.strip(), tags=tags)


def tensor(row: Mapping[str, Any], name: str) -> Tensor:
    """The tensor of three columns of a row, as float32.

    Raises:
        ClipError: It is missing, its bytes do not have its shape, or its dtype is unknown.
    """
    content, shape, kind = (row[f"{name}_{end}"] for end in ("bytes", "shape", "dtype"))
    what = name.replace("_", " ")
    if content is None or not len(content):
        raise ClipError(f"has no {what}")
    dtype_name = str(kind).removeprefix("torch.")
    if dtype_name not in DTYPES:
        raise ClipError(f"its {what} has the dtype {kind!r}; known are {', '.join(DTYPES)}")
    dtype = dtype_of(dtype_name)
    shape = tuple(shape or ())
    if min(shape, default=0) < 1 or torch.Size(shape).numel() * dtype.itemsize != len(content):
        raise ClipError(f"its {what} has {len(content)} bytes, which are no {kind} of shape {shape}")
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape).float()
