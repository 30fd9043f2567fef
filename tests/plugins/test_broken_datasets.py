"""Datasets that are wrong in one way each: what a run states about them, and the check of the kit that fails."""

from __future__ import annotations

import pytest
from toy_plugin import make

from guidedcd.config.kinds import Chosen
from guidedcd.data.clips import ClipError
from guidedcd.data.contract import opened
from guidedcd.data.geometry import Geometry
from guidedcd.data.mixture import Mixture
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks

pytestmark = pytest.mark.slow

PLUGIN = """
import itertools, torch
from guidedcd import Clip, ClipError, DatasetConfig, hookimpl

class Odd:
    count = 3
    def __init__(self, config): {init}
    def open(self, geometry):
        {open}
    def __len__(self): return self.count
    def __getitem__(self, number):
        if number >= self.count: raise IndexError(number)
        {body}
    def clip(self, number, **changes):
        video = torch.full(self.geometry.pixel_shape, number / 10)
        members = dict(id=f"clip-{{number}}", dataset="odd", caption=f"clip {{number}}", video=video)
        return Clip(**(members | changes))

@hookimpl
def register_datasets(register): register("odd", "acme_odd:Odd", config=DatasetConfig)
"""
OPEN = "self.geometry = geometry; return self"
GEOMETRY = Geometry(frames=2, height=8, width=8, fps=8, compression=2)
CLIPS = {
    "no clip": ("return number", "clip 0 is a int; it must be a guidedcd.Clip"),
    "a dict": ("return {'id': 'x'}", "clip 0 is a dict"),
    "too many frames": (
        "return self.clip(number, video=torch.zeros(9, 3, 8, 8))",
        r"clip 0 has a video of shape \(9, 3, 8, 8\); this teacher needs \(2, 3, 8, 8\)",
    ),
    "another size": ("return self.clip(number, video=torch.zeros(2, 3, 4, 4))", "has a video of shape"),
    "pixels up to 255": ("return self.clip(number, video=torch.full((2, 3, 8, 8), 255.))", "pixels from 255 to 255"),
    "negative pixels": ("return self.clip(number, video=torch.full((2, 3, 8, 8), -1.))", r"must lie in \[0, 1\]"),
    "one id for all clips": ("return self.clip(number, id='same')", "clips 0 and 1 have the same id 'same'"),
    "no id": ("return self.clip(number, id='')", "has the id ''; it must be a text"),
    "a number as id": ("return self.clip(number, id=number)", "has the id 0; it must be a text"),
    "no caption": ("return self.clip(number, caption=None)", "has a caption of type NoneType"),
    "a number as short caption": ("return self.clip(number, short_caption=3)", "short_caption of type int"),
    "tags that are no JSON": ("return self.clip(number, tags={'x': torch.zeros(1)})", "tags that are no JSON values"),
}
SKIPPED = {
    "pixels that are not finite": (
        "return self.clip(number, video=torch.full((2, 3, 8, 8), float('nan')))",
        "not finite",
    ),
    "whole numbers as pixels": (
        "return self.clip(number, video=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))",
        "a video must be floats",
    ),
    "a file that cannot be read": ("raise ClipError('no video stream')", "no video stream"),
}
OPENING = {
    "returns nothing": ("return None", "open returned NoneType; it must return a sequence"),
    "returns a generator": ("return (self.clip(n) for n in range(3))", "open returned generator"),
}


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


def read(install, *, body="return self.clip(number)", open_=OPEN, init="..."):
    """Read all clips of the plugin's dataset as a run does."""
    install("acme-odd", PLUGIN.format(body=body, open=open_, init=init))
    chosen = Chosen("odd", load_plugins().get("dataset", "odd").config())
    return Mixture([("odd", opened(chosen, GEOMETRY))], [1.0], 3).read(range(3))


@pytest.mark.parametrize(("body", "message"), CLIPS.values(), ids=CLIPS)
def test_a_wrong_clip_is_an_error_of_its_dataset(install, body, message):
    """One sentence names the dataset, its plugin and the number of the clip."""
    with pytest.raises(GuidedCDError, match=f"^dataset 'odd' of acme-odd/acme_odd: .*{message}") as caught:
        read(install, body=body)

    assert not isinstance(caught.value, ClipError)


