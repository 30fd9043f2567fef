"""Distil with an energy of your own, a function of this file: no package and no entry point is needed."""

from __future__ import annotations

import argparse

from distil_shapes import QUICK
from torch import Tensor

import guidedcd


def brightness(seen: guidedcd.Seen, reference: guidedcd.Seen) -> Tensor:
    """Squared difference of the mean predicted latents of every frame, (B,): lower is closer to the reference."""
    means = [one.x0.mean(dim=(3, 4)) for one in (seen, reference)]  # (B, C, F)
    return ((means[0] - means[1]) ** 2).sum(dim=(1, 2))


def main() -> None:
    """Distil with `brightness`; the run records its source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds, whose videos are noise")
    options = QUICK if parser.parse_args().quick else {"train": {"steps": 100}}
    energies = {"brightness": (brightness, {"relative": 0.3, "reference": "clean"})}
    run = guidedcd.Run.from_profile("shapes", energies=energies, rewards=[], name="brightness", **options)
    folder = guidedcd.distil(run)
    videos = guidedcd.load_student(folder)("a red circle moving left", steps=4)
    print(f"{folder}: videos {tuple(videos.shape)}")


if __name__ == "__main__":
    main()
