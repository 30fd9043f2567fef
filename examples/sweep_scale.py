"""Distil one student for each strength of an energy, and compare them in one table.

All runs share one latent store, which contains the gradients of the energy before they are scaled.
"""

from __future__ import annotations

import argparse

import guidedcd

QUICK = {
    "train": {"steps": 2, "batch_size": 2},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "evaluate": {"prompts": 2, "videos": 0, "teacher_omega": [2.0]},
}


def main() -> None:
    """Distil the students, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two runs of seconds; the videos are noise")
    args = parser.parse_args()

    options = QUICK if args.quick else {"train": {"steps": 100}}
    folders = []
    for strength in [0.8, 1.6] if args.quick else [0.4, 0.8, 1.6, 3.2]:
        energies = {"pta": {"relative": strength, "reference": "clean"}}
        run = guidedcd.Run.from_profile("shapes", energies=energies, rewards=[], name=f"pta-{strength}", **options)
        folders.append(guidedcd.distil(run))
    guidedcd.compare(folders)  # prints the table


if __name__ == "__main__":
    main()
