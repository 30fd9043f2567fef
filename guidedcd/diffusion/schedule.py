"""Noise levels, solver grids, and the solver step for eps, v and flow models.

Legend: B batch, T training timesteps, S solver steps. `t` is always an int64 training timestep, 0 the cleanest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.flow_tables import flow_tables, is_flow
from guidedcd.errors import GuidedCDError

PREDICTIONS = ("eps", "v", "flow")
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def expand(v: Tensor, like: Tensor) -> Tensor:
    """`v` (B,) with trailing dimensions of 1, so that it broadcasts over `like` (B, ...), in `like`'s dtype."""
    return v.to(device=like.device, dtype=like.dtype).reshape(v.shape + (1,) * (like.ndim - v.ndim))


def float32_linspace(start: float, end: float, steps: int) -> Tensor:
    """Evenly spaced float32 numbers (steps,) from `start` to `end`, with the same bits on every processor.

    They equal `torch.linspace` on processors with a fused multiply-add, such as AVX2; elsewhere its last bits differ.
    """
    first, last = torch.tensor([start, end], dtype=torch.float32)
    step = ((last - first) / (steps - 1)).double()
    i = torch.arange(steps, dtype=torch.float64)
    return torch.where(i < steps // 2, first.double() + step * i, last.double() - step * (steps - 1 - i)).float()


def to_x0_eps(z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """Convert a network's output to (x0, eps), both like `z`, with z = alpha x0 + sigma eps.

    Args:
        z: Noisy latents (B, ...).
        output: The network's prediction, like `z`.
        alpha: Signal level (B,).
        sigma: Noise level (B,).
        prediction: "eps", "v" (alpha eps - sigma x0) or "flow" (eps - x0, alpha + sigma = 1).

    Raises:
        ValueError: The prediction type is unknown.
    """
    a, s = expand(alpha, z), expand(sigma, z)
    if prediction == "eps":
        return (z - s * output) / a, output
    if prediction == "v":
        return a * z - s * output, s * z + a * output
    if prediction == "flow":
        return z - s * output, z + a * output
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}: {prediction!r}")


def clean_slope(alpha: Tensor, prediction: str) -> Tensor:
    """dx0/dz, like `alpha`, for a constant output of the network: 1/alpha for eps, alpha for v, 1 for flow."""
    match prediction:
        case "eps":
            return 1 / alpha
        case "v":
            return alpha
    return torch.ones_like(alpha)


class NoiseSchedule:
    """Signal level, noise level and network time of every training timestep, solver grids, the consistency function.

    Tables are float32 (T,), as in the released training code; arithmetic follows the dtype of the latents.
    """

    times: Tensor | None
    """The time that the network receives at each training timestep (T,); None where it is the timestep itself."""

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction: str = "eps",
        *,
        tables: tuple[Tensor, Tensor] | None = None,
        times: Tensor | None = None,
    ):
        """Build the tables.

        Args:
            alphas_cumprod: alpha^2 (T,), descending.
            prediction: What the network predicts: "eps", "v" or "flow".
            tables: (alpha, sigma), each (T,), if they differ from sqrt(abar) and sqrt(1 - abar).
            times: What the network receives as time (T,), if it is not the timestep.

        Raises:
            GuidedCDError: The prediction type is unknown.
        """
        if prediction not in PREDICTIONS:
            raise GuidedCDError(f"prediction must be one of {', '.join(PREDICTIONS)}: {prediction!r}")
        self.prediction = prediction
        self.alphas_cumprod = alphas_cumprod.detach().to(torch.float32)
        self.alpha, self.sigma = tables or (self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt())
        self.times = times

    @classmethod
    def scaled_linear(
        cls, timesteps: int = 1000, start: float = 0.00085, end: float = 0.012, prediction: str = "eps"
    ) -> NoiseSchedule:
        """Stable Diffusion's and VideoCrafter2's schedule: betas linear in their square root, float32."""
        betas = float32_linspace(start**0.5, end**0.5, timesteps) ** 2
        return cls(torch.cumprod(1 - betas, dim=0), prediction)

    @classmethod
    def flow(cls, timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """Rectified flow: sigma = shift u / (1 + (shift - 1) u) with u = t / timesteps, alpha = 1 - sigma.

        The network receives sigma times `timesteps`, which contains the shift once.
        """
        u = torch.arange(timesteps, dtype=torch.float32) / timesteps
        sigma = shift * u / (1 + (shift - 1) * u)
        return cls.of_sigmas(sigma, timesteps * sigma)

    @classmethod
    def of_sigmas(cls, sigma: Tensor, times: Tensor) -> NoiseSchedule:
        """Rectified flow with the noise levels `sigma` (T,), ascending, and the network's times (T,)."""
        sigma = sigma.to(torch.float32)
        return cls((1 - sigma) ** 2, "flow", tables=(1 - sigma, sigma), times=times)

    @classmethod
    def from_scheduler(cls, scheduler: Any, mu: float | None = None) -> NoiseSchedule:
        """The schedule of a diffusers scheduler: one with `alphas_cumprod` (DDIM, DPM-Solver, ...), or of flow models.

        Args:
            scheduler: A scheduler of diffusers; it is not changed.
            mu: The shift of a flow model's scheduler whose shift depends on the resolution.

        Raises:
            GuidedCDError: The scheduler has no such table, or predicts something else than eps, v or flow.
        """
        if is_flow(scheduler):
            return cls.of_sigmas(*flow_tables(scheduler, mu))
        names = {"epsilon": "eps", "v_prediction": "v"}
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in names or not hasattr(scheduler, "alphas_cumprod"):
            raise GuidedCDError(f"cannot read the schedule of {type(scheduler).__name__}, prediction_type '{kind}'.")
        return cls(scheduler.alphas_cumprod, names[kind])

    def __len__(self) -> int:
        """Number of training timesteps T."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Move the tables, in place."""
        for name in ("alphas_cumprod", "alpha", "sigma"):
            setattr(self, name, getattr(self, name).to(device))
        if self.times is not None:
            self.times = self.times.to(device)
        return self

    def network_time(self, t: Tensor) -> Tensor:
        """What the network receives as time at `t` (B,): of flow models sigma times T, which contains the shift once.

        Args:
            t: Training timesteps (B,), int64. Floating-point numbers are times of the network already, such as those of
                a scheduler of diffusers between two training timesteps.
        """
        if self.times is None or t.is_floating_point():
            return t
        if t.is_meta:  # of a plan, whose timesteps have no values
            return torch.empty_like(t, dtype=self.times.dtype)
        return self.times[t.to(self.times.device)]

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Signal and noise level, each (B,), of timesteps (B,); float32, or float64 from the same table."""
        index = t.to(self.alpha.device)
        if dtype == torch.float64 and self.prediction != "flow":
            abar = self.alphas_cumprod[index].double()
            return abar.sqrt(), (1 - abar).sqrt()
        return self.alpha[index], self.sigma[index]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy latents at `t` (B,), like `x0`."""
        alpha, sigma = self.alpha_sigma(t, x0.dtype)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    def to_x0_eps(self, z: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Convert the network's output at `t` (B,) to (x0, eps), both like `z`."""
        return to_x0_eps(z, output, *self.alpha_sigma(t), self.prediction)

    def grid(self, steps: int) -> Tensor:
        """The solver's timesteps (S,), ascending: t_i = (i + 1) * (T // S) - 1.

        Raises:
            GuidedCDError: `steps` is not in [1, T].
        """
        if not 1 <= steps <= len(self):
            raise GuidedCDError(f"a solver grid has 1 to {len(self)} steps, not {steps}.")
        return (torch.arange(steps, device=self.alpha.device) + 1) * (len(self) // steps) - 1

    def previous(self, t: Tensor, steps: int) -> Tensor:
        """The next cleaner timestep (B,) on a grid of `steps` points, max(t - T // S, 0)."""
        return (t - len(self) // steps).clamp(min=0)

    def ddim_step(self, x0: Tensor, eps: Tensor, t_next: Tensor) -> Tensor:
        """Latents at `t_next` (B,), alpha' x0 + sigma' eps: DDIM (eta 0) or, for flow models, Euler; like `x0`."""
        return self.add_noise(x0, eps, t_next)

    def boundary_conditions(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, each (B,) float32, of the consistency function f = c_skip z + c_out x0.

        VP models have LCM's scalings (timestep times 10, sigma_data 0.5); for flow models f = x0 is exact at sigma = 0.
        """
        if self.prediction == "flow":
            return torch.zeros_like(t, dtype=torch.float32), torch.ones_like(t, dtype=torch.float32)
        scaled = t.to(torch.float32) * TIMESTEP_SCALING
        total = scaled**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, scaled / total**0.5

    def consistency(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The consistency function f = c_skip z + c_out x0 at `t` (B,), like `z`."""
        c_skip, c_out = self.boundary_conditions(t)
        x0, _ = self.to_x0_eps(z, output, t)
        return expand(c_skip, z) * z + expand(c_out, z) * x0
