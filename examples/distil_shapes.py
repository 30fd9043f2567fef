"""Distil the teacher that ships with guidedcd, and sample the student: about four minutes on two cores."""

from __future__ import annotations

import argparse

import guidedcd

QUICK = {
    "train": {"steps": 2, "batch_size": 2},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "evaluate": {"prompts": 2, "videos": 0, "teacher_omega": [2.0]},
}


def main() -> None:
    """Describe a run, plan it, distil, and sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds, whose videos are noise")
    options = QUICK if parser.parse_args().quick else {"train": {"steps": 100}}
    run = guidedcd.Run.from_profile("shapes", energies={"pta": {"relative": 1.6}}, rewards=["hps", "clip"], **options)
    print(guidedcd.plan(run, cheaper=False))
    folder = guidedcd.distil(run)  # an interrupted run continues when the script is started again
    student = guidedcd.load_student(folder)
    videos = student(["a red circle moving left"], steps=4, seeds=[0])
    print(f"{folder}: videos {tuple(videos.shape)} from {videos.min():.3f} to {videos.max():.3f}")


if __name__ == "__main__":
    main()
