"""The metric `shapes-oracle`: the oracle's measurements of the attributes that a prompt names."""

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

INTACT = 0.1
"""Largest misfit of an intact object: 19 of 20 drawn clips stay below it after encoding and decoding."""
DYNAMIC = 6 / 256 * world.SIZE
"""Pixels per frame above which an object is dynamic: VBench's threshold, 6 pixels at a short side of 256."""


class ShapesOracle:
    """Values `all` (every named attribute is right), one per attribute, `speed`, `direction` and `misfit`.

    A torn object counts as fast: its centre jumps. Motion is therefore also measured on intact videos alone, those
    whose object a template explains: `intact` and the values whose name begins with it.
    """

    titles: ClassVar = {
        "all": "videos with every named attribute correct",
        "color": "colour of the object",
        "shape": "shape of the object",
        "size": "size of the object",
        "background": "background",
        "motion": "kind and direction of the motion",
        "second": "colour and shape of the second object",
        "speed-class": "slow, medium or fast as in the prompt",
        "speed": "pixels per frame",
        "direction": "cosine between the motion and the prompt's direction",
        "misfit": "share of the object that the best template leaves unexplained",
        "intact": "videos whose object is whole (misfit below 0.1)",
        "intact-speed": "pixels per frame, intact videos only",
        "intact-dynamic": "dynamic degree of the intact videos: more than 1.125 pixels per frame",
        "intact-motion": "intact videos whose motion and speed are as in the prompt",
        "intact-smoothness": "smoothness of the path of a moving object, intact videos only",
    }
    better: ClassVar = {
        name: "lower" if name == "misfit" else "higher"
        for name in titles
        if name not in ("speed", "intact-speed", "intact-dynamic")
    }
    headline = "all"
    headlines: ClassVar = ("intact-motion", "intact-speed")

    def __init__(self, config: ShapesOracleConfig) -> None:
        """Build no oracle yet: the first call of a device does."""
        self._oracles: dict[torch.device, Oracle] = {}

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt's true scene is known."""
        return prompt.scene is not None and {f.name for f in attrs.fields(world.Scene)} <= set(prompt.scene)

    def __call__(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Values (B,) on the CPU for videos (B, F, 3, H, W) in [0, 1]; NaN for unnamed attributes."""
        judged = [i for i, prompt in enumerate(prompts) if self.applies(prompt)]
        result = {name: torch.full((len(prompts),), float("nan")) for name in self.titles}
        if not judged:
            return result
        chosen = [prompts[i] for i in judged]
        oracle = self._oracles.setdefault(videos.device, Oracle(videos.device))
        scores = oracle.score(videos[judged], world.to(shapes_prompts.truth(chosen), videos.device))
        scores |= intact_motion(scores)
        for name in self.titles:
            result[name][judged] = scores[name].float().cpu()
        unnamed = {name: torch.tensor([name not in p.named for p in chosen]) for name in ATTRIBUTES}
        for name in ("direction", "speed-class", "intact-motion"):
            unnamed[name] = unnamed["motion"]
        for name, missing in unnamed.items():
            result[name][torch.tensor(judged)[missing]] = float("nan")
        right = torch.stack([result[name][judged].nan_to_num(1.0) for name in ATTRIBUTES])
        result["all"][judged] = right.amin(0)
        return result


def intact_motion(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Motion (B,) of intact videos from the oracle's scores; NaN for the motion of a video that is not intact."""
    intact = scores["misfit"] < INTACT
    right = scores["motion"] * scores["speed-class"].nan_to_num(1.0)  # a still object has no speed class
    motion = {
        "speed": scores["speed"],
        "dynamic": (scores["speed"] > DYNAMIC).float(),
        "motion": right,
        "smoothness": scores["smoothness"],
    }
    of_intact = {f"intact-{name}": torch.where(intact, value, float("nan")) for name, value in motion.items()}
    return {"intact": intact.float(), **of_intact}
