"""Rows of Parquet files, read one row group at a time.

Legend: R rows of all files.
"""

from __future__ import annotations

import bisect
import functools
import importlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from guidedcd.data.clips import ClipError
from guidedcd.errors import GuidedCDError

TENSORS = ("vae_latent", "text_embedding")
"""Names of the tensors; each has three columns."""
COLUMNS = (*(f"{name}_{end}" for name in TENSORS for end in ("bytes", "shape", "dtype")), "caption")
"""The columns without which a file is of no use here."""
TAGS = ("file_name", "media_type", "fps", "duration_sec")
"""Columns that become tags."""
SHAPE = "vae_latent_shape"


def parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        GuidedCDError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise GuidedCDError(
            "dataset 'fastvideo' needs pyarrow, which is not installed: pip install 'guidedcd[parquet]'."
        ) from None


class Tables:
    """The rows of some Parquet files, in the order of the files.

    Args:
        files: The files.
        root: The data set's folder, or its only file.

    Raises:
        GuidedCDError: pyarrow is not installed, or a file has other columns or cannot be read.
    """

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self._files, self._root, self._parquet = files, root, parquet()
        self.damage: dict[int, str] = {}
        """By number of a file that cannot be read, the reason."""
        self._groups = [self._read_groups(number) for number in range(len(files))]
        self._ends = list(accumulate(groups[-1] for groups in self._groups))
        # One row group is kept: a group has many rows, and rows are read in order, by one thread or two.
        self._group = functools.lru_cache(maxsize=2)(self._read_group)
        self._names = functools.lru_cache(maxsize=64)(self._read_names)
        self._metadata = functools.lru_cache(maxsize=64)(self._read_metadata)
        self._shapes = functools.lru_cache(maxsize=64)(functools.partial(self._column, name=SHAPE))

    def __len__(self) -> int:
        """R; a file that cannot be read counts as one row."""
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """Name of row `index`: its file without the ending, and its id, or its number where that is missing or not new.

        The same on every machine.
        """
        number, row = self._locate(index)
        file = self._describe(number).removesuffix(".parquet")
        return f"{file}/{self._names(number)[row]}" if number not in self.damage else file

    def row(self, index: int) -> Mapping[str, Any]:
        """Row `index`: bytes as buffers without a copy, other columns as values of Python.

        Raises:
            ClipError: It cannot be read.
        """
        number, row = self._locate(index)
        if number in self.damage:
            raise ClipError(f"the file is {self.damage[number]}; its rows are lost")
        ends = self._groups[number]
        group = bisect.bisect_right(ends, row)
        table, position = self._group(number, group), row - (ends[group - 1] if group else 0)
        columns = zip(table.column_names, table.columns, strict=True)
        return {
            name: column[position].as_buffer() if name.endswith("_bytes") else column[position].as_py()
            for name, column in columns
        }

    def metadata(self, index: int) -> Mapping[str, Any]:
        """The caption and the tags of row `index`; its tensors are not read. Empty if the file cannot be read."""
        number, row = self._locate(index)
        columns = self._metadata(number)
        return {name: values[row] for name, values in columns.items() if row < len(values)}

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of the latents of row `index`, as the file states it; () where there is none."""
        number, row = self._locate(index)
        shapes = self._shapes(number)
        return tuple(shapes[row] or ()) if row < len(shapes) else ()

    def _describe(self, number: int) -> str:
        file = self._files[number]
        return file.relative_to(self._root).as_posix() if file != self._root else file.name

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the file of row `index`, and its number there."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _open(self, number: int) -> Any:
        if not self._files[number].is_file():
            raise OSError("it is no regular file")  # a pipe would wait for a writer
        return self._parquet.ParquetFile(self._files[number])

    def _read_groups(self, number: int) -> list[int]:
        """Where the row groups of a file end, whose columns are checked."""
        try:
            with self._open(number) as file:
                kinds = {field.name: str(field.type) for field in file.schema_arrow}
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            self.damage[number] = f"damaged or no Parquet file ({_first_line(error)})"
            return [1]
        if missing := [name for name in COLUMNS if name not in kinds]:
            raise GuidedCDError(
                f"dataset 'fastvideo': {self._files[number]} has no column {', '.join(missing)}; FastVideo's text-to-"
                "video preprocessing writes these columns."
            )
        for name in (name for name in COLUMNS if name.endswith("_bytes") and "binary" not in kinds[name]):
            raise GuidedCDError(f"dataset 'fastvideo': the column {name} of {self._files[number]} contains no bytes.")
        return list(accumulate(sizes)) or [0]

    def _read_group(self, number: int, group: int) -> Any:
        try:
            with self._open(number) as file:
                names = [name for name in file.schema_arrow.names if name in (*COLUMNS, *TAGS)]
                return file.read_row_group(group, columns=names)
        except (OSError, ValueError) as error:
            raise ClipError(f"the file is damaged ({_first_line(error)})") from None

    def _read_names(self, number: int) -> list[str]:
        """A name for each row of a file: its id, or its number."""
        names: dict[str, None] = {}
        for row, id_ in enumerate(self._column(number, "id") or [None] * self._groups[number][-1]):
            names[str(id_) if id_ and str(id_) not in names else f"{id_ or ''}#{row}"] = None
        return list(names)

    def _read_metadata(self, number: int) -> dict[str, list[Any]]:
        """The columns of a file that are no tensors, by name."""
        return {name: self._column(number, name) for name in ("caption", *TAGS)}

    def _column(self, number: int, name: str) -> list[Any]:
        """One column of a file; empty if the file lacks it or cannot be read."""
        if number in self.damage:
            return []
        try:
            with self._open(number) as file:
                if name not in file.schema_arrow.names:
                    return []
                values: list[Any] = file.read(columns=[name])[name].to_pylist()
                return values
        except (OSError, ValueError):
            return []


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150].rstrip(".")
