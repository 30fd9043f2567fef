"""The oracle as a metric; only what a prompt names is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from guidedcd.data.clips import Prompt
from guidedcd_shapes import ShapesOracleConfig, world
from guidedcd_shapes import prompts as shapes_prompts
from guidedcd_shapes.oracle import ATTRIBUTES, Oracle


class ShapesOracle:
    """`all` (every named attribute right), one score per attribute, `speed` and `direction`."""

    titles: ClassVar = {
        "all": "every attribute that the prompt names is right",
        "color": "colour of the object",
        "shape": "shape of the object",
        "size": "size of the object",
        "background": "background",
        "motion": "kind and direction of the motion",
        "second": "colour and shape of the second object",
        "speed-class": "slow, medium or fast as named",
        "speed": "pixels per frame",
        "direction": "cosine of the motion with the named direction",
        "misfit": "share of the object that the best template leaves unexplained",
    }
    better: ClassVar = {name: "higher" for name in titles if name not in ("speed", "misfit")} | {"misfit": "lower"}
    headline = "all"

    def __init__(self, config: ShapesOracleConfig) -> None:
        """Oracles are made when their device is known."""
        self._oracles: dict[torch.device, Oracle] = {}

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt's true scene is known."""
        return prompt.scene is not None and {f.name for f in attrs.fields(world.Scene)} <= set(prompt.scene)

    def __call__(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Scores (B,) on the CPU of videos (B, F, 3, H, W) in [0, 1]; NaN where a prompt names no such thing."""
        known = [i for i, prompt in enumerate(prompts) if self.applies(prompt)]
        result = {name: torch.full((len(prompts),), float("nan")) for name in self.titles}
        if not known:
            return result
        chosen = [prompts[i] for i in known]
        oracle = self._oracles.setdefault(videos.device, Oracle(videos.device))
        scores = oracle.score(videos[known], world.to(shapes_prompts.truth(chosen), videos.device))
        for name in self.titles:
            result[name][known] = scores[name].float().cpu()
        unsaid = {name: torch.tensor([name not in p.named for p in chosen]) for name in ATTRIBUTES}
        for name in ("direction", "speed-class"):
            unsaid[name] = unsaid["motion"]
        for name, silent in unsaid.items():
            result[name][torch.tensor(known)[silent]] = float("nan")
        right = torch.stack([result[name][known].nan_to_num(1.0) for name in ATTRIBUTES])
        result["all"][known] = right.amin(0)
        return result
