"""The rules of metrics. Legend: B batch, F frames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from unittest import SkipTest

from torch import Tensor

from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd.inference.metric import Metric
from guidedcd.testing.helpers import CAPTIONS, frees_memory, random, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent

PROMPTS = [Prompt(text=caption, id=str(number)) for number, caption in enumerate(CAPTIONS)]


def videos() -> Tensor:
    """Videos (2, 8, 3, 48, 48) in [0, 1]."""
    return random((2, 8, 3, 48, 48), 4).mul(0.2).add(0.5).clamp(0, 1)


def scores(
    checked: CheckedComponent, rows: slice = slice(None), frames: Tensor | None = None
) -> dict[str, list[float]]:
    """The scores of some of the videos by name, as an evaluation reads them."""
    metric = Metric(checked.component.name, checked.built)
    if not metric.applies(PROMPTS[rows]):
        raise SkipTest("it does not apply to prompts without a scene")
    try:
        return metric.scores((videos() if frames is None else frames)[rows], PROMPTS[rows])
    except GuidedCDError as error:
        raise AssertionError(str(error)) from error


def metric_scores_each_video(checked: CheckedComponent) -> None:
    """It returns finite numbers, or NaN, for each video by name, and leaves its videos and torch's defaults alone."""
    frames = videos()
    with unchanged("the metric"):
        values = scores(checked, frames=frames)
    assert values, "the metric returned no values"
    assert frames.equal(videos()), "it changed its videos in place: work on a copy"


def metric_is_repeatable(checked: CheckedComponent) -> None:
    """The same videos have the same values every time."""
    assert _near(scores(checked), scores(checked)), "the same videos have other values the second time"


def metric_treats_videos_alone(checked: CheckedComponent) -> None:
    """The value of a video depends neither on the other videos nor on their prompts."""
    both, first, second = scores(checked), scores(checked, slice(0, 1)), scores(checked, slice(1, 2))
    alone = {name: first.get(name, []) + second.get(name, []) for name in both}
    assert _near(both, alone), f"values {both} of two videos differ from those of each video alone, {alone}"


def _near(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    return one.keys() == other.keys() and all(
        len(one[name]) == len(other[name])
        and all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5) or (math.isnan(a) and math.isnan(b))
            for a, b in zip(one[name], other[name], strict=True)
        )
        for name in one
    )


def metric_describes_its_values(checked: CheckedComponent) -> None:
    """`titles`, `better` and headlines name values that it returns, and `better` is "higher" or "lower"."""
    metric, names = checked.built, set(scores(checked))
    for member in ("titles", "better"):
        unknown = set(getattr(metric, member, {})) - names
        assert not unknown, f"`{member}` names {sorted(unknown)}, but its values are {sorted(names)}"
    wrong = {value for value in getattr(metric, "better", {}).values() if value not in ("higher", "lower")}
    assert not wrong, f'`better` has {sorted(map(str, wrong))}; a direction is "higher" or "lower"'
    headline = getattr(metric, "headline", None)
    assert headline is None or headline in names, f"`headline` is {headline!r}, but its values are {sorted(names)}"
    unknown = set(getattr(metric, "headlines", ())) - names
    assert not unknown, f"`headlines` names {sorted(unknown)}, but its values are {sorted(names)}"


def metric_frees_memory(checked: CheckedComponent) -> None:
    """It keeps no tensor of one call after another."""
    frames = videos()
    frees_memory(lambda: scores(checked, frames=frames), "the metric")


RULES = [
    metric_scores_each_video,
    metric_is_repeatable,
    metric_treats_videos_alone,
    metric_describes_its_values,
    metric_frees_memory,
]
