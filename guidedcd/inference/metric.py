"""A metric of finished videos, called through its contract.

Legend: B videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import blame


@attrs.frozen(eq=False)
class Metric:
    """A metric with its name and the optional attributes of its object.

    `titles` and `better` ("higher" or "lower") are mappings by score. `headline` names the score for choosing settings,
    "all" by default, and `headlines` further scores of the summary. `applies(prompt)` returns whether the metric can
    score videos of a prompt.
    """

    name: str
    module: Any
    names: set[str] = attrs.field(factory=set)
    """Names of the scores that it has returned."""
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """Its component and options, as JSON values."""

    def applies(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it can score videos of any of these prompts."""
        applies = getattr(self.module, "applies", None)
        return applies is None or any(applies(prompt) for prompt in prompts)

    def scores(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """Every score of every video; an exception names the metric."""
        with blame(self.whose):
            scores = self.module(videos, prompts)
        lists = _checked(scores, len(prompts), self.whose)
        self.names.update(lists)
        return lists

    @property
    def compares(self) -> bool:
        """Whether it also compares the videos of one prompt from several seeds, by their features."""
        return callable(getattr(self.module, "features", None)) and callable(getattr(self.module, "across", None))

    def features(self, videos: Tensor) -> Tensor:
        """The features (B, D) of videos, on the CPU.

        Raises:
            GuidedCDError: They are no finite matrix with one row for each video.
        """
        with blame(self.whose):
            features = self.module.features(videos)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(videos):
            kind = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise GuidedCDError(f"{self.whose} returned features of {kind}; they must be ({len(videos)}, D).")
        if not features.isfinite().all():
            raise GuidedCDError(f"{self.whose} returned features that are not finite.")
        return features.detach().float().cpu()

    def across(self, features: Tensor) -> dict[str, list[list[float]]]:
        """Scores (S, P) by name, of the features (S, P, D) of all videos; they replace those of single videos.

        Raises:
            GuidedCDError: They are no mapping from names to one number for each video.
        """
        with blame(self.whose):
            scores = self.module.across(features)
        seeds, prompts = features.shape[:2]
        flat = {key: torch.as_tensor(values).reshape(-1) for key, values in dict(scores).items()}
        lists = _checked(flat, seeds * prompts, self.whose)
        self.names.update(lists)
        return {key: [row[s * prompts : (s + 1) * prompts] for s in range(seeds)] for key, row in lists.items()}

    @property
    def whose(self) -> str:
        """The metric in errors."""
        plugin = self.settings.get("plugin")
        return f"metric '{self.name}'" + (f" of {plugin}" if plugin else "")

    def about(self, key: str) -> dict[str, str]:
        """Metric, title and direction ("higher", "lower" or "") of a score."""
        titles, better = getattr(self.module, "titles", {}), getattr(self.module, "better", {})
        return {"metric": self.name, "title": titles.get(key, key), "better": better.get(key, "")}


def _checked(scores: Any, count: int, whose: str) -> dict[str, list[float]]:
    """The scores of `count` videos as numbers, NaN where one does not apply.

    Raises:
        GuidedCDError: They are no mapping from names to one finite number or NaN for each video.
    """
    if not isinstance(scores, Mapping) or not all(isinstance(key, str) for key in scores):
        kind = type(scores).__name__
        raise GuidedCDError(f"{whose} returned {kind}; it must return a dict from names to one number for each video.")
    lists = {}
    for key, values in scores.items():
        try:
            is_tensor = isinstance(values, Tensor)
            numbers = values.detach().double() if is_tensor else torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise GuidedCDError(f"{whose} returned values of '{key}' that are no numbers: {error}") from error
        if numbers.shape != (count,):
            shape = tuple(numbers.shape)
            raise GuidedCDError(f"{whose} returned '{key}' of shape {shape} for {count} videos, not ({count},).")
        if numbers.isinf().any():
            raise GuidedCDError(f"{whose} returned infinite values of '{key}'; NaN is for a video without a value.")
        lists[key] = numbers.tolist()
    return lists
