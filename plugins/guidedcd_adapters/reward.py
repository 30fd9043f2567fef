"""The reward `energy:NAME`: minus an energy of the output, of the student's predicted clean latents.

Legend: B samples.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guidedcd import EnergyConfig, GuidedCDError, Seen, inside
from guidedcd.energies.gradients import EnergyTerm, blamed, energy_values, kept
from guidedcd.energies.traits import check_reference, check_traits, is_of_output, is_reference_free
from guidedcd_adapters import EnergyRewardConfig


class EnergyReward(nn.Module):
    """R = -E(seen, reference): `seen.x0` and `seen.guided` are both the student's prediction.

    The reference is what the energy compares with in training: the teacher's prediction with the caption at the same
    noise level, or the clip's clean latents.
    """

    reads = "latents"
    max_tokens = sys.maxsize

    def __init__(self, config: EnergyRewardConfig) -> None:
        """Build the energy.

        Raises:
            GuidedCDError: There is no energy of this name, or no reward can be made of it.
        """
        super().__init__()
        chosen = inside(config)
        assert chosen is not None and isinstance(chosen.config, EnergyConfig)
        self.energy, self.name, self.plugin = chosen.build(), chosen.name, chosen.component().plugin
        whose, options = str(chosen.component()), chosen.config
        check_traits(self.energy, options, whose)
        if not is_of_output(self.energy):
            raise GuidedCDError(
                f"{whose} reads a forward pass of the network, so that no reward can be made of it: the student's "
                f"prediction has none to differentiate. Guide the teacher with --energies {chosen.name}, or choose an "
                "energy of the output."
            )
        self.reference = None if is_reference_free(self.energy) else options.reference
        """What the energy compares with; see `guidedcd.plugins.optional.OptionalReward`."""
        if self.reference is not None:
            check_reference(options, chosen.name, whose)

    def count_tokens(self, text: str) -> int:
        """The number of words, although none is read."""
        return len(text.split())

    def forward(self, seen: Seen, captions: Sequence[str], reference: Seen | None) -> Tensor:
        """Minus the energy (B,), with a gradient in `seen.x0` where that has one."""
        has_gradient = torch.is_grad_enabled() and seen.x0.requires_grad
        other = None if reference is None else kept(self.energy, reference)
        term = EnergyTerm(name=self.name, energy=self.energy, reference=other, plugin=self.plugin)
        with blamed(term), torch.enable_grad():
            rewards = -energy_values(term, seen if has_gradient else seen.with_leaves())
        return rewards if has_gradient else rewards.detach()
