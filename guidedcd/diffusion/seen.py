"""`Seen`, the input of an energy: values of one forward pass, without the network, its scale or the schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import attrs
from torch import Tensor

from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError

if TYPE_CHECKING:
    from guidedcd.diffusion.schedule import NoiseSchedule


@documented
@attrs.define(eq=False, slots=False, kw_only=True)
class Seen:
    """One forward pass of a network, at one noise level per sample.

    `x0` and `eps` are the predicted clean latents and the predicted noise, both like `z`. For energies of the output,
    `guided` are the clean latents after classifier-free guidance, like `z`.
    Legend: B batch, C channels, F frames, H height and W width of the latents, N heads and positions.
    """

    z: Tensor
    """Noisy latents (B, C, F, H, W); differentiable when the engine takes a gradient."""
    t: Tensor
    """Training timesteps (B,), int64, 0 is clean."""
    alpha: Tensor
    """Signal level (B,), in [0, 1]; z = alpha x0 + sigma eps."""
    sigma: Tensor
    """Noise level (B,), in [0, 1]."""
    output: Tensor
    """The network's prediction, like z."""
    prediction: str
    """How to read `output`: "eps", "v" or "flow"."""
    captions: Sequence[str] = ()
    """Captions of the samples (B)."""
    records: Mapping[str, Mapping[str, Tensor]] = attrs.field(factory=dict)
    """What the network recorded, by need. Of "temporal-attention:LAYERS", attention (B, N, F, F) by layer name, whose
    rows sum to 1. Of "self-attention:BLOCK", "queries" and "keys" (B, N, F, h, w, D) of a block's video tokens, after
    norms and rotary embedding: N heads of width D, a grid of F x h x w tokens."""
    decoder: Callable[[Tensor, Sequence[int] | None], Tensor] | None = None
    """Turns latents into pixels; called by `decode`."""
    frames: int | None = None
    """Frames of the decoded video, of which an autoencoder may make several of each latent frame; None as many as
    latent frames."""
    timesteps: int = 1000
    """Number of the teacher's training timesteps; `t` is below it."""
    guided_output: Tensor | None = None
    """The prediction under classifier-free guidance, like z; for energies of the output only."""

    @cached_property
    def x0(self) -> Tensor:
        """Predicted clean latents, like z."""
        return self._converted[0]

    @cached_property
    def eps(self) -> Tensor:
        """Predicted noise, like z."""
        return self._converted[1]

    @cached_property
    def guided(self) -> Tensor:
        """Predicted clean latents after classifier-free guidance, like z; those of a reference are its `x0`.

        Raises:
            GuidedCDError: The energy is not one of the output, so that the prediction without the caption is unknown.
        """
        from guidedcd.diffusion.schedule import to_x0_eps

        if self.guided_output is None:
            raise GuidedCDError('`Seen.guided` exists for energies of the output only: set `through = "output"`.')
        return to_x0_eps(self.z, self.guided_output, self.alpha, self.sigma, self.prediction)[0]

    @cached_property
    def _converted(self) -> tuple[Tensor, Tensor]:
        from guidedcd.diffusion.schedule import to_x0_eps

        return to_x0_eps(self.z, self.output, self.alpha, self.sigma, self.prediction)

    def rows(self, start: int, stop: int) -> Seen:
        """The same values of the samples from `start` to before `stop`."""
        cut = slice(start, stop)
        return attrs.evolve(
            self,
            **{name: getattr(self, name)[cut] for name in ("z", "t", "alpha", "sigma", "output", "captions")},
            records={need: {name: maps[cut] for name, maps in some.items()} for need, some in self.records.items()},
            guided_output=None if self.guided_output is None else self.guided_output[cut],
        )

    def with_leaves(self) -> Seen:
        """A copy in which `x0` and `guided` are leaves, whose gradients the engine takes for energies of the output."""
        copy = attrs.evolve(self)
        for name in ("x0", "guided"):
            vars(copy)[name] = getattr(self, name).detach().requires_grad_(True)  # where `cached_property` keeps it
        return copy

    def decode(self, frames: Sequence[int] | None = None, *, guided: bool = False) -> Tensor:
        """The video (B, len(frames), 3, H, W) in [0, 1] of `x0`, or of `guided`; differentiable like these."""
        if self.decoder is None:
            raise RuntimeError("this teacher has no decoder")
        return self.decoder(self.guided if guided else self.x0, frames)


