"""Distil with an energy of your own: a function in this file, without a package."""

from __future__ import annotations

import argparse

from torch import Tensor

import guidedcd

QUICK = {
    "train": {"steps": 2, "batch_size": 2},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "evaluate": {"prompts": 2, "videos": 0, "teacher_omega": [2.0]},
}


def brightness(seen: guidedcd.Seen, reference: guidedcd.Seen) -> Tensor:
    """Squared difference of each frame's mean predicted latents, (B,); lower is closer to the reference."""
    sample_mean = seen.x0.mean(dim=(3, 4))  # (B, C, F)
    reference_mean = reference.x0.mean(dim=(3, 4))
    return (sample_mean - reference_mean).square().sum(dim=(1, 2))


def main() -> None:
    """Distil with `brightness`, whose source the run records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for seconds only; the videos are noise")
    args = parser.parse_args()

    options = QUICK if args.quick else {"train": {"steps": 100}}
    energies = {"brightness": (brightness, {"relative": 0.3, "reference": "clean"})}
    run = guidedcd.Run.from_profile("shapes", energies=energies, rewards=[], name="brightness", **options)
    folder = guidedcd.distil(run)

    student = guidedcd.load_student(folder)
    videos = student("a red circle moving left", steps=4)
    print(f"{folder}: videos {tuple(videos.shape)}")


if __name__ == "__main__":
    main()
