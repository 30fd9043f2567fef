"""Steer the teacher towards the motion of a reference video, without training."""

from __future__ import annotations

import argparse

import guidedcd


def main() -> None:
    """Sample a reference video, then another prompt with and without its motion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 steps instead of 50")
    parser.add_argument("--teacher", default="shapes", help='a teacher, such as "videocrafter2:model.ckpt"')
    args = parser.parse_args()

    steps = 4 if args.quick else 50
    teacher = guidedcd.load_teacher(args.teacher)
    reference = teacher.sample("a red circle moving left", steps=steps, seeds=[1])  # (1, F, 3, H, W) in [0, 1]
    plain = teacher.sample("a blue square", steps=steps, seeds=[0])
    guided = teacher.sample(
        "a blue square", energies={"pta": {"relative": 0.1}}, reference=reference, steps=steps, seeds=[0]
    )
    print(f"videos {tuple(guided.shape)}: the energy changed pixels by {(guided - plain).abs().mean():.4f} on average")


if __name__ == "__main__":
    main()
