"""The energy `reward:NAME`: minus a reward of the decoded prediction.

Legend: B batch, n samples at the noise levels at which it acts, F frames, k frames that the reward receives.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from guidedcd import GuidedCDError, RewardConfig, Seen, inside
from guidedcd.devices import tensor_like
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.rewards.contract import build_reward, call, drawing
from guidedcd_adapters import RewardEnergyConfig


class RewardEnergy:
    """E = -R(D(x), caption): x are the clean latents after guidance, D the teacher's decoder, R the reward.

    The frames are evenly spaced, as many as the reward's option `frames`. A caption that the reward cannot read to its
    end gives the energy 0. The reward is built when it is first called, on the device of the latents.
    """

    through = "output"
    reference_free = True

    def __init__(self, config: RewardEnergyConfig) -> None:
        """Import the reward's code, without its weights.

        Raises:
            GuidedCDError: There is no reward of this name, or its code cannot be imported.
        """
        chosen = inside(config)
        assert chosen is not None and isinstance(chosen.config, RewardConfig)
        chosen.component().load()
        self.config, self.chosen, self.frames = config, chosen, chosen.config.frames
        self._whose = str(chosen.component())
        self._reward: Any = None
        self._lock = threading.Lock()

    def check_run(self, run: Any) -> None:
        """Check that the run has noise levels at which the energy acts.

        Raises:
            GuidedCDError: It has none.
        """
        lowest = run.preprocess.noise_range[0]
        if self.config.part[1] <= lowest:
            name = f"reward:{self.config.reward}"
            raise GuidedCDError(
                f"energy '{name}' acts below {self.config.part[1]:.2g} of the noise levels, but draws come from above "
                f"{lowest:.2g}. Raise --energies.{name}.part, such as 0,{min(1, lowest + 0.3):.2g}, or lower "
                "--preprocess.noise-range."
            )

    def reward(self, device: torch.device) -> Any:
        """The reward on a device, built once."""
        with self._lock:
            if self._reward is None:
                self._reward = build_reward(self.chosen)
            return self._reward.to(device)

    def __call__(self, seen: Seen, reference: None = None) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`; 0 outside of the noise levels at which it acts."""
        energy = 0 * seen.guided.flatten(1).sum(1)
        low, high = (bound * seen.timesteps for bound in self.config.part)
        reward = self.reward(seen.z.device)
        texts = seen.captions or [""] * len(seen.z)
        rows = [
            row
            for row, (t, text) in enumerate(zip(seen.t.tolist(), texts, strict=True))
            if low <= t < high and reward.count_tokens(text) <= reward.max_tokens
        ]
        if not rows:
            return energy
        if seen.decoder is None:
            raise GuidedCDError("this teacher has no decoder, which rewards need.")
        latents = seen.guided[rows]
        video = seen.decoder(latents, self._indices(seen.frames or latents.shape[2]))
        with drawing(reward, reward_generator(0, 0)):
            rewards = call(reward, video, [texts[row] for row in rows], self._whose)
        return energy.index_add(0, tensor_like(rows, energy, torch.long), -rewards.to(energy.dtype))

    def _indices(self, frames: int) -> list[int]:
        """The evenly spaced frames that the reward receives (k), ascending."""
        count = min(self.frames, frames)
        return [(2 * i + 1) * frames // (2 * count) for i in range(count)]
