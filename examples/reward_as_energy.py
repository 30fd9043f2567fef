"""Use an image reward as an energy: its gradient steers the teacher, instead of training the student."""

from __future__ import annotations

import argparse

import torch
from distil_shapes import QUICK
from torch import Tensor

import guidedcd


class Colourful:
    """Minus a reward of two predicted frames: the standard deviation over colours, which any frozen scorer may replace.

    Args:
        frames: Which frames are decoded; decoding is what costs memory.
    """

    needs = ()
    config = guidedcd.EnergyConfig(relative=0.3, reference="clean")

    def __init__(self, frames: tuple[int, ...] = (0, -1)) -> None:
        """Take the frames."""
        self.frames = frames

    def reward(self, frames: Tensor) -> Tensor:
        """Rewards (B,) of frames (B, F, 3, H, W) in [0, 1]."""
        return frames.std(dim=2).mean(dim=(1, 2, 3))

    def __call__(self, seen: guidedcd.Seen, reference: guidedcd.Seen) -> Tensor:
        """Energies (B,); the reference is not needed."""
        count = seen.z.shape[2]
        return -self.reward(seen.decode([frame % count for frame in self.frames]))


def main() -> None:
    """Steer the teacher, then distil with the same energy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds; the videos are noise")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    teacher = guidedcd.load_teacher("shapes")
    energy, prompt, steps = Colourful(), "a red circle moving left", 4 if quick else 50
    plain = teacher.sample(prompt, steps=steps)
    guided = teacher.sample(prompt, energies={"colourful": energy}, reference=plain, steps=steps)
    print(f"reward {energy.reward(plain).item():.4f} without the energy, {energy.reward(guided).item():.4f} with it")
    options = QUICK if quick else {"train": {"steps": 100}}
    run = guidedcd.Run.from_profile("shapes", energies={"colourful": energy}, rewards=[], name="colourful", **options)
    print(guidedcd.distil(run))


if __name__ == "__main__":
    main()
