"""`Seen`, the input of an energy: values of one forward pass, without the network, its scale or the schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import attrs
from torch import Tensor

from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError


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
    """Signal level (B,), in (0, 1]; z = alpha x0 + sigma eps."""
    sigma: Tensor
    """Noise level (B,), in [0, 1)."""
    output: Tensor
    """The network's prediction, like z."""
    prediction: str
    """How to read `output`: "eps", "v" or "flow"."""
    captions: Sequence[str] = ()
    """Captions of the samples (B)."""
    records: Mapping[str, Mapping[str, Tensor]] = attrs.field(factory=dict)
    """Attention (B, N, F, F) by need (e.g. "temporal-attention:official") and by layer name; rows sum to 1."""
    decoder: Callable[[Tensor, Sequence[int] | None], Tensor] | None = None
    """Turns latents into pixels; called by `decode`."""
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
