"""The sampler of a model's own pipeline: a scheduler of diffusers, with the pipeline's times."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class SchedulerSampler:
    """The steps of a scheduler of diffusers, as the pipeline of the model calls it.

    Args:
        scheduler: It is copied.
        steps: Number of steps.
        device: Where the latents are.
        options: Further arguments of its `set_timesteps`.
    """

    def __init__(
        self, scheduler: Any, steps: int, device: torch.device, options: Mapping[str, Any] | None = None
    ) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        options = dict(options or {})
        count = {} if "sigmas" in options else {"num_inference_steps": steps}
        self.scheduler.set_timesteps(**count, device=device, **options)
        self._takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters

    @property
    def times(self) -> Tensor:
        """What the network receives as time at each step (S,), descending."""
        times: Tensor = self.scheduler.timesteps
        return times

    def step(self, index: int, output: Tensor, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Latents after step `index`, like `z`.

        Args:
            index: Number of the step, from 0; each step is taken once, in order.
            output: The guided prediction, like `z`.
            z: Latents before the step (B, ...).
            generators: Sources of noise (B), for schedulers that draw some.
        """
        if self.scheduler.config.get("stochastic_sampling"):
            # diffusers draws this noise from torch's global source, so that seeds would not determine the video.
            from diffusers.utils.torch_utils import randn_tensor

            sigma, sigma_next = self.scheduler.sigmas[index : index + 2].to(z.device)
            noise = randn_tensor(z.shape, generator=generators, device=z.device, dtype=z.dtype)
            return (1 - sigma_next) * (z - sigma * output) + sigma_next * noise
        options = {"generator": generators} if self._takes_generator else {}
        latents: Tensor = self.scheduler.step(output, self.times[index], z, return_dict=False, **options)[0]
        return latents
