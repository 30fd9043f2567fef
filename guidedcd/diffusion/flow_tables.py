"""Noise levels of flow-matching schedulers of diffusers, as a table over training timesteps."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy
from torch import Tensor

from guidedcd.errors import GuidedCDError


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers belongs to a flow-matching model."""
    return (
        type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("prediction_type") == "flow_prediction"
    )


def flow_tables(scheduler: Any, mu: float | None = None) -> tuple[Tensor, Tensor]:
    """Noise levels and times of the network of a flow-matching scheduler, each (T,) float32, ascending.

    They are those of the scheduler with T steps, so that its shift is applied once. The grid of S steps is then that of
    the scheduler with S steps if S divides T: u = 1, 1 - 1/S, ..., 1/S for `FlowMatchEulerDiscreteScheduler` with the
    sigmas that pipelines give it, and u = 1 - i (1 - 1/T) / S for `UniPCMultistepScheduler`. Timestep 0 is clean:
    sigma 0, where every solver ends.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, `FlowMatchLCMScheduler`, `UniPCMultistepScheduler` or a relative.
            It is not changed.
        mu: The shift, where it depends on the resolution (`use_dynamic_shifting`).

    Raises:
        GuidedCDError: The scheduler is of no flow model, reverses its noise levels, needs a `mu`, or sets another
            number of steps.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("invert_sigmas"):
        raise GuidedCDError(f"{name} has invert_sigmas: noise levels that rise from data to noise are not supported.")
    if config.get("use_dynamic_shifting") and mu is None:
        raise GuidedCDError(
            f"{name} has use_dynamic_shifting, but the pipeline of this family gives no mu: set it to false in "
            "scheduler_config.json."
        )
    count = int(config.num_train_timesteps)
    scheduler = copy.deepcopy(scheduler)
    options = {} if mu is None or not config.get("use_dynamic_shifting") else {"mu": mu}
    if name.startswith("FlowMatch"):
        if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise GuidedCDError(f"{name} takes no sigmas: use FlowMatchEulerDiscreteScheduler with the same shift.")
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / count, count).tolist(), **options)
    else:
        if not hasattr(scheduler, "sigmas"):
            raise GuidedCDError(
                f"{name} is no scheduler of flow models: use FlowMatchEulerDiscreteScheduler or "
                "UniPCMultistepScheduler."
            )
        if not config.get("use_flow_sigmas"):
            raise GuidedCDError(f"{name} predicts a flow without use_flow_sigmas: set it to true.")
        scheduler.set_timesteps(count, **options)
    sigmas, times = scheduler.sigmas[:count].flip(0).float().cpu(), scheduler.timesteps.flip(0).float().cpu()
    if len(times) != count:
        raise GuidedCDError(f"{name} has {len(times)} timesteps where {count} were expected.")
    sigmas[0], times[0] = 0.0, 0.0
    return sigmas, times
