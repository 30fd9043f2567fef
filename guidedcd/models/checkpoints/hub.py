"""Whether the Hugging Face hub can be asked: without a network that is said at once, not after a minute of retries."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import hub


def why_not() -> str:
    """Why the hub cannot be asked, or nothing. From then on its libraries do not try: they look in their cache only."""
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
    """Why something that cannot be read may be missing, where it is no folder and the hub cannot be asked."""
    if Path(path).exists():
        return ""
    reason = why_not()
    return f"there is no such folder, and {reason}" if reason else ""


COMMON = ("model.safetensors", "vocab.txt")
"""Names that say nothing about the model: looked for in the model's own folder of the cache only."""


@attrs.frozen(kw_only=True)
class Published:
    """A file on the Hugging Face hub, and where else it may already be."""

    repo: str
    files: tuple[str, ...]
    """Names of equivalent files, the preferred one first."""
    size: str
    """For messages, for example "2.0 GB"."""
    places: tuple[str, ...] = ()
    """Other folders where people have it, "~" allowed."""
    note: str = ""
    """What must be done before downloading."""


def cache_folder() -> Path:
    """Where files are looked for first: GUIDEDCD_CACHE, or ~/.cache/guidedcd."""
    return Path(os.environ.get("GUIDEDCD_CACHE") or "~/.cache/guidedcd").expanduser()


def own_folder(published: Published) -> Path:
    """This model's folder in the cache: files of different models may have the same name."""
    return cache_folder() / published.repo.rpartition("/")[2]


def find(path: str, published: Published, what: str) -> Path:
    """The file meant by a component's `path` option.

    "auto" looks in the model's own folder of the cache, in the cache itself, in the model's customary places and in the
    hub's cache, then downloads.

    Args:
        path: "auto" or a file.
        published: Where the file comes from.
        what: Whose file it is, for errors.

    Raises:
        GuidedCDError: There is no such file; says how to get it.
    """
    if path != "auto":
        found = Path(path).expanduser()
        if not found.is_file():
            raise GuidedCDError(f"{what}: there is no file {path}. {advice(published)}; then `auto` finds it.")
        return found
    folders = [own_folder(published), *(Path(place).expanduser() for place in published.places)]
    if published.files[0] not in COMMON:
        folders.insert(1, cache_folder())
    for candidate in (folder / name for folder in folders for name in published.files):
        if candidate.is_file():
            return candidate
    return _from_hub(published, what)


def advice(published: Published) -> str:
    """How to get a published file, in one sentence without its full stop."""
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
    reason = hub.why_not()
    if not reason:
        for name in published.files:
            try:
                return Path(hf_hub_download(published.repo, name))
            except Exception as error:  # whatever went wrong on the way, the remedy is the same
                reason = f"downloading failed ({type(error).__name__})"
    raise GuidedCDError(f"{what}: {published.files[0]} is not on this machine and {reason}. {advice(published)}.")
