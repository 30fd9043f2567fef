"""Components outside of a run: those of a teacher, with the options of the profile that is made for it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from guidedcd.config.from_python import evaluation_of
from guidedcd.config.kinds import DEFAULT_PROFILE, KINDS, Chosen
from guidedcd.config.merge import components_of
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.sources import Layer, read_profile
from guidedcd.config.structure import structure
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


@attrs.frozen(kw_only=True)
class Selection:
    """A teacher, and the components that are chosen for it."""

    teacher: Chosen
    data: tuple[Chosen, ...]
    energies: tuple[Chosen, ...]
    rewards: tuple[Chosen, ...]
    routes: tuple[Chosen, ...]
    metrics: tuple[Chosen, ...]
    evaluate: EvaluateConfig
    """Its `teacher_steps` and `omega` are the defaults of sampling."""
    registry: Registry = attrs.field(repr=False)

    def chosen(self, kind: str) -> tuple[Chosen, ...]:
        """The components of one kind, such as "energy", but the teacher."""
        return getattr(self, next(key for key, value in KINDS.items() if value == kind))

    def one(self, kind: str) -> Chosen:
        """The component that is tried: the only one of its kind.

        Raises:
            GuidedCDError: There are several or none.
        """
        components = self.chosen(kind)
        if len(components) != 1:
            raise GuidedCDError(f"one {kind} is tried at a time, not {len(components)}.")
        return components[0]


def select(layers: Sequence[Layer], registry: Registry, profile: str | None = None) -> Selection:
    """The components that `layers` choose.

    Args:
        layers: Flags or a program's own description, later ones winning.
        registry: The installed plugins.
        profile: Whose choices and options lie below; by default those of the default profile, if its teacher is the
            chosen one. The options of a profile suit its own teacher.

    Raises:
        GuidedCDError: A name, option or value that does not exist, or no teacher.
    """
    below = read_profile(profile or DEFAULT_PROFILE)
    teachers = [layer.select["teacher"] for layer in layers if layer.select.get("teacher")]
    if profile is None and teachers and [name for name, _, _ in teachers[-1]] != _names(below, "teacher"):
        below = Layer()
    layers = [below, *layers]
    chosen = {key: tuple(components_of(key, layers, registry)) for key in KINDS}
    if len(chosen["teacher"]) != 1:
        raise GuidedCDError("one teacher is needed. Use --teacher NAME[:VALUE].")
    if below.sections:
        evaluate = structure(EvaluateConfig, below.sections.get("evaluate", {}), "[evaluate]")
    else:
        evaluate = evaluation_of(chosen["teacher"][0].name)
    return Selection(
        teacher=chosen["teacher"][0],
        **{key: chosen[key] for key in KINDS if key != "teacher"},
        evaluate=evaluate,
        registry=registry,
    )


def _names(layer: Layer, key: str) -> list[str]:
    return [name for name, _, _ in layer.select.get(key, [])]
