"""The metric `reward:NAME`: a reward of finished videos, as a judge that the student was not trained on.

Legend: B videos, F frames, k frames that the reward receives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guidedcd import Prompt, RewardConfig, inside
from guidedcd.devices import device
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.rewards.contract import build_reward, call, drawing
from guidedcd.rewards.scorer import even_indices
from guidedcd_adapters import RewardMetricConfig


class RewardMetric:
    """One value for each video, `reward:NAME`, higher is better; NaN where the reward cannot read the whole prompt.

    The frames are evenly spaced, as many as the reward's option `frames` or as it chooses itself.
    """

    def __init__(self, config: RewardMetricConfig) -> None:
        """Import the reward's code; its weights are read when it is first called.

        Raises:
            GuidedCDError: There is no reward of this name, or its code cannot be imported.
        """
        chosen = inside(config)
        assert chosen is not None and isinstance(chosen.config, RewardConfig)
        component = chosen.component()
        component.load()
        self._whose = str(component)
        self.config, self.chosen, self.reward_config = config, chosen, chosen.config
        self._reward: Any = None
        self.key = f"reward:{config.reward}"
        self.titles = {self.key: f"reward {config.reward} of the finished video"}
        self.better = {self.key: "higher"}
        self.headline = self.key

    @torch.no_grad()
    def __call__(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """The values (B) of videos (B, F, 3, H, W) in [0, 1]."""
        where = device(self.config.device)
        if self._reward is None:
            self._reward = build_reward(self.chosen).to(where)
        reward, frames = self._reward, videos.shape[1]
        count = max(1, min(self.reward_config.count(frames, self.config.fps), frames))
        indices = even_indices(frames, count)
        values = []
        for video, prompt in zip(videos, prompts, strict=True):
            if reward.count_tokens(prompt.text) > reward.max_tokens:
                values.append(math.nan)
                continue
            pixels = video[None, indices].to(where).float()
            with drawing(reward, reward_generator(0, 0)):
                values.append(call(reward, pixels, [prompt.text], self._whose).item())
        return {self.key: values}
