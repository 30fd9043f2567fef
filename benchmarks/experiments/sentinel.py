"""How often the sentinel raises an alarm: on runs with the rewards' weights as shipped, lowered, and far too large.

    python benchmarks/experiments/sentinel.py --device cuda --seeds 0,1,2,3,4 --parallel 10 --out runs/sentinel

Trains every arm with every seed on the proving ground, with a check every 25 steps that only warns, and prints how many
runs of each arm had an alarm, when the first one came, and which judge or statistic it named. Finished runs are kept.
`--tiny` takes a few steps.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path

from arms import TINY, run_guidedcd, side_by_side

from guidedcd.training.alarms import average
from guidedcd.training.sentinel import FILE, read_checks

REWARDS = {"hps": 1.2, "clip": 1.2, "internv2": 2.0}
"""The weights of the profile `shapes`."""
ARMS: dict[str, tuple[float, tuple[str, ...], float]] = {
    "quarter": (0.25, tuple(REWARDS), 1.0),
    "shipped": (1.0, tuple(REWARDS), 1.0),
    "tenfold": (10.0, tuple(REWARDS), 1.0),
    "thirtyfold": (30.0, tuple(REWARDS), 1.0),
    "thirtyfold-fast": (30.0, tuple(REWARDS), 3.0),
    "hps-thirtyfold": (30.0, ("hps",), 1.0),
    "hps-thirtyfold-fast": (30.0, ("hps",), 3.0),
    "clip-thirtyfold-fast": (30.0, ("clip",), 3.0),
}
"""By arm: factor of the weights, the rewards, and factor of the learning rate."""
LEARNING_RATE = 2e-4
"""Of the profile `shapes`."""


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--arms", default="quarter,shipped,tenfold,thirtyfold")
    parser.add_argument("--device", default="cpu", help="several, comma-separated, share the runs")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25, help="steps between checks")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no training begins")
    parser.add_argument("--out", type=Path, default=Path("runs/sentinel"))
    parser.add_argument("--tiny", action="store_true", help="one seed, four steps: whether the script runs")
    return parser.parse_args()


def train(options: argparse.Namespace, arm: str, seed: int, device: str) -> None:
    """One run, unless it is finished or the time is over."""
    folder = options.out / f"{arm}-{seed}"
    if (folder / "report.html").exists() or time.perf_counter() - options.began > options.budget:
        return
    factor, names, rate_factor = ARMS[arm]
    weights = {name: factor * REWARDS[name] for name in names}
    rewards = [text for name, weight in weights.items() for text in (f"--rewards.{name}.weight", str(weight))]
    settings = {
        "--preprocess.videos": "192",
        "--preprocess.draws-per-video": "8",
        "--train.steps": str(options.steps),
        "--train.batch-size": "16",
        "--train.optimizer.lr": str(rate_factor * LEARNING_RATE),
        "--train.sentinel.every": str(options.every),
        "--train.sentinel.prompts": str(options.prompts),
        "--evaluate.teacher-steps": "25",
        "--seed": str(seed),
        "--device": device,
        "--out": str(folder),
        "--name": folder.name,
        "--evaluate": "none",
    }
    if options.tiny:
        settings |= dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--train.sentinel.every": "1"}
        settings |= {"--train.sentinel.prompts": "8"}
        del settings["--evaluate.prompts"], settings["--evaluate.videos"]
    chosen = ["--rewards", ",".join(weights), *rewards]
    flags = [text for pair in settings.items() for text in pair]
    try:
        run_guidedcd(["train", *chosen, *flags], options.out / f"{folder.name}.log", options.threads)
    except SystemExit as error:
        print(f"{folder.name} failed: {str(error)[-300:]}", flush=True)


def report(options: argparse.Namespace) -> None:
    """Print the runs with an alarm, and the means of the last check."""
    print("\narm                   runs  alarms  first alarm at step            named")
    for arm in options.arms.split(","):
        runs = [read_checks(path)[1:] for path in sorted(options.out.glob(f"{arm}-*/{FILE}"))]
        firsts = [[line for line in lines if line["alarms"]][:1] for lines in runs]
        steps = ", ".join(str(first[0]["step"]) if first else "-" for first in firsts)
        named = sorted({text.split()[0] for first in firsts for line in first for text in line["alarms"]})
        print(f"{arm:21s} {len(runs):4d}  {sum(map(bool, firsts)):6d}  {steps:28s}  {', '.join(named)}")
        for kind in ("rewards", "judges", "drift"):
            ends = [lines[-1][kind] for lines in runs if lines]
            if not ends:
                continue
            means = {key: average(average(v for v in end[key] if v is not None) for end in ends) for key in ends[0]}
            print(f"  {kind} at the end: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))


def main() -> None:
    """Train and count."""
    options = parse()
    options.began = time.perf_counter()
    if options.tiny:
        options.seeds, options.arms = "0", "thirtyfold"
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, int(seed)) for seed in options.seeds.split(",") for arm in options.arms.split(",")]
    side_by_side(functools.partial(train, options), jobs, options.device, options.parallel)
    report(options)


if __name__ == "__main__":
    main()
