"""Files that list clips (CSV, JSON lines, a JSON list) as sequences of rows.

CSV and JSON lines are read one row at a time. A malformed row counts, and reading it raises ClipError, so that the run
counts and reports the clip.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guidedcd.data.clips import ClipError
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.documents import open_regular
from guidedcd.errors import GuidedCDError

Row = Mapping[str, Any]


class Table(LazySequence[Row]):
    """The rows of a file; `columns` are the names of their values."""

    columns: tuple[str, ...]

    def __init__(self, path: Path) -> None:
        """Keep the path."""
        self.path = path

    def describe(self, index: int) -> str:
        """Name of row `index` for messages: the file and the number of the entry."""
        return f"{self.path.name} entry {index + 1}"

    def scan(self) -> Iterator[Row | None]:
        """All rows in one pass; None for a malformed one."""
        for index in range(len(self)):
            try:
                yield self[index]
            except ClipError:
                yield None


class Lines(Iterator[str]):
    """Lines of a text file; `next` is the byte offset of the next line. Bytes that are not UTF-8 become surrogates."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Open the file."""
        self._handle = open_regular(path)  # closed with its last line, or with this object
        self._handle.seek(offset)
        self.next = offset

    def __next__(self) -> str:
        """The next line, with its end."""
        raw = b"" if self._handle.closed else self._handle.readline()
        if not raw:
            self._handle.close()
            raise StopIteration
        text = raw.decode("utf-8-sig" if self.next == 0 else "utf-8", "surrogateescape")
        self.next += len(raw)
        return text


class Indexed(Table):
    """A table that keeps only the byte offsets and line numbers of its rows in memory."""

    def __init__(self, path: Path) -> None:
        """No rows yet."""
        super().__init__(path)
        self._offsets, self._numbers = array("Q"), array("Q")

    def __len__(self) -> int:
        """How many rows."""
        return len(self._offsets)

    def describe(self, index: int) -> str:
        """Name of row `index` for messages: the file and the line number."""
        return f"{self.path.name} line {self._numbers[index]}"


class CsvTable(Indexed):
    """Comma-separated values with a header; a .tsv file has tabs."""

    def __init__(self, path: Path) -> None:
        """Read the header, and locate the rows."""
        super().__init__(path)
        records = self._records(0, 1)
        first = next(records, None)
        header = first[2] if first else []
        if isinstance(header, ClipError):
            raise GuidedCDError(f"{path} is no table with a header: its first line is {header}.")
        self.columns = tuple(name.strip() for name in header)
        for offset, number, _ in records:
            self._offsets.append(offset)
            self._numbers.append(number)

    def scan(self) -> Iterator[Row | None]:
        """All rows in one pass; None for a malformed one."""
        for _, _, record in self._records(self._offsets[0], 1):
            try:
                yield self._row(record)
            except ClipError:
                yield None

    def read(self, index: int) -> Row:
        """Read row `index`.

        Raises:
            ClipError: It is malformed.
        """
        return self._row(next(self._records(self._offsets[index], self._numbers[index]))[2])

    def _records(self, offset: int, number: int) -> Iterator[tuple[int, int, list[str] | ClipError]]:
        """Offset, line number and values of each record from `offset` on; blank lines are left out."""
        lines = Lines(self.path, offset)
        rows = csv.reader(lines, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
        while True:
            start, line = lines.next, number + rows.line_num
            record: list[str] | ClipError
            try:
                record = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                last = number + rows.line_num - 1
                record = ClipError(f"malformed{f' up to line {last}' if last > line else ''} ({error})")
            if record:
                yield start, line, record

    def _row(self, record: list[str] | ClipError) -> Row:
        if isinstance(record, ClipError):
            raise record
        if len(record) != len(self.columns):
            raise ClipError(f"has {len(record)} values for {len(self.columns)} columns")
        if not _is_text("".join(record)):
            raise ClipError("is not UTF-8 text")
        return dict(zip(self.columns, record, strict=True))


class JsonLines(Indexed):
    """One JSON object per line."""

    def __init__(self, path: Path) -> None:
        """Locate the lines, and read the names in the first valid one."""
        super().__init__(path)
        lines, offset = Lines(path), 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._offsets.append(offset)
                self._numbers.append(number)
            offset = lines.next
        self.columns = _names(self)

    def scan(self) -> Iterator[Row | None]:
        """All rows in one pass; None for a malformed one."""
        for line in Lines(self.path):
            if line.strip():
                try:
                    yield _parsed(line)
                except ClipError:
                    yield None

    def read(self, index: int) -> Row:
        """Read row `index`.

        Raises:
            ClipError: It is malformed.
        """
        return _parsed(next(Lines(self.path, self._offsets[index])))


class JsonList(Table):
    """One JSON list of objects, which stays in memory."""

    def __init__(self, path: Path) -> None:
        """Read the whole file."""
        super().__init__(path)
        try:
            with open_regular(path) as handle:
                entries = json.loads(handle.read().decode("utf-8-sig", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise GuidedCDError(f"{path} is damaged and cannot be read as JSON: {error}.") from None
        if not isinstance(entries, list):
            raise GuidedCDError(f"{path} must contain a list with one object per video, not {_kind(entries)}.")
        self._rows = entries
        self.columns = _names(self)

    def __len__(self) -> int:
        """How many entries."""
        return len(self._rows)

    def read(self, index: int) -> Row:
        """Read row `index`.

        Raises:
            ClipError: It is no JSON object.
        """
        return _object(self._rows[index])


def read_table(path: Path) -> Table:
    """The rows of a .csv, .tsv, .jsonl or .json file.

    Raises:
        GuidedCDError: The file is missing, of another kind, or has no rows.
    """
    kinds: dict[str, Callable[[Path], Table]] = {
        ".csv": CsvTable,
        ".tsv": CsvTable,
        ".jsonl": JsonLines,
        ".ndjson": JsonLines,
        ".json": JsonList,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise GuidedCDError(f"{path} is no list of clips: such a file ends in {', '.join(kinds)}.")
    try:
        table = kind(path)
    except OSError as error:
        raise GuidedCDError(f"{path} cannot be read: {error.strerror}.") from None
    if not len(table):
        raise GuidedCDError(f"{path} lists no clip.")
    return table


def _parsed(line: str) -> Row:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ClipError(f"is no JSON ({error})") from None


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        raise ClipError(f"is {_kind(value)}, not an object")
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ClipError("is nested too deeply") from None
    if not _is_text(text):
        raise ClipError("is not UTF-8 text")
    return value


def _is_text(text: str) -> bool:
    """Whether the bytes of `text` were valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _names(rows: Table) -> tuple[str, ...]:
    """Names in the first valid row, which stand for all rows."""
    return next((tuple(row) for row in rows.scan() if row is not None), ())
