"""An author's own energies and rewards in the arms of a proof. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from guidedcd.config.kinds import Chosen
from guidedcd.config.structure import unstructure
from guidedcd.errors import GuidedCDError
from guidedcd.proving.criteria import parse
from guidedcd.proving.proof import Claim, Proof, ProofArm, merged

KEYS = {"energy": "energies", "reward": "rewards"}


def with_components(proof: Proof, components: Sequence[Chosen]) -> Proof:
    """A proof whose arms are those without a component and with it, and whose claims are one for each metric.

    Args:
        proof: Its arms `against` are the ones to which each component is added.
        components: The energies and rewards.

    Raises:
        GuidedCDError: The proof names no arms for it, or a component has the name of an arm.
    """
    if not proof.against:
        raise GuidedCDError(f"the proof '{proof.title}' has no [author] with the arms to which a component is added.")
    arms = {name: proof.arms[name] for name in proof.against}
    claims = []
    for chosen in components:
        for base in proof.against:
            name = chosen.name if base == proof.against[0] else f"{chosen.name}+{base}"
            if name in proof.arms:
                raise GuidedCDError(f"an arm of the proof is called '{name}' already: give the component another name.")
            added = {KEYS[chosen.kind]: {chosen.name: unstructure(chosen.config)}}
            arms[name] = ProofArm(
                name=name,
                about=f"`{base}`, and the {chosen.kind} `{chosen.name}`",
                options=merged(proof.arms[base].options, added),
                steps=proof.arms[base].steps,
            )
            claims += [
                Claim(
                    id=f"{name}, {metric}",
                    claim=f"{chosen.name} raises {one.about}",
                    criteria=[parse(f"{metric}: {name} > {base}")],
                )
                for metric, one in proof.metrics.items()
            ]
    title = f"{' and '.join(chosen.name for chosen in components)} on the arms of: {proof.title}"
    return attrs.evolve(proof, title=title, arms=arms, claims=claims, without_meaning=())
