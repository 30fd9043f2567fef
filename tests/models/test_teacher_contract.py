"""Teachers that are wrong in one way each: the run states the fault before anything is computed."""

from __future__ import annotations

import types

import pytest
import torch

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import METHODS, check, check_latents
from guidedcd.testing.tiny_teacher import tiny_teacher

RIGHT = tiny_teacher()
WHOSE = "teacher 'odd' of acme-odd/acme_odd"
MEMBERS = ("network", "geometry", "schedule", *METHODS)


def teacher(**changes):
    """The members of a right teacher, some of them changed; None removes one."""
    members = {name: getattr(RIGHT, name) for name in MEMBERS} | changes
    return types.SimpleNamespace(**{name: value for name, value in members.items() if value is not None})


EMBEDS = {"prompt_embeds": torch.zeros(2, 8, 16)}
WRONG = {
    **{f"no {name}": ({name: None}, f"has no .*`{name}`") for name in MEMBERS},
    "a network that is a function": ({"network": print}, "has no `network` that is a torch.nn.Module"),
    "a geometry of numbers": ({"geometry": (4, 16, 16)}, "has no `geometry`"),
    "an unknown kind of prediction": (
        {"schedule": types.SimpleNamespace(prediction="x0", alpha_sigma=print)},
        "schedule.prediction is 'x0'; it must be one of eps, v, flow",
    ),
    "a number as fingerprint": ({"fingerprint": lambda: 7}, r"fingerprint\(\) returned 7; it must return a text"),
    "an empty fingerprint": ({"fingerprint": lambda: ""}, r"fingerprint\(\) returned ''"),
    "a tensor as conditioning": (
        {"embed": lambda captions: torch.zeros(2, 3)},
        r"embed\(captions\) must return a dict",
    ),
    "conditioning of another name": (
        {"embed": lambda captions: {"text": torch.zeros(2, 3)}},
        "the key 'prompt_embeds'",
    ),
    "conditioning of one caption": (
        {"embed": lambda captions: {"prompt_embeds": torch.zeros(1, 3)}},
        r"embed\(captions\)\['prompt_embeds'\] for two captions is \(1, 3\)",
    ),
    "an empty caption of another size": (
        {"embed": lambda captions: EMBEDS, "null": lambda batch: {"prompt_embeds": torch.zeros(5, 8, 16)}},
        r"null\(batch\)\['prompt_embeds'\]",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_teacher_is_one_sentence(changes, message):
    """It names the teacher, its plugin and the member."""
    with pytest.raises(GuidedCDError, match=f"^{WHOSE}.*{message}"):
        check(teacher(**changes), WHOSE)


def test_the_tiny_teacher_is_accepted():
    """A right teacher passes."""
    check(RIGHT, WHOSE)


def test_an_exception_names_the_teacher():
    """A bug of the text encoder keeps its type."""
    with pytest.raises(KeyError) as caught:
        check(teacher(embed=lambda captions: {}["absent"]), WHOSE)

    assert caught.value.__notes__ == [f"in {WHOSE}"]


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(2, 4, 3, 4, 4), "encode returned .*its geometry states"),
        (torch.full((2, 4, 3, 2, 2), float("nan")), "not finite"),
    ],
    ids=["another shape", "not finite"],
)
def test_latents_have_the_shape_of_the_geometry(z, message):
    """The first shard already states a wrong encoder."""
    geometry = Geometry(frames=3, height=4, width=4, fps=8, compression=2)

    with pytest.raises(GuidedCDError, match=message):
        check_latents(z, geometry, 2)
