"""The energy `jerk`. Legend: B batch, C channels, F frames, H and W latent size."""

from torch import Tensor

from guidedcd import GuidedCDError, Seen
from guidedcd_jerk import JerkConfig


class Jerk:
    """Mean squared difference between a sample's jerk and its reference's; lower is better.

    Jerk is the third temporal difference of the predicted clean latents. It is 0 for motion of constant speed or
    acceleration, and large for flicker and jumps.
    """

    needs: tuple[str, ...] = ()
    """No activations are recorded: the energy reads predicted latents only."""

    def __init__(self, config: JerkConfig) -> None:
        """Keep the options."""
        self.config = config

    def __call__(self, seen: Seen, reference: Seen) -> Tensor:
        """Energies (B,), differentiable in `seen.z`. The engine applies scale, fraction and sign."""
        if seen.x0.shape[2] < 4:
            raise GuidedCDError(f"energy 'jerk' needs videos of at least 4 frames, not {seen.x0.shape[2]}.")
        jerk, target = (x0.diff(n=3, dim=2) for x0 in (seen.x0, reference.x0))
        return (jerk - target).square().flatten(1).mean(dim=1)
