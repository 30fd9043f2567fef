"""Sample a published student: T2V-Turbo's unet_mg.pt with VideoCrafter2's model.ckpt, on a GPU.

Without these files, the script prints which are missing. --quick only checks that they exist.
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
    parser.add_argument("--quick", action="store_true", help="only check that the files exist")
    args = parser.parse_args()

    missing = [str(path) for path in (args.student, args.base) if not path.is_file()]
    if missing:
        print(f"missing: {', '.join(missing)}")
        return
    if args.quick:
        print("both files exist")
        return
    student = guidedcd.load_student(args.student, teacher=f"videocrafter2:{args.base}", dtype="float16")
    student.accelerate()
    videos = student("a corgi runs along a beach at sunset", steps=4, seeds=[0], omega=7.5, scale=500)
    print(f"videos {tuple(videos.shape)}")


if __name__ == "__main__":
    main()
