"""Without a network the error comes at once."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import hub
from guidedcd.models.teachers.unet3d import load_unet3d


@pytest.fixture
def cut_off(monkeypatch):
    """No network: names cannot be resolved, and no proxy does it."""

    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)


def test_an_unreachable_hub_is_contacted_once(cut_off):
    """The reason names the host, and the hub's libraries look in their cache only from then on."""
    assert hub.why_not() == "huggingface.co cannot be reached"
    assert constants.HF_HUB_OFFLINE


def test_a_proxy_resolves_the_hubs_address(cut_off, monkeypatch):
    """Behind a proxy this machine need not resolve the hub's address."""
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})

    assert hub.why_not() == ""


def test_a_missing_teacher_is_an_error_with_its_reason(cut_off, tmp_path):
    """The error of a name that is no folder and cannot be downloaded states both; a faulty folder has its own error."""
    size = {"frames": 2, "height": 8, "width": 8, "fps": 8}
    with pytest.raises(GuidedCDError, match="no such folder, and huggingface.co cannot be reached"):
        load_unet3d("some/model", **size)
    with pytest.raises(GuidedCDError, match="from '.*': (?!there is no such folder)"):
        load_unet3d(tmp_path, **size)
