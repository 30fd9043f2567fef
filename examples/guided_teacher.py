"""Steer the teacher itself towards the motion of a reference video, without any training."""

from __future__ import annotations

import argparse

import guidedcd


def main() -> None:
    """Sample a reference, then another prompt with and without its motion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four steps in place of fifty")
    parser.add_argument("--teacher", default="shapes", help='a teacher, such as "videocrafter2:model.ckpt"')
    arguments = parser.parse_args()
    steps = 4 if arguments.quick else 50
    teacher = guidedcd.load_teacher(arguments.teacher)
    reference = teacher.sample("a red circle moving left", steps=steps, seeds=[1])
    plain = teacher.sample("a blue square", steps=steps, seeds=[0])
    guided = teacher.sample(
        "a blue square", energies={"pta": {"relative": 0.1}}, reference=reference, steps=steps, seeds=[0]
    )
    print(f"videos {tuple(guided.shape)}; mean change by the energy {(guided - plain).abs().mean():.4f}")


if __name__ == "__main__":
    main()
