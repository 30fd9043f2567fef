"""Guiders: how the predictions with and without the caption become one, through the guiders of diffusers.

Legend: B batch, C channels, F frames, H/W latent size.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.schedule import expand
from guidedcd.errors import GuidedCDError


def combine(o_c: Tensor, o_u: Tensor, omega: Tensor) -> Tensor:
    """Classifier-free guidance, o_c + omega (o_c - o_u), like `o_c`; omega (B,) is diffusers' guidance_scale - 1."""
    return o_c + expand(omega, o_c) * (o_c - o_u)


@attrs.frozen
class Guider:
    """Classifier-free guidance, or one of its variants, as a function of both predictions and omega.

    `plain` is `combine`. `apg` is diffusers' `AdaptiveProjectedGuidance` (Sadat et al. 2024, arXiv:2410.02416): the
    difference o_c - o_u is shortened to the norm `rescale`, and its part parallel to o_c is multiplied by `eta`.
    `cfg-zero` is diffusers' `ClassifierFreeZeroStarGuidance` (Fan et al. 2025, arXiv:2503.18886): o_u is multiplied by
    the factor that brings it closest to o_c.

    A guider is a function of one step, because a training pair is one. `apg` therefore has no momentum, which needs the
    steps before, and `cfg-zero` does not set the first prediction to zero, which only flow models allow.
    """

    name: str = "plain"
    eta: float = 0.0
    """Of `apg`: factor of the part of the difference that is parallel to o_c; 1 keeps it."""
    rescale: float = 0.0
    """Of `apg`: largest norm of the difference, over all elements of a sample; 0 for no limit."""

    def __call__(self, o_c: Tensor, o_u: Tensor, omega: Tensor) -> Tensor:
        """The guided prediction, like `o_c`.

        Args:
            o_c: The network's output with the caption (B, C, F, H, W).
            o_u: The output without the caption, like `o_c`.
            omega: Guidance strength (B,), diffusers' guidance_scale - 1; a sample with 0 is its `o_c`.

        Raises:
            GuidedCDError: There is no guider of this name.
        """
        if self.name == "plain":
            return combine(o_c, o_u, omega)
        guider, rows = _of_diffusers(self), []
        # A guider of diffusers has one scale for a batch. A plan runs on the meta device, whose tensors have no values.
        for row, strength in enumerate([1.0] * len(omega) if omega.is_meta else omega.tolist()):
            guider.guidance_scale = strength
            rows.append(guider.forward(o_c[row : row + 1], o_u[row : row + 1])[0])
        return torch.cat(rows)


PLAIN = Guider()
"""Classifier-free guidance as in the paper."""


@cache
def _of_diffusers(guider: Guider) -> Any:
    """The guider of diffusers, in the formulation o_c + omega * update."""
    from diffusers import guiders
    from diffusers.utils import logging

    options: dict[str, Any] = {"guidance_scale": 0.0, "use_original_formulation": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # each guider warns that its class is experimental
    try:
        match guider.name:
            case "apg":
                options |= {"eta": guider.eta, "adaptive_projected_guidance_rescale": guider.rescale}
                built = guiders.AdaptiveProjectedGuidance(**options)
            case "cfg-zero":
                built = guiders.ClassifierFreeZeroStarGuidance(zero_init_steps=0, **options)
            case _:
                raise GuidedCDError(f"no guider named '{guider.name}'. Use plain, apg or cfg-zero.")
    finally:
        logging.set_verbosity(verbosity)
    built.set_state(step=0, num_inference_steps=1, timestep=torch.zeros(1, dtype=torch.long))
    return built
