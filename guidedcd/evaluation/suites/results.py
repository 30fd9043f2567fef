"""Files of results of a benchmark: JSON, folders and zip archives, read into one value for each dimension. No torch."""

from __future__ import annotations

import fnmatch
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from guidedcd.documents import LARGEST, is_number, parse_json, read_text
from guidedcd.errors import GuidedCDError, shown, suggest, unreadable
from guidedcd.evaluation.suites.contract import Dimension, Suite


@attrs.define
class Results:
    """The values of a table, as far as its files contain them."""

    values: dict[str, float] = attrs.field(factory=dict)
    """By dimension, a fraction."""
    files: dict[str, str] = attrs.field(factory=dict)
    """By dimension, the file that has its value."""
    counts: dict[str, int] = attrs.field(factory=dict)
    """By dimension, the number of videos that were scored, where the file lists them."""
    stated: dict[str, float] = attrs.field(factory=dict)
    """Aggregate scores that the files state; they are computed again and not used."""
    unknown: dict[str, str] = attrs.field(factory=dict)
    """By name that is no dimension, its file."""
    sources: list[str] = attrs.field(factory=list)
    """The files, in the order of reading."""


def read_results(suite: Suite, paths: Sequence[Path], *, percent: bool = False) -> Results:
    """Read files of results. If several contain a dimension, the last one counts, as in the official script of VBench.

    Args:
        suite: The benchmark.
        paths: Files, folders of files, or zip archives of files.
        percent: Whether the values are percent instead of fractions.

    Raises:
        GuidedCDError: A file is missing or malformed, or a value is no number, out of range, or in percent without
            `percent`.
    """
    results = Results()
    for path in paths:
        for name, text in _texts(suite, path):
            _add(results, suite, name, suite.parse(name, text), percent)
    if not results.values and not results.unknown:
        raise GuidedCDError(f"{', '.join(map(str, paths))} contains no value of a dimension of {suite.title}.")
    _check_ranges(results, suite, percent)
    return results


def _texts(suite: Suite, path: Path) -> Iterator[tuple[str, str]]:
    """The name and content of each file of results behind `path`."""
    if path.is_dir():
        files: list[Path] = []
        for pattern in suite.patterns:
            if files := sorted(file for file in path.glob(pattern) if file.is_file()):
                break
        if not files:
            raise GuidedCDError(
                f"the folder {path} contains no results of {suite.title} ({' or '.join(suite.patterns)})."
            )
        for file in files:
            text = read_text(file)
            if file.suffix != ".json" or isinstance(parse_json(text, file), dict):  # others list prompts and files
                yield str(file), text
        return
    if path.suffix.lower() == ".zip":
        yield from _members(suite, path)
        return
    yield str(path), read_text(path, missing=f"there is no file or folder of results {path}.")


def _members(suite: Suite, path: Path) -> Iterator[tuple[str, str]]:
    """The name and content of each file of results in a zip archive, in the order of the archive."""
    count = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = f"{path}: {info.filename}"
                parts = PurePosixPath(info.filename).parts
                if info.is_dir() or any(part.startswith((".", "__")) for part in parts):
                    continue
                if not any(fnmatch.fnmatch(parts[-1], pattern) for pattern in suite.patterns):
                    continue
                if info.file_size > LARGEST:
                    raise GuidedCDError(f"{name} has {info.file_size:,} bytes; at most {LARGEST:,} are read.")
                text = archive.read(info).decode("utf-8-sig")
                if not name.endswith(".json") or isinstance(parse_json(text, name), dict):
                    count += 1
                    yield name, text
    except OSError as error:
        raise unreadable(error, path) from None
    except UnicodeDecodeError:
        raise GuidedCDError(f"a file in {path} is no UTF-8 text.") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise GuidedCDError(f"{path} cannot be read as a zip archive: {error}.") from None
    if not count:
        raise GuidedCDError(f"{path} contains no results of {suite.title} ({' or '.join(suite.patterns)}).")


