"""Write an animated picture: teacher and student at four steps, and the teacher at fifty.

    python docs/media/make_animation.py runs/NAME docs/media/shapes.webp

All three sample the same prompts from the same initial noise. The file is an animated WebP of at most 1 MB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import guidedcd
from guidedcd.data.media import enlarged, to_uint8

PROMPTS = (
    "a red circle moving left",
    "a blue square moving up",
    "a green triangle moving right",
    "a yellow star moving down",
)
LABEL, LINE, MOST_BYTES = 120, 20, 2**20


def sheet(rows: dict[str, list[np.ndarray]]) -> list[Image.Image]:
    """One image per frame: prompts in columns, arms in rows; each video is (F, H, W, 3) uint8."""
    videos = next(iter(rows.values()))
    frames, height, width, _ = videos[0].shape
    font = ImageFont.load_default(11)
    images = []
    for frame in range(frames):
        image = Image.new("RGB", (LABEL + len(videos) * (width + 4), LINE + len(rows) * (height + 4)), "white")
        draw = ImageDraw.Draw(image)
        for column, prompt in enumerate(PROMPTS):
            draw.text((LABEL + column * (width + 4), 3), prompt.removeprefix("a "), "black", font)
        for row, (label, arm) in enumerate(rows.items()):
            top = LINE + row * (height + 4)
            draw.text((4, top + height // 2 - 8), label, "black", font)
            for column, video in enumerate(arm):
                image.paste(Image.fromarray(video[frame]), (LABEL + column * (width + 4), top))
        images.append(image)
    return images


def main(arguments: list[str] | None = None) -> None:
    """Sample all arms and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run on the teacher `shapes`")
    parser.add_argument("out", type=Path, help="the animated WebP")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt; the next one's is one higher")
    parser.add_argument("--omega", type=float, default=2.0, help="guidance strength of the student and the teacher")
    options = parser.parse_args(arguments)

    prompts, seeds = list(PROMPTS), [options.seed + i for i in range(len(PROMPTS))]
    student, teacher = guidedcd.load_student(options.run), guidedcd.load_teacher("shapes")
    samples = {
        "teacher, 4 steps": teacher.sample(prompts, steps=4, seeds=seeds, omega=options.omega),
        "student, 4 steps": student(prompts, steps=4, seeds=seeds, omega=options.omega),
        "teacher, 50 steps": teacher.sample(prompts, steps=50, seeds=seeds, omega=options.omega),
    }
    images = sheet({name: [enlarged(to_uint8(video), 3) for video in videos] for name, videos in samples.items()})
    images[0].save(options.out, save_all=True, append_images=images[1:], duration=160, loop=0, quality=80, method=6)
    if options.out.stat().st_size > MOST_BYTES:
        sys.exit(f"{options.out} is larger than 1 MB.")


if __name__ == "__main__":
    main()
