"""Published files: the cache, the Hugging Face hub, and a fast check whether the hub can be reached."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from guidedcd.errors import GuidedCDError


def why_not() -> str:
    """The reason why the hub cannot be reached, or "".

    If its host is unknown, the hub's libraries use only their cache from then on.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off by HF_HUB_OFFLINE"
    if urllib.request.getproxies():  # the proxy knows more names than this machine
        return ""
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        return f"{host} cannot be reached"
    return ""


def missing(path: str | Path) -> str:
    """The reason why `path` is missing, if it is no folder and the hub cannot be reached; otherwise ""."""
    if Path(path).exists():
        return ""
    reason = why_not()
    return f"there is no such folder, and {reason}" if reason else ""


def snapshot(repo: str, patterns: Sequence[str], **options: Any) -> tuple[Path | None, str]:
    """The folder with these files of a repository, downloaded where the cache lacks them; else None and the reason.

    Args:
        repo: Name on the hub.
        patterns: Names of files, with wildcards.
        options: Further arguments of `snapshot_download`.
    """
    from huggingface_hub import snapshot_download

    reason = why_not()
    try:  # offline, it finds what is in the hub's cache, whether or not that is complete
        path = snapshot_download(repo, allow_patterns=list(patterns), local_files_only=bool(reason), **options)
        return Path(path), ""
    except Exception as error:  # whatever went wrong on the way, the remedy is the same
        return None, reason or f"downloading failed ({type(error).__name__})"


COMMON = ("model.safetensors", "vocab.txt")
"""Names that many models share; such files are searched in the model's own folder of the cache only."""


@attrs.frozen(kw_only=True)
class Published:
    """A file on the Hugging Face hub, and other folders where it may be."""

    repo: str
    files: tuple[str, ...]
    """Names of equivalent files, the preferred one first."""
    size: str
    """For messages, for example "2.0 GB"."""
    folders: tuple[str, ...] = ()
    """Other usual folders, "~" allowed."""
    note: str = ""
    """An instruction that precedes the download."""


def cache_folder() -> Path:
    """The folder that is searched first: GUIDEDCD_CACHE, or ~/.cache/guidedcd."""
    return Path(os.environ.get("GUIDEDCD_CACHE") or "~/.cache/guidedcd").expanduser()


def own_folder(published: Published) -> Path:
    """The model's own folder in the cache, since files of different models may have the same name."""
    return cache_folder() / published.repo.rpartition("/")[2]


def find(path: str, published: Published, what: str) -> Path:
    """The file that a component's option `path` selects.

    "auto" searches the model's own folder of the cache, the cache itself, the model's usual folders and the hub's
    cache, then downloads.

    Args:
        path: "auto" or a file.
        published: The published file.
        what: Name of the component, for errors.

    Raises:
        GuidedCDError: There is no such file; the message states how to get it.
    """
    if path != "auto":
        file = Path(path).expanduser()
        if not file.is_file():
            raise GuidedCDError(f"{what}: there is no file {path}. {advice(published)}; then `auto` finds it.")
        return file
    folders = [own_folder(published), *(Path(folder).expanduser() for folder in published.folders)]
    if published.files[0] not in COMMON:
        folders.insert(1, cache_folder())
    for candidate in (folder / name for folder in folders for name in published.files):
        if candidate.is_file():
            return candidate
    return _from_hub(published, what)


def advice(published: Published) -> str:
    """The instruction to get a published file: one sentence without its full stop."""
    name = published.files[0]
    return (
        f"To get {name} ({published.size}, published by {published.repo} on huggingface.co): {published.note}"
        f"hf download {published.repo} {name} --local-dir {own_folder(published)}"
    )


def _from_hub(published: Published, what: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for name in published.files:
        cached = try_to_load_from_cache(published.repo, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = why_not()
    if not reason:
        for name in published.files:
            try:
                return Path(hf_hub_download(published.repo, name))
            except Exception as error:  # whatever went wrong on the way, the remedy is the same
                reason = f"downloading failed ({type(error).__name__})"
    raise GuidedCDError(f"{what}: {published.files[0]} is not on this machine and {reason}. {advice(published)}.")
