"""Optional attributes and options of components."""

from __future__ import annotations

from typing import ClassVar

import attrs
import pytest
from torch import nn

from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.plugins.configs import EnergyConfig, RewardConfig, TeacherConfig
from guidedcd.plugins.optional import misspelt_attributes, misspelt_options, names
from guidedcd.plugins.registry import load_plugins


class Metric:
    """A metric whose headline has a wrong name."""

    titles: ClassVar = {"all": "all"}
    head_line = "all"
    window = 3
    _better = "higher"

    def __init__(self) -> None:
        """Set an attribute that is misspelt, too."""
        self.beter = {"all": "higher"}


class Encoder(nn.Module):
    """A text encoder whose method has a wrong name."""

    def save_tokeniser(self) -> None:
        """Do nothing."""


class Teacher(LatentTeacher):
    """A teacher that overrides a method of its base class, whose name is near an optional one."""

    def prompt(self) -> None:
        """Do nothing."""


class OtherTeacher(nn.Module):
    """A teacher without base class that has near names and right ones."""

    prompt, card, texts = None, list, ()

    def __init__(self) -> None:
        """Two submodules, one of them with a near name."""
        super().__init__()
        self.text, self.vea = nn.Identity(), nn.Identity()


@attrs.frozen(kw_only=True)
class Energy(EnergyConfig):
    """Options of an energy, one of them misspelt."""

    fractoin: float = 0.5
    scales: tuple[float, ...] = ()
    fraction_of_frames: float = 0.5


@attrs.frozen(kw_only=True)
class Size(TeacherConfig):
    """Options of a teacher, one of them misspelt."""

    width: int = 8
    hieght: int = 8


def test_a_misspelt_attribute_is_corrected():
    """A near match in the class or in the object is reported; unrelated and private attributes are not."""
    assert misspelt_attributes("metric", Metric()) == {"beter": "better", "head_line": "headline"}
    assert misspelt_attributes("route", Metric()) == {}
    assert misspelt_attributes("text encoder", Encoder()) == {"save_tokeniser": "save_tokenizer"}


def test_attributes_of_base_classes_and_of_present_names_are_no_mistake():
    """`prompt` is a method of `LatentTeacher`; `texts` beside `text` is an attribute of its own."""
    assert misspelt_attributes("teacher", Teacher.__new__(Teacher)) == {}
    assert misspelt_attributes("teacher", OtherTeacher()) == {"prompt": "prompts"}


def test_a_misspelt_option_is_corrected():
    """A near match of an option that the engine reads is reported; a plural and a longer name are not."""
    assert misspelt_options("energy", Energy) == {"fractoin": "fraction"}
    assert misspelt_options("teacher", Size) == {"hieght": "height"}
    assert misspelt_options("reward", RewardConfig) == {}


def test_optional_names_are_those_of_the_protocols():
    """Attributes and methods of a Protocol both count."""
    assert names("metric") == ("titles", "better", "headline", "headlines", "applies", "features", "across")
    assert {"prompts", "arch", "fps", "fps_weights"} <= set(names("teacher")) and names("dataset") == (
        "encoded",
        "fingerprint",
    )
    assert names("text encoder") == ("save_tokenizer",)


@pytest.mark.parametrize("component", load_plugins().components, ids=str)
def test_no_shipped_component_is_misspelt(component):
    """No option and no attribute of a shipped class is a near match of another name."""
    target = component.load()

    assert misspelt_options(component.kind, component.config) == {}
    if isinstance(target, type):
        assert misspelt_attributes(component.kind, target.__new__(target)) == {}


def test_optional_attributes_with_similar_names_are_no_mistakes():
    """An optional attribute of which another is the plural is none of it misspelt."""

    class Metric:
        headline = "x"

    assert misspelt_attributes("metric", Metric()) == {}
