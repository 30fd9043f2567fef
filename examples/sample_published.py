"""Sample a student that others published: T2V-Turbo's unet_mg.pt on VideoCrafter2's model.ckpt.

Without files, or with --quick, the script prints what it needs and ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import guidedcd


def main() -> None:
    """Load the two files and sample one video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", type=Path, default=Path("unet_mg.pt"))
    parser.add_argument("--base", type=Path, default=Path("model.ckpt"))
    parser.add_argument("--quick", action="store_true", help="only check that the files are there")
    arguments = parser.parse_args()
    missing = [str(file) for file in (arguments.student, arguments.base) if not file.is_file()]
    if missing or arguments.quick:
        print(f"files not found: {', '.join(missing)}" if missing else "both files are there")
        return
    student = guidedcd.load_student(arguments.student, teacher=f"videocrafter2:{arguments.base}", dtype="float16")
    student.accelerate()
    videos = student("a corgi runs along a beach at sunset", steps=4, seeds=[0], omega=7.5, scale=500)
    print(f"videos {tuple(videos.shape)}")


if __name__ == "__main__":
    main()
