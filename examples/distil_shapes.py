"""Distil the teacher `shapes`, which comes with guidedcd, and sample the student.

The run takes about four minutes on two CPU cores. If it is interrupted, start the script again: it continues.
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
    """Describe a run, plan it, distil the student, and sample it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for seconds only; the videos are noise")
    args = parser.parse_args()

    options = QUICK if args.quick else {"train": {"steps": 100}}
    run = guidedcd.Run.from_profile("shapes", energies={"pta": {"relative": 1.6}}, rewards=["hps", "clip"], **options)
    print(guidedcd.plan(run, cheaper=False))

    folder = guidedcd.distil(run)
    student = guidedcd.load_student(folder)
    videos = student(["a red circle moving left"], steps=4, seeds=[0])  # (B, F, 3, H, W) in [0, 1]
    print(f"{folder}: videos {tuple(videos.shape)} from {videos.min():.3f} to {videos.max():.3f}")


if __name__ == "__main__":
    main()
