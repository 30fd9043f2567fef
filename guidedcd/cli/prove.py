"""`guidedcd prove`: claims tested by small distillation runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.command_line import command
from guidedcd.cli.flag_types import POSITIVE, POSITIVE_WHOLE, PathFlag
from guidedcd.cli.run_flags import read_components
from guidedcd.cli.train import usable
from guidedcd.config.kinds import DEFAULT_PROFILE, KINDS, Chosen
from guidedcd.config.sources import read_profile
from guidedcd.console import console, plain_table, print_table
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import path_name
from guidedcd.plugins.registry import Registry

if TYPE_CHECKING:
    from guidedcd.proving.proof import Proof

TEXT = Annotated[str | None, Parameter(negative="")]
SWITCH = Annotated[bool, Parameter(negative="")]


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def prove(
        *,
        arms: TEXT = None,
        claims: TEXT = None,
        seeds: TEXT = None,
        quick: SWITCH = False,
        list: SWITCH = False,
        ledger: SWITCH = False,
        proof: PathFlag = None,
        out: PathFlag = None,
        work: PathFlag = None,
        parallel: int = 1,
        budget: float | None = None,
        steps: int | None = None,
        device: str = "auto",
        flags: Any = None,
    ) -> None:
        """Test the paper's claims on the proving ground: train small students, compare them, write a ledger.

        Each arm and seed gives one result. Existing results are kept: the same command continues, and calls with other
        arms and seeds add to the same ledger. With --energies or --rewards the command compares your own
        components with the arms without them.

        Parameters
        ----------
        arms
            Only these arms, separated by commas; those of --claims are added.
        claims
            Only the arms that these claims compare, separated by commas.
        seeds
            Seeds, such as 0,1,2 or 0-9; by default those of the proof.
        quick
            The small version: four arms, one seed, about a quarter of an hour on two cores.
        list
            Print claims and arms, and compute nothing.
        ledger
            Write the ledger of the results that are in the folder, also of other machines, and compute nothing.
        proof
            A TOML file of arms, metrics and claims; by default that of the teacher of the default profile.
        out
            The folder of results and ledger; the default is proofs/full, proofs/quick or proofs/COMPONENT.
        work
            The folder of stores, runs and logs; by default work in the folder of results.
        parallel
            Trainings side by side.
        budget
            Seconds after which no training begins; the ledger of the existing results is still written.
        steps
            Training steps of every arm, in place of the proof's.
        device
            auto, cpu, cuda, cuda:N or mps.
        """
        chosen = [one for key in ("energies", "rewards") for one in read_components(key, flags, registry)]
        content = _proof(proof, quick, steps, chosen, registry)
        folder = out or Path("proofs") / _folder_name(chosen, quick)
        if list:
            return _print(content)
        if ledger:
            return _rewrite(content, folder)
        from guidedcd.proving.prove import ProofConfig, chosen_arms
        from guidedcd.proving.prove import prove as compute

        config = ProofConfig(
            out=folder,
            work=work or folder / "work",
            arms=chosen_arms(content, _names(arms), _names(claims)),
            seeds=_seeds(seeds) if seeds is not None else content.seeds,
            device=device,
            parallel=parallel,
            budget=float("inf") if budget is None else budget,
            command=command(),
        )
        usable(device)
        compute(content, config, registry)

    prove.__annotations__ |= _types(flags_class)
    app.command(prove)


def _types(flags_class: Any) -> dict[str, Any]:
    """The types of the command's parameters."""
    return {
        **dict.fromkeys(("arms", "claims", "seeds"), TEXT),
        **dict.fromkeys(("quick", "list", "ledger"), SWITCH),
        **dict.fromkeys(("proof", "out", "work"), PathFlag),
        "parallel": Annotated[int, POSITIVE_WHOLE],
        "budget": Annotated[float | None, POSITIVE],
        "steps": Annotated[int | None, POSITIVE_WHOLE],
        "flags": Annotated[flags_class, Parameter(name="*")],
    }


def _proof(
    path: Path | None, quick: bool, steps: int | None, components: Sequence[Chosen], registry: Registry
) -> Proof:
    """The proof of a file, or of the teacher of the default profile, as the flags change it."""
    from guidedcd.proving.authors import with_components
    from guidedcd.proving.proof import read_proof

    if path is None:
        teacher = read_profile(DEFAULT_PROFILE).select["teacher"][0][0]
        path = getattr(registry.get(KINDS["teacher"], teacher).config, "proof", None)
        if path is None:
            raise GuidedCDError(f"teacher '{teacher}' has no claims to test. Give a file with --proof.")
    proof = read_proof(path, quick=quick)
    if steps is not None:
        proof = proof.with_steps(steps)
    return with_components(proof, components) if components else proof


def _folder_name(components: Sequence[Chosen], quick: bool) -> str:
    """The name of the folder of results where none is given."""
    return "+".join(path_name(one.name) for one in components) or ("quick" if quick else "full")


def _rewrite(proof: Proof, folder: Path) -> None:
    """Write the ledger of a folder again."""
    from guidedcd.proving.prove import rewrite

    rewrite(proof, folder, command())


def _names(text: str | None) -> list[str] | None:
    """Names separated by commas, None where none are given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    """The seeds of "0,1,2" or "0-9".

    Raises:
        GuidedCDError: The text has another form.
    """
    seeds: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= 1000:
            raise GuidedCDError(f"--seeds takes numbers such as 0,1,2 or 0-9 (got '{shortened(text, 40)}').")
        seeds += range(first, last + 1)
    return sorted(set(seeds))


def _print(proof: Proof) -> None:
    """The arms and the claims of a proof."""
    table = plain_table("arm", "what it is")
    for arm in proof.arms.values():
        table.add_row(arm.name, arm.about)
    print_table(table)
    console.print()
    table = plain_table("claim", "the sentence", "criteria", "arms")
    for claim in proof.claims:
        criteria = "; ".join(one.text for one in claim.criteria)
        table.add_row(claim.id, claim.claim, criteria, ", ".join(claim.arms))
    print_table(table)
    if proof.without_meaning:
        console.print("\nclaims without a meaning here")
    for one in proof.without_meaning:
        console.print(f"{', '.join(one['ids'])}: {one['reason']}", markup=False)