def _add(results: Results, suite: Suite, file: str, content: Mapping[str, Any], percent: bool) -> None:
    """Add the values of one file."""
    dimensions = {dimension.name for dimension in suite.dimensions}
    scores = {name: score.name for score in suite.scores for name in (score.name, *score.aliases)}
    spelled: dict[str, str] = {}
    results.sources.append(file)
    for written, entry in content.items():
        name = dimension_name(written)
        if name in scores and name not in dimensions:
            if is_number(entry):
                results.stated[scores[name]] = float(entry) / (100 if percent else 1)
            continue
        if name not in dimensions:
            results.unknown[written] = file
            continue
        if name in spelled:
            raise GuidedCDError(f"{file} has '{spelled[name]}' and '{written}', which are the same dimension.")
        spelled[name] = written
        value, videos = _value(entry, f"{file}: {written}")
        results.values[name], results.files[name] = value / (100 if percent else 1), file
        results.counts.pop(name, None)
        if videos is not None:
            results.counts[name] = videos


def _value(entry: Any, where: str) -> tuple[float, int | None]:
    """The value of a dimension, and the number of its videos where they are listed.

    Raises:
        GuidedCDError: It is no finite number.
    """
    value, videos = entry, None
    if isinstance(entry, list):
        value = entry[0] if entry else None
        videos = len(entry[1]) if len(entry) > 1 and isinstance(entry[1], list) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GuidedCDError(f"{where} is {shown(value)} and no number. Remove it, or evaluate this dimension again.")
    if not is_number(value):
        text = "NaN" if value != value else "infinite"
        raise GuidedCDError(f"{where} is {text}: no video was scored. Evaluate this dimension again, or remove it.")
    return float(value), videos


def _check_ranges(results: Results, suite: Suite, percent: bool) -> None:
    """Compare all values with the ranges of their dimensions.

    Raises:
        GuidedCDError: One is out of range; a value that fits as a percentage is described as such.
    """
    outside = [
        dimension
        for dimension in suite.dimensions
        if dimension.name in results.values and not dimension.low <= results.values[dimension.name] <= dimension.high
    ]
    if not outside:
        return
    first = outside[0]
    value, file = results.values[first.name], results.files[first.name]
    are_percent = not percent and all(_fits_as_percent(one, results.values[one.name]) for one in outside)
    if are_percent and len(outside) > len(results.values) / 2:
        raise GuidedCDError(
            f"{file}: the values are percent ({first.name} is {value:g}), but fractions are expected. "
            "Add --percent, or divide them by 100."
        )
    factor = 100 if percent else 1
    text = f"{file}: {first.name} is {value * factor:g}, outside of its range of {_range(first, factor)}."
    if are_percent:
        text += " It looks like a percentage among fractions: divide it by 100."
    raise GuidedCDError(text)


def _fits_as_percent(dimension: Dimension, value: float) -> bool:
    return value > max(1.0, dimension.high) and dimension.low <= value / 100 <= dimension.high


def _range(dimension: Dimension, factor: int) -> str:
    return f"{dimension.low * factor:g} to {dimension.high * factor:g}"


def dimension_name(written: str) -> str:
    """The name of a dimension as suites list it; results also have spaces in place of underscores."""
    return written.strip().replace(" ", "_")


def described_unknown(results: Results, suite: Suite) -> list[dict[str, str]]:
    """For each name that is no dimension: the name, its file, and what it may be."""
    described = []
    names = [dimension.name for dimension in suite.dimensions]
    for written, file in results.unknown.items():
        other = next((title for title, listed in suite.other_versions.items() if _is_of(written, listed)), None)
        hint = f" It is a dimension of {other}." if other else suggest(dimension_name(written), names)
        described.append({"name": written, "file": file, "hint": hint.strip()})
    return described


def _is_of(written: str, names: Sequence[str]) -> bool:
    return dimension_name(written).lower() in {dimension_name(name).lower() for name in names}
