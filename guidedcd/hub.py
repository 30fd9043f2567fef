"""Whether the Hugging Face hub can be asked: without a network that is said at once, not after a minute of retries."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit


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