@pytest.mark.parametrize(("body", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_a_damaged_clip_is_skipped(install, body, reason):
    """The reason is recorded."""
    clips, skipped = read(install, body=body)

    assert not clips and [entry["id"] for entry in skipped] == ["odd/0", "odd/1", "odd/2"]
    assert all(reason in entry["reason"] for entry in skipped)


@pytest.mark.parametrize(("code", "message"), OPENING.values(), ids=OPENING)
def test_what_is_no_sequence_is_refused_when_it_is_opened(install, code, message):
    """The number of clips is needed before the first one is read."""
    with pytest.raises(GuidedCDError, match=f"^dataset 'odd' of acme-odd/acme_odd: {message}"):
        read(install, open_=code)


def test_an_exception_names_the_dataset(install):
    """A bug keeps its type."""
    with pytest.raises(KeyError) as caught:
        read(install, body="return {}['absent']")

    assert caught.value.__notes__ == ["in dataset 'odd' of acme-odd/acme_odd"]


def test_a_dataset_without_open_is_refused(install):
    """The method that every dataset needs."""
    install("acme-odd", PLUGIN.format(body="return 1", open=OPEN, init="...").replace("def open", "def opened"))
    chosen = Chosen("odd", load_plugins().get("dataset", "odd").config())

    with pytest.raises(GuidedCDError, match=r"has no method `open\(geometry\)`"):
        opened(chosen, GEOMETRY)


def test_the_toy_dataset_is_read(toy):
    """A right dataset passes; each clip may be read again."""
    clips = opened(make().data[0], GEOMETRY)

    assert clips[0].id == clips[0].id and len(clips) == 50


KIT = {
    "empty": ("", "", "self.count = 0", "dataset_yields_clips", "the dataset is empty"),
    "wrong size": (
        "return self.clip(number, video=torch.zeros(2, 3, 8, 8))",
        "",
        "...",
        "dataset_yields_clips",
        "clip 0 has a video of shape",
    ),
    "random pixels": (
        "return self.clip(number, video=torch.rand(self.geometry.pixel_shape, generator=self.random))",
        "",
        "self.random = torch.Generator()",
        "dataset_keeps_its_clips",
        "twice gives different clips",
    ),
    "other clips in another process": (
        "return self.clip(number, caption=f'clip {self.serial}')",
        "",
        "self.serial = next(numbers)",
        "dataset_keeps_its_clips",
        "built again gives another clip",
    ),
    "no end": ("", "if number >= self.count: raise IndexError(number)", "...", "dataset_ends", "raise IndexError"),
    "state in self": (
        "import time; self.number = number; time.sleep(0.02); return self.clip(self.number)",
        "",
        "...",
        "dataset_is_safe_in_threads",
        "keep no state in self",
    ),
    "metadata of another clip": (
        "",
        "",
        "from guidedcd import Sample; "
        "self.sample = lambda number: Sample(id=f'clip-{number}', dataset='odd', caption='a ball')",
        "dataset_describes_its_clips",
        r"sample\(0\) has the caption 'a ball', and the clip has 'clip 0'",
    ),
    "metadata that is no sample": (
        "",
        "",
        "self.sample = lambda number: {'id': f'clip-{number}'}",
        "dataset_describes_its_clips",
        r"sample\(0\) returned dict; it must return a guidedcd.Sample",
    ),
}


@pytest.mark.parametrize(("body", "removed", "init", "rule", "message"), KIT.values(), ids=KIT)
def test_the_kit_finds_the_fault(install, body, removed, init, rule, message):
    """One check fails with a sentence."""
    code = PLUGIN.format(body=body or "return self.clip(number)", open=OPEN, init=init).replace(removed or "\0", "")
    install("acme-odd", code.replace("\nclass Odd:", "\nnumbers = itertools.count()\nclass Odd:"))
    (check,) = [check for check in checks("dataset", "odd") if check.rule.__name__ == rule]

    with pytest.raises(AssertionError, match=message):
        check()


def test_a_right_dataset_breaks_no_rule(install):
    """The plugin without a fault passes all rules of its kind."""
    install("acme-odd", PLUGIN.format(body="return self.clip(number)", open=OPEN, init="..."))

    for check in checks("dataset", "odd")[1:]:
        check()