Decoder = Callable[[Tensor, Sequence[int] | None], Tensor]
"""From latents (B, C, F, H, W) and indices of frames, or None for all, to pixels."""


def seen_of_output(
    schedule: NoiseSchedule,
    z: Tensor,
    t: Tensor,
    output: Tensor,
    captions: Sequence[str] = (),
    decoder: Decoder | None = None,
    *,
    guided_output: Tensor | None = None,
    frames: int | None = None,
) -> Seen:
    """A forward pass that is over: latents, and what the network predicted for them.

    Args:
        schedule: Noise levels.
        z: Noisy latents (B, C, F, H, W).
        t: Their timesteps (B,).
        output: The network's prediction with the caption, like `z`.
        captions: B texts.
        decoder: Turns latents into pixels.
        guided_output: The prediction under classifier-free guidance, like `z`; `output` by default.
        frames: Frames of the decoded video, see `Seen.frames`.
    """
    alpha, sigma = (level.to(z.device) for level in schedule.alpha_sigma(t))
    return Seen(
        z=z,
        t=t,
        alpha=alpha,
        sigma=sigma,
        output=output,
        prediction=schedule.prediction,
        timesteps=len(schedule),
        captions=tuple(captions),
        decoder=decoder,
        frames=frames,
        guided_output=output if guided_output is None else guided_output,
    )


def seen_of_latents(
    latents: Tensor,
    t: Tensor,
    captions: Sequence[str] = (),
    decoder: Decoder | None = None,
    *,
    frames: int | None = None,
) -> Seen:
    """Known clean latents in the form of a forward pass without noise: `x0` and `guided` are the latents."""
    from torch import ones, zeros_like

    one = ones(len(latents), device=latents.device)
    zero = zeros_like(latents)
    return Seen(
        z=latents,
        t=zeros_like(t),
        alpha=one,
        sigma=zeros_like(one),
        output=zero,
        prediction="eps",
        captions=tuple(captions),
        decoder=decoder,
        frames=frames,
        guided_output=zero,
    )


def seen_of_prediction(
    schedule: NoiseSchedule,
    z: Tensor,
    t: Tensor,
    x0: Tensor,
    captions: Sequence[str] = (),
    decoder: Decoder | None = None,
    *,
    frames: int | None = None,
) -> Seen:
    """Predicted clean latents in the form of a forward pass: `x0` and `guided` are `x0`, with its gradient.

    Args:
        schedule: Noise levels.
        z: Noisy latents (B, C, F, H, W).
        t: Their timesteps (B,).
        x0: The prediction, like `z`.
        captions: B texts.
        decoder: Turns latents into pixels.
        frames: Frames of the decoded video, see `Seen.frames`.
    """
    from guidedcd.diffusion.schedule import expand

    alpha, sigma = (level.to(z.device) for level in schedule.alpha_sigma(t))
    eps = (z - expand(alpha, z) * x0) / expand(sigma, z).clamp_min(1e-6)
    seen = Seen(
        z=z,
        t=t,
        alpha=alpha,
        sigma=sigma,
        output=eps,
        prediction="eps",
        timesteps=len(schedule),
        captions=tuple(captions),
        decoder=decoder,
        frames=frames,
        guided_output=eps,
    )
    vars(seen).update(x0=x0, guided=x0, eps=eps)  # where `cached_property` keeps them
    return seen
