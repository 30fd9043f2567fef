"""Training steps at VideoCrafter2's size (1.4 B parameters, 320x512, 16 frames), with random weights and batches.

    python benchmarks/training.py --out train.json                     # one GPU
    python benchmarks/training.py --processes 2 --only parallel        # two: DDP and FSDP2 against one of them
    python benchmarks/training.py --tiny                               # the same on a CPU, in seconds

It calls the trainer's own step. Every figure is printed when it is known, with that of the official code beside it;
one that fails says why, and the others go on. Seconds are medians after warm-up; GB are peaks of allocated memory in
units of 2^30 bytes, as in the official figures.

Figures are named WHAT/FAST, where FAST is a value of --train.fast.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from training_parallel import PARALLEL, parallel_figures
from training_steps import STEPS, free, profile, reward_figure, sample_figure, step_figure

OFFICIAL = {
    "cd": "1.02 s (+0.22 s of gc), 29.4 GB with checkpointing",
    "all": "1.34 s (+0.27 s of gc), 50.3 GB",
    "sample": "0.53 s, 4.3 GB",
}
ORDER = (
    *("all-most-internv2/graphs", "all-most/layers", "cd/layers", "all/layers", "cd-checkpointed/layers"),
    *("all-checkpointed/layers", "cd-most/layers", "lora-checkpointed/layers", "all-temporal/layers"),
    *("cd-8bit-checkpointed/layers", "reward-hps", "reward-clip", "reward-internv2", "sample/layers"),
    *("cd/blocks", "cd-checkpointed/blocks", "all/blocks", "all-temporal/blocks", "all-checkpointed/blocks"),
    *("cd/no", "cd-checkpointed/no", "all/no", "cd-average-checkpointed/layers"),
)
"""What is measured when nothing is chosen; `cd-float32-masters-only` is asked for by name."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="figures, comma-separated, '*' allowed: cd/*,reward-*,parallel")
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every figure")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which no figure is begun")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="GPUs for the figures named parallel-*")
    parser.add_argument("--fast", default="layers", help="--train.fast of the figures named parallel-*")
    parser.add_argument("--profile", help="print a table of operations of this figure instead, e.g. cd/layers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    return parser.parse_args(arguments)


class Lines:
    """Figures as they become known, on the terminal and in the file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began, self.rows = options, time.perf_counter(), []
        gpu = options.device.startswith("cuda")
        self.about = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if gpu else "cpu"}

    def left(self) -> float:
        """Seconds until nothing more is begun."""
        return self.options.budget - (time.perf_counter() - self.began)

    def add(self, name: str, **values: Any) -> None:
        """Tell one figure."""
        official = OFFICIAL.get(name.split("/")[0].split("-")[0], "-")
        self.rows.append(
            {"figure": name, **values, "official": official, "at": round(self.options.budget - self.left())}
        )
        said = ", ".join(f"{key} {value}" for key, value in values.items() if key != "times_s")
        print(f"{name:32s} {said}  [official: {official}]", flush=True)
        if self.options.out:
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            self.options.out.write_text(json.dumps({**self.about, "figures": self.rows}, indent=1) + "\n")

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one figure, unless the time is over; a failure is told and stops nothing else."""
        if self.left() <= 0:
            return self.add(name, left_out="the time is over")
        try:
            self.add(name, **measure())
        except Exception as error:
            traceback.print_exc()
            self.add(name, failed=f"{type(error).__name__}: {str(error)[:300]}")
        free()


def chosen(names: tuple[str, ...], only: str) -> Iterator[str]:
    """The figures that are asked for; all of `names` when none is."""
    extra = tuple(f"{what}/{fast}" for what in STEPS for fast in ("no", "layers", "graphs", "blocks", "blocks-tuned"))
    for name in dict.fromkeys((*names, *(extra if only else ()))):
        if asked(name, only):
            yield name


def asked(name: str, only: str) -> bool:
    """Whether a figure is asked for: its name is one of the words of `only`, '*' allowed; all are without words."""
    words = [word for word in only.split(",") if word]
    return not words or any(fnmatch.fnmatch(name, word) for word in words)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for."""
    options = parse(arguments)
    if options.profile:
        return profile(options.profile, options)
    lines = Lines(options)
    wanted = [n for n in PARALLEL if any(asked(said, options.only) for said in ("parallel", n, f"{n}/{options.fast}"))]
    if options.processes > 1 and wanted:
        parallel_figures(lines, options, wanted)
    for name in chosen(ORDER, options.only):
        kind = name.split("-")[0].split("/")[0]
        if kind == "reward":
            lines.attempt(name, lambda name=name: reward_figure(name.removeprefix("reward-"), options))
        elif kind == "sample":
            lines.attempt(name, lambda name=name: sample_figure(name, options))
        else:
            lines.attempt(name, lambda name=name: step_figure(name, options))
    print(f"done after {options.budget - lines.left():.0f} s", flush=True)


if __name__ == "__main__":
    main()
