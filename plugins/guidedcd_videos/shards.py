"""Tar shards with random access: the members are located once, by reading the headers only."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedcd.data.clips import ClipError
from guidedcd.documents import open_regular
from guidedcd.errors import GuidedCDError
from guidedcd_videos.listings import SUFFIXES, Listed, Listing, entry_of

BLOCK = tarfile.BLOCKSIZE

Extent = tuple[int, int]
"""Offset and size of a member's content, in bytes."""


def members(path: Path) -> tuple[list[tuple[str, Extent]], str]:
    """Names and extents of the files in an uncompressed tar, and a description of its damage, empty if there is none.

    Of a damaged archive, the members before the damage are returned.
    """
    files: list[tuple[str, Extent]] = []
    end, size = 0, path.stat().st_size
    try:
        with open_regular(path) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
            while (member := archive.next()) is not None:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isreg() and member.offset_data + member.size <= size:  # a cut one would be read short
                    files.append((member.name, (member.offset_data, member.size)))
                archive.members = []  # type: ignore[attr-defined]  # undocumented; saves memory
    except (tarfile.TarError, EOFError, ValueError) as error:
        return files, f"damaged after {len(files)} members ({error})"
    with open_regular(path) as handle:
        handle.seek(end)
        rest = handle.read(BLOCK)
    # tarfile stops without an error at a header that it cannot read; an intact archive ends in zeros, or right there.
    return files, f"damaged after {len(files)} members" if rest.strip(b"\0") else ""


def split(name: str) -> tuple[str, str]:
    """Key and kind of a member by WebDataset's rule, split at the first dot: "a/0001.mp4" gives ("a/0001", ".mp4")."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, kind = file.partition(".")
    return folder + slash + stem, (dot + kind).lower()


class Shards(Listing):
    """The samples of some tar files, in the order of the files and of their members."""

    def __init__(self, files: Sequence[tuple[str, Path]], caption: Sequence[str]) -> None:
        """Index the shards, (name, path) each."""
        self._files, self._caption = files, caption
        self._samples: list[tuple[int, str, dict[str, Extent] | str]] = []
        for number, (_, path) in enumerate(files):
            grouped: dict[str, dict[str, Extent]] = {}
            try:
                files_in_shard, damage = members(path)
            except OSError as error:
                files_in_shard, damage = [], f"cannot be read ({error.strerror})"
            for name, extent in files_in_shard:
                key, kind = split(name)
                if not key.rpartition("/")[2].startswith("_") and kind:
                    grouped.setdefault(key, {})[kind] = extent
            self._samples += [(number, key, kinds) for key, kinds in grouped.items()]
            if damage:
                self._samples.append((number, "", damage))

    def __len__(self) -> int:
        """How many samples, and one more for each damaged shard."""
        return len(self._samples)

    def key(self, index: int) -> str:
        """Shard and key, or only the shard for its lost samples."""
        number, key, _ = self._samples[index]
        return f"{self._files[number][0]}/{key}".rstrip("/")

    def read(self, index: int) -> Listed:
        """The entry of sample `index`; reads its text, but not its video."""
        number, _, kinds = self._samples[index]
        if isinstance(kinds, str):
            raise ClipError(f"the shard is {kinds}; what followed is lost")
        path = self._files[number][1]
        video = next((kinds[suffix] for suffix in SUFFIXES if suffix in kinds), None)
        if video is None:
            raise ClipError(f"has no video, only {', '.join(kinds)}")
        metadata = self._json(path, kinds)
        if ".txt" in kinds:
            metadata = {**metadata, self._caption[0]: self._text(path, kinds[".txt"])}
        return entry_of(
            metadata, self._caption, lambda: content_of(path, video), ("key", "url", "status", "error_message")
        )

    def _json(self, path: Path, kinds: dict[str, Extent]) -> dict[str, Any]:
        if ".json" not in kinds:
            return {}
        try:
            metadata = json.loads(self._text(path, kinds[".json"]))
        except (ValueError, RecursionError) as error:
            raise ClipError(f"its .json is damaged ({error})") from None
        if not isinstance(metadata, dict):
            raise ClipError("its .json is no object")
        return metadata

    @staticmethod
    def _text(path: Path, extent: Extent) -> str:
        try:
            return content_of(path, extent).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ClipError("its text is not UTF-8") from None


def content_of(path: Path, extent: Extent) -> bytes:
    """The content of one member.

    Raises:
        ClipError: The shard ends before it does.
    """
    offset, size = extent
    with open_regular(path) as handle:
        handle.seek(offset)
        content = handle.read(size)
    if len(content) < size:
        raise ClipError(f"cut off: {len(content)} of {size} bytes are in the shard")
    return content


def shard_files(path: Path) -> list[tuple[str, Path]]:
    """The shards of a data set, (name without .tar, file) each, sorted by name.

    Raises:
        GuidedCDError: There is none, or they are compressed.
    """
    if path.is_file():
        return [(path.name.removesuffix(".tar"), path)]
    files = sorted(path.rglob("*.tar"), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        compressed = next((f.name for f in path.rglob("*.tar.*") if f.suffix in (".gz", ".bz2", ".xz", ".zst")), "")
        hint = f" {compressed} is compressed: unpack it to .tar first." if compressed else ""
        raise GuidedCDError(f"dataset 'webdataset': there is no .tar file in {path}.{hint}")
    return [(file.relative_to(path).as_posix().removesuffix(".tar"), file) for file in files]
