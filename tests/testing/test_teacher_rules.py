"""Each rule of teachers finds a teacher that breaks it, and a right teacher breaks none."""

from __future__ import annotations

import itertools
import types
from unittest import SkipTest

import pytest
import torch

from guidedcd.testing import teachers
from guidedcd.testing.rules import RULES
from guidedcd.testing.tiny_teacher import tiny_teacher

RIGHT = tiny_teacher()


def broken(**members):
    """The tiny teacher with other members."""
    teacher = tiny_teacher()
    for name, value in members.items():
        object.__setattr__(teacher, name, types.MethodType(value, teacher) if callable(value) else value)
    return teacher


def detached(self, z, frames=None):
    with torch.no_grad():
        return RIGHT.decode(z, frames)


def seen_of(**change):
    def seen(self, z, t, cond, needs=(), captions=()):
        output = RIGHT.seen(z, t, cond, needs, captions)
        for name, value in change.items():
            object.__setattr__(output, name, value(output))
        return output

    return seen


def backwards():
    teacher = tiny_teacher()
    teacher.schedule.alpha, teacher.schedule.sigma = teacher.schedule.sigma, teacher.schedule.alpha
    return teacher


def without_time():
    teacher = tiny_teacher()
    teacher.network.time_embedding = torch.nn.Identity()
    return teacher


def ignores_network(self, z, t, cond, timestep_cond=None, network=None):
    return RIGHT.net(z, t, cond) if network is None else 2 * RIGHT.net(z, t, cond)


numbers = itertools.count()

WRONG = {
    "teacher_keeps_its_shapes": lambda: broken(decode=lambda self, z, frames=None: 2 * RIGHT.decode(z, frames)),
    "teacher_has_one_fingerprint": lambda: broken(fingerprint=lambda self: f"digest {next(numbers)}"),
    "teacher_keeps_its_fingerprint": lambda: broken(
        fingerprint=lambda self: str(float(next(self.network.parameters()).sum()))
    ),
    "teacher_decodes_chosen_frames": lambda: broken(
        decode=lambda self, z, frames=None: RIGHT.decode(z, None if frames is None else [0] * len(frames))
    ),
    "teacher_decodes_with_a_gradient": lambda: broken(decode=detached),
    "teacher_has_a_time_convention": backwards,
    "teacher_treats_rows_alone": lambda: broken(
        net=lambda self, z, t, cond, *a, **k: RIGHT.net(z - z.mean(0), t, cond, *a, **k)
    ),
    "teacher_has_an_empty_caption": lambda: broken(null=lambda self, batch: RIGHT.embed(["nothing"] * batch)),
    "teacher_sees_what_it_predicts": lambda: broken(seen=seen_of(output=lambda one: one.output.detach())),
    "student_can_be_made": without_time,
    "student_equals_teacher_at_first": lambda: broken(net=ignores_network),
    "student_takes_adapters": lambda: broken(net=ignores_network),
}


@pytest.mark.parametrize(("rule", "make"), WRONG.items(), ids=WRONG)
def test_a_wrong_teacher_is_caught(rule, make):
    """The rule fails with a sentence."""
    with pytest.raises(AssertionError, match=" "):
        getattr(teachers, rule)(types.SimpleNamespace(built=make()))


def test_a_network_without_configuration_is_named():
    """Its students cannot be exported, which is no fault of the teacher."""
    teacher = broken(network=torch.nn.Linear(1, 1))

    with pytest.raises(SkipTest, match="students cannot be exported"):
        teachers.teacher_can_be_exported(types.SimpleNamespace(built=teacher))


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_has_a_broken_plugin(kind, repository):
    """A rule that no test breaks may never fail."""
    folders = (repository / "tests" / "testing", repository / "tests" / "plugins")
    code = "".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("test_*.py"))

    assert [rule.__name__ for rule in RULES[kind] if rule.__name__ not in code] == []


def test_an_unknown_kind_of_prediction_is_caught():
    """The kind of prediction must be one that the engine supports."""
    teacher = tiny_teacher()
    teacher.schedule.prediction = "score"

    with pytest.raises(AssertionError, match="schedule.prediction is 'score'"):
        teachers.teacher_states_its_prediction(types.SimpleNamespace(built=teacher))


@pytest.mark.parametrize("rule", teachers.RULES, ids=lambda rule: rule.__name__)
def test_the_tiny_teacher_conforms(rule):
    """A teacher of diffusers' classes breaks no rule."""
    rule(types.SimpleNamespace(built=RIGHT))
