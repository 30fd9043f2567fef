"""Attributes that a component may have beside what its kind requires. No torch.

The engine looks each of them up by name and does without where a component has none.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn


class OptionalTeacher(Protocol):
    """What a teacher may offer."""

    vae: nn.Module
    """The decoder, which training moves to its own precision."""
    text: nn.Module
    """The text encoder, which leaves memory where training embeds no prompts."""
    tails: bool
    """Whether the teacher can compute the tail of a pass alone; the base class states what that means."""
    base_model: str
    """Name of the released model, for an exported student's card."""

    def prompts(self, split: str, count: int) -> Sequence[Any]:
        """Prompts for an evaluation, of the split "motion" or "no-motion"."""

    def training_prompts(self, count: int) -> Iterable[Any]:
        """Prompts for videos that the student generates during training."""

    def card(self) -> Sequence[Mapping[str, Any]]:
        """Rows of published scores: label, steps, evaluations, omega, solver, scores."""


class OptionalEnergy(Protocol):
    """What an energy may offer."""

    records_only: bool
    """Whether the energy reads recorded activations alone, and no prediction."""


class OptionalReward(Protocol):
    """What a reward may offer."""

    def use_graphs(self) -> None:
        """Replay the reward's network as a CUDA graph."""


class OptionalMetric(Protocol):
    """What a metric may offer."""

    titles: Mapping[str, str]
    """Heading of each value in tables, by key."""
    better: Mapping[str, str]
    """Whether a higher or a lower value is better, by key."""
    headline: str
    """Key of the value that summaries show."""

    def applies(self, prompt: Any) -> bool:
        """Whether the metric can judge a video of this prompt."""


OPTIONAL: dict[str, type] = {
    "energy": OptionalEnergy,
    "reward": OptionalReward,
    "teacher": OptionalTeacher,
    "metric": OptionalMetric,
}
"""By kind."""


def names(kind: str) -> tuple[str, ...]:
    """The optional attributes of a kind of component."""
    protocol = OPTIONAL.get(kind)
    if protocol is None:
        return ()
    members = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
    return tuple(name for name in members if not name.startswith("_"))


def misspelt(kind: str, component: Any) -> dict[str, str]:
    """Public attributes of the class that nearly match an optional one, each with that one's name.

    Attributes of the base classes of this package and of torch are left out.
    """
    optional = names(kind)
    bases = [cls for cls in type(component).__mro__ if cls.__module__.split(".")[0] in _BASES]
    classes = [cls for cls in type(component).__mro__ if cls not in bases]
    attributes = dict.fromkeys(name for cls in classes for name in vars(cls))
    matches = {
        name: difflib.get_close_matches(name, optional, n=1, cutoff=0.8)
        for name in attributes
        if not name.startswith("_") and name not in optional and not any(name in vars(cls) for cls in bases)
    }
    return {name: match[0] for name, match in matches.items() if match}


_BASES = ("guidedcd", "torch", "builtins")
