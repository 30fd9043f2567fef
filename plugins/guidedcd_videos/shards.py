"""Tar shards with random access: where every member lies is found once, from the headers alone."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from guidedcd.data.clips import ClipError
from guidedcd.errors import GuidedCDError
from guidedcd_videos.listings import SUFFIXES, Listed, Listing, described

BLOCK = tarfile.BLOCKSIZE

Place = tuple[int, int]
"""Where a member's bytes begin, and how many they are."""


def members(path: Path) -> tuple[list[tuple[str, Place]], str]:
    """Names and places of the files in an uncompressed tar, and what is wrong with it, if anything.

    A damaged archive yields what comes before the damage.
    """
    found: list[tuple[str, Place]] = []
    end, size = 0, path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isreg() and member.offset_data + member.size <= size:  # a cut one would be read short
                    found.append((member.name, (member.offset_data, member.size)))
                archive.members = []  # a listing of millions would stay in memory
    except (tarfile.TarError, EOFError, ValueError) as error:
        return found, f"damaged after {len(found)} members ({error})"
    with open(path, "rb") as handle:
        handle.seek(end)
        rest = handle.read(BLOCK)
    # tarfile ends in silence at a header it cannot read; a sound archive ends in zeros, or right there.
    return found, f"damaged after {len(found)} members" if rest.strip(b"\0") else ""


def split(name: str) -> tuple[str, str]:
    """A member's key and kind as WebDataset has it: "a/0001.mp4" is ("a/0001", ".mp4"), cut at the first dot."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, kind = file.partition(".")
    return folder + slash + stem, (dot + kind).lower()


class Shards(Listing):
    """The samples of some tar files, in the order of the files and of their members."""

    def __init__(self, files: Sequence[tuple[str, Path]], caption: Sequence[str]) -> None:
        """Index the shards, (name, path) each."""
        self._files, self._caption = files, caption
        self._samples: list[tuple[int, str, dict[str, Place] | str]] = []
        for number, (_, path) in enumerate(files):
            grouped: dict[str, dict[str, Place]] = {}
            try:
                found, wrong = members(path)
            except OSError as error:
                found, wrong = [], f"cannot be read ({error.strerror})"
            for name, place in found:
                key, kind = split(name)
                if not key.rpartition("/")[2].startswith("_") and kind:
                    grouped.setdefault(key, {})[kind] = place
            self._samples += [(number, key, kinds) for key, kinds in grouped.items()]
            if wrong:
                self._samples.append((number, "", wrong))

    def __len__(self) -> int:
        """How many samples, and one more for each damaged shard."""
        return len(self._samples)

    def key(self, place: int) -> str:
        """Shard and key, or the shard alone for what is lost of it."""
        number, key, _ = self._samples[place]
        return f"{self._files[number][0]}/{key}".rstrip("/")

    def __getitem__(self, place: int) -> Listed:
        """Sample `place`; its text is read, its video is not."""
        number, _, kinds = self._samples[place]
        if isinstance(kinds, str):
            raise ClipError(f"the shard is {kinds}; what followed is lost")
        path = self._files[number][1]
        video = next((kinds[suffix] for suffix in SUFFIXES if suffix in kinds), None)
        if video is None:
            raise ClipError(f"has no video, only {', '.join(kinds)}")
        about = self._json(path, kinds)
        if ".txt" in kinds:
            about = {**about, self._caption[0]: self._text(path, kinds[".txt"])}
        return described(about, self._caption, lambda: read(path, video), ("key", "url", "status", "error_message"))

    def _json(self, path: Path, kinds: dict[str, Place]) -> dict:
        if ".json" not in kinds:
            return {}
        try:
            found = json.loads(self._text(path, kinds[".json"]))
        except (ValueError, RecursionError) as error:
            raise ClipError(f"its .json is damaged ({error})") from None
        if not isinstance(found, dict):
            raise ClipError("its .json is no object")
        return found

    @staticmethod
    def _text(path: Path, place: Place) -> str:
        try:
            return read(path, place).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ClipError("its text is not UTF-8") from None


def read(path: Path, place: Place) -> bytes:
    """The bytes of one member.

    Raises:
        ClipError: The shard ends before they do.
    """
    offset, size = place
    with open(path, "rb") as handle:
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
    found = sorted(path.rglob("*.tar"), key=lambda file: file.relative_to(path).as_posix())
    if not found:
        packed = next((f.name for f in path.rglob("*.tar.*") if f.suffix in (".gz", ".bz2", ".xz", ".zst")), "")
        more = f" {packed} is compressed: unpack it to .tar first." if packed else ""
        raise GuidedCDError(f"dataset 'webdataset': there is no .tar file in {path}.{more}")
    return [(file.relative_to(path).as_posix().removesuffix(".tar"), file) for file in found]
