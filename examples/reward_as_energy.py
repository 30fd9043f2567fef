"""Use a reward as an energy: its gradient steers the teacher, and a student is distilled from the steered teacher."""

from __future__ import annotations

import argparse

from torch import Tensor

import guidedcd

QUICK = {
    "train": {"steps": 2, "batch_size": 2},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "evaluate": {"prompts": 2, "videos": 0, "teacher_omega": [2.0]},
}


def colourfulness(frames: Tensor) -> Tensor:
    """Rewards (B,) of frames (B, F, 3, H, W) in [0, 1]: the mean standard deviation over the three colours."""
    return frames.std(dim=2).mean(dim=(1, 2, 3))


class Colourful:
    """The negative reward of the first and last predicted frame. Any frozen network can take its place."""

    needs = ()
    config = guidedcd.EnergyConfig(relative=0.3, reference="clean")

    def __call__(self, seen: guidedcd.Seen, reference: guidedcd.Seen) -> Tensor:
        """Energies (B,), which do not depend on the reference."""
        last = seen.z.shape[2] - 1
        return -colourfulness(seen.decode([0, last]))  # decoding more frames takes more memory


def main() -> None:
    """Steer the teacher, then distil a student with the same energy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for seconds only; the videos are noise")
    args = parser.parse_args()

    energies, steps = {"colourful": Colourful()}, 4 if args.quick else 50
    teacher = guidedcd.load_teacher("shapes")
    plain = teacher.sample("a red circle moving left", steps=steps)
    steered = teacher.sample("a red circle moving left", energies=energies, reference=plain, steps=steps)
    print(f"reward {colourfulness(plain).item():.4f} without the energy, {colourfulness(steered).item():.4f} with it")

    options = QUICK if args.quick else {"train": {"steps": 100}}
    run = guidedcd.Run.from_profile("shapes", energies=energies, rewards=[], name="colourful", **options)
    print(guidedcd.distil(run))


if __name__ == "__main__":
    main()
