"""Cost and error of the ways in which a teacher can decode frames for rewards, `guidedcd.plugins.decode_policies`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from guidedcd.config.run import Run
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.gpus import GIB, Machine
from guidedcd.planning.meter import Cost, metered
from guidedcd.planning.preprocess_cost import empty
from guidedcd.plugins.decode_policies import DecodePolicy
from guidedcd.rewards.scorer import RewardScorer

OTHERS = ("full", "window:2", "window:4", "first")
"""Policies that are shown beside that of the run."""


@attrs.frozen(kw_only=True)
class DecodeCost:
    """Decoding one video for the rewards of a training step, with the gradient to its latents."""

    policy: str
    chosen: bool
    """Whether it is the policy of the run."""
    seconds: float | None = None
    """None where the rewards cannot read what is decoded."""
    peak_gib: float | None = None
    """Memory of activations, in units of 2^30 bytes."""
    why: str = ""
    """The reason where there are no figures."""


def has_policies(teacher: Any) -> bool:
    """Whether a teacher decodes by a policy."""
    return isinstance(getattr(teacher, "policy", None), DecodePolicy)


def policies(teacher: Any) -> list[str]:
    """The policy of a teacher, and others."""
    return list(dict.fromkeys([str(teacher.policy), *OTHERS]))


def decode_costs(run: Run, teacher: Any, modules: Mapping[str, Any], machine: Machine) -> list[DecodeCost]:
    """Count every policy for the frames that the rewards of a run read; none if no reward reads frames.

    Args:
        run: Frames and weights of its rewards are read.
        teacher: The teacher on the meta device; it is modified.
        modules: The rewards by name, on the meta device.
        machine: Computes.
    """
    chosen, rows = teacher.policy, []
    for name in policies(teacher):
        teacher.policy = DecodePolicy.parse(name)
        try:
            cost = _cost(run, teacher, modules)
        except GuidedCDError as error:
            rows.append(DecodeCost(policy=name, chosen=name == str(chosen), why=str(error)))
            continue
        if cost is None:
            return []
        seconds, peak = machine.seconds(cost), cost.peak / GIB
        rows.append(DecodeCost(policy=name, chosen=name == str(chosen), seconds=seconds, peak_gib=peak))
    teacher.policy = chosen
    return rows


def _cost(run: Run, teacher: Any, modules: Mapping[str, Any]) -> Cost | None:
    scorer = _scorer(run, teacher, modules)
    choices = scorer.choices(torch.Generator().manual_seed(0))
    latents = empty(1, *teacher.geometry.latent_shape).requires_grad_()
    with metered() as cost:
        pixels = [scorer.decode(latents, frames).sum() for _, frames in choices]
        if pixels:
            torch.autograd.backward(pixels)
    return cost if pixels else None


def decode_errors(run: Run, teacher: Any, modules: Mapping[str, Any], latents: torch.Tensor) -> dict[str, float]:
    """By policy, the root mean square of the difference of pixels in [0, 1] from those of the autoencoder.

    Args:
        run: Frames of its rewards are read.
        teacher: The teacher; its policy is changed and restored.
        modules: The rewards by name; those that read latents are left out.
        latents: Clean latents of clips (B, C, F, h, w).
    """
    chosen, errors = teacher.policy, {}
    for name in policies(teacher):
        teacher.policy = DecodePolicy.parse(name)
        try:
            choices = _scorer(run, teacher, modules).choices(torch.Generator().manual_seed(0))
        except GuidedCDError:
            continue
        frames = sorted({index for _, indices in choices for index in indices})
        if frames:
            with torch.no_grad():
                difference = teacher.decode(latents, frames) - teacher.decode_exactly(latents, frames)
            errors[name] = float(difference.float().square().mean().sqrt())
    teacher.policy = chosen
    return errors


def _scorer(run: Run, teacher: Teacher, modules: Mapping[str, Any]) -> RewardScorer:
    return RewardScorer(
        {name: (module, run.rewards[name]) for name, module in modules.items()},
        teacher,
        low_memory=run.train.activation_checkpoint.recomputes_decoder,
    )
