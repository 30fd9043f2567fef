"""The error of the option `preprocess.quantize`: predictions and gradients of a teacher before and after."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.int8 import saved
from guidedcd.acceleration.precision import relative_error
from guidedcd.config.run import Run
from guidedcd.console import file_size
from guidedcd.energies.traits import stored_part
from guidedcd.models.teachers.protocol import Teacher

CAPTION = "a ball rolls to the left"


@attrs.frozen(eq=False)
class Measured:
    """A pass of a teacher's network for noise in the middle of the schedule."""

    prediction: Tensor
    """(1, C, F, h, w), float32."""
    gradient: Tensor | None
    """The gradient of the prediction's product with fixed noise, to the latents; None in a run without energies."""


def measured(teacher: Teacher, run: Run) -> Measured:
    """The prediction for fixed noise, with the gradient to the latents where energies take theirs through the network.

    Args:
        teacher: On its device, with or without int8.
        run: Has the seed and the energies.
    """
    shape, device = teacher.geometry.latent_shape, teacher.device
    generator = torch.Generator().manual_seed(run.seed)
    z, direction = (torch.randn(1, *shape, generator=generator).to(device) for _ in range(2))
    t = torch.full((1,), len(teacher.schedule) // 2, device=device)
    with torch.no_grad():
        cond = teacher.embed([CAPTION])
    takes_gradient = bool(stored_part(run).energies)
    with torch.set_grad_enabled(takes_gradient):
        prediction = teacher.net(z.requires_grad_(takes_gradient), t, cond)
        gradient = torch.autograd.grad((prediction * direction).sum(), z)[0] if takes_gradient else None
    return Measured(prediction.detach().float(), gradient)


def line(before: Measured, after: Measured, teacher: Teacher) -> str:
    """The sentence about memory and errors of a teacher with int8 weights."""
    errors = f"predictions differ by {relative_error(after.prediction, before.prediction):.2%}"
    if before.gradient is not None and after.gradient is not None:
        errors += f" and gradients by {relative_error(after.gradient, before.gradient):.2%}"
    return f"network in int8: {file_size(saved(teacher.network))} less; {errors} of their size"
