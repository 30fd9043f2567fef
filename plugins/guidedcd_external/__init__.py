"""A reward that runs in another environment, with versions of libraries that this one cannot have."""

from __future__ import annotations

import json

import attrs
from attrs.validators import ge, gt, matches_re, optional

from guidedcd import RewardConfig, hookimpl


def _is_object(instance: object, attribute: attrs.Attribute, value: str) -> None:
    try:
        is_object = isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError(f"'{attribute.name}' is {value!r}; it must be a JSON object.")


@attrs.frozen(kw_only=True)
class ExternalConfig(RewardConfig):
    """Options of the reward `external`."""

    function: str = attrs.field(default="", metadata={"positional": "name"})
    """The reward: MODULE:ATTRIBUTE, FILE.py:ATTRIBUTE, or a reward's name if guidedcd is installed there. The attribute
    is a function (frames, captions) -> scores, an object that can be called so, or its class."""
    python: str = ""
    """The Python of the other environment, such as /envs/other/bin/python; it needs torch, and not guidedcd."""
    options: str = attrs.field(default="{}", validator=_is_object)
    """Arguments of the class, or options of the reward of guidedcd, as a JSON object."""
    device: str = attrs.field(default="same", validator=matches_re(r"same|cpu|mps|cuda(:\d+)?"))
    """Where the reward computes there: on the device that the frames have here (`same`), or on this one."""
    max_tokens: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Context length in tokens; by default the reward's own `max_tokens`, or no limit if it has none. The reward's own
    `count_tokens(text)` counts tokens; without it, words are counted."""
    timeout: float = attrs.field(default=60.0, validator=gt(0))
    """Seconds for one call, after which the process is ended with an error."""
    start_timeout: float = attrs.field(default=600.0, validator=gt(0))
    """Seconds for imports and weights at the start."""


@hookimpl
def register_rewards(register):
    """Offer `external`."""
    register(
        "external",
        "guidedcd_external.reward:External",
        config=ExternalConfig,
        summary="a reward in another virtual environment, with its gradient",
    )
