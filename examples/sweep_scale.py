"""Students of several energy strengths over one latent store, compared in one table.

The store keeps gradients without their strength, so that it is computed once for all of these runs.
"""

from __future__ import annotations

import argparse

from distil_shapes import QUICK

import guidedcd


def main() -> None:
    """Distil one student per strength, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two runs of a few seconds, whose videos are noise")
    quick = parser.parse_args().quick
    strengths, options = ([0.8, 1.6], QUICK) if quick else ([0.4, 0.8, 1.6, 3.2], {"train": {"steps": 100}})
    folders = []
    for strength in strengths:
        energies = {"pta": {"relative": strength, "reference": "clean"}}
        run = guidedcd.Run.from_profile("shapes", energies=energies, rewards=[], name=f"pta-{strength:g}", **options)
        folders.append(guidedcd.distil(run))
    guidedcd.compare(folders)


if __name__ == "__main__":
    main()
