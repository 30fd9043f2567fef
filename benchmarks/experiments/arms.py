"""Train four arms of the proving ground over seeds: distillation alone, with the energy, with the rewards, with both.

    python benchmarks/experiments/arms.py --seeds 0,1,2 --device cuda --parallel 6 --out runs/arms -- --train.steps 600

`--teacher shapes-dit --energy x0-motion` trains students of the video transformer. Everything after `--` goes to every
`guidedcd train`. Unfinished runs are continued. Every student is evaluated on the same prompts, and a table of means
over seeds is printed and written to OUT/arms.json. `--tiny` takes a few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REWARDS = ["--rewards", "hps,clip,internv2"]
ARMS = ("cd", "energy", "rewards", "both")
TINY = [
    *("--preprocess.videos", "4", "--preprocess.draws-per-video", "2", "--solver.steps", "10"),
    *("--train.steps", "4", "--train.batch-size", "2", "--train.rollouts.videos", "0"),
    *("--evaluate.prompts", "4", "--evaluate.videos", "0", "--evaluate.teacher-steps", "4"),
]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--teacher", default="shapes")
    parser.add_argument("--energy", default="pta")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each run")
    parser.add_argument("--prompts", default="256", help="evaluation prompts per split; 0 leaves the runs' own")
    parser.add_argument("--evaluation-seeds", default="1")
    parser.add_argument("--teacher-omega", default=None, help="guidance strengths tried for the few-step teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--tiny", action="store_true", help="one seed, four steps: whether the script runs")
    parser.add_argument("rest", nargs="*", help="more flags of `guidedcd train`")
    options = parser.parse_args()
    if options.tiny:
        options.seeds, options.prompts = "0", "0"
        options.rest = [*TINY, *options.rest]
    return options


def flags_of(options: argparse.Namespace, arm: str) -> list[str]:
    """Flags of `guidedcd train` by which an arm differs from others, and its teacher."""
    energy = ["--energies", options.energy] if arm in ("energy", "both") else []
    return ["--teacher", options.teacher, *energy, *(REWARDS if arm in ("rewards", "both") else [])]


def run_guidedcd(arguments: list[str], log: Path, threads: int) -> float:
    """Run guidedcd with its output in `log`; returns the seconds it took."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "a") as handle:
        code = subprocess.call(
            [sys.executable, "-m", "guidedcd", *arguments], stdout=handle, stderr=handle, env=environment
        )
    if code:
        raise SystemExit(f"guidedcd {' '.join(arguments)} ended with {code}; see {log}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - began


def side_by_side(function: Callable[..., None], jobs: Sequence[tuple], devices: str, parallel: int) -> None:
    """Call function(*job, device) for every job, `parallel` at a time; comma-separated devices take turns."""
    listed = devices.split(",")
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda at: function(*at[1], listed[at[0] % len(listed)]), enumerate(jobs)))


def train_and_evaluate(options: argparse.Namespace, arm: str, seed: int) -> tuple[str, int, float]:
    """Train one arm with one seed, unless it is finished, and measure it."""
    folder, log = options.out / f"{arm}-{seed}", options.out / f"{arm}-{seed}.log"
    seconds = 0.0
    if not (folder / "report.html").exists():
        flags = ["train", *flags_of(options, arm), "--seed", str(seed), "--device", options.device]
        flags += ["--out", str(folder), "--name", f"{arm}-{seed}", *options.rest]
        seconds = run_guidedcd(flags, log, options.threads)
    if options.prompts != "0":
        extra = ["--teacher-omega", options.teacher_omega] if options.teacher_omega else []
        measure = ["evaluate", str(folder), "--prompts", options.prompts, "--seeds", options.evaluation_seeds, *extra]
        run_guidedcd([*measure, "--device", options.device], log, options.threads)
    return arm, seed, seconds


def main() -> None:
    """Train, measure, tabulate."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, int(seed)) for seed in options.seeds.split(",") for arm in options.arms.split(",")]
    with ThreadPoolExecutor(options.parallel) as pool:
        done = list(pool.map(lambda job: train_and_evaluate(options, *job), jobs))
    table: dict[str, dict[str, list[float]]] = {}
    for arm, seed, _ in done:
        evaluation = json.loads((options.out / f"{arm}-{seed}" / "evaluation.json").read_text())
        for row in evaluation["rows"]:
            if row["source"] != "measured":
                continue
            name = arm if row["name"] == "student" else f"{arm}: {row['label']}"
            for split, scores in row["scores"].items():
                for key, value in scores.items():
                    if value["mean"] is not None:
                        table.setdefault(name, {}).setdefault(f"{split}/{key}", []).append(value["mean"])
    (options.out / "arms.json").write_text(json.dumps({"seconds": done, "table": table}, indent=1))
    columns = sorted({key for scores in table.values() for key in scores})
    for name, scores in table.items():
        print(f"\n{name}")
        for key in columns:
            if values := scores.get(key):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                print(f"  {key:44s} {statistics.mean(values):8.3f} +- {spread:.3f}  ({len(values)} seeds)")
    print("\nseconds", {f"{arm}-{seed}": round(seconds) for arm, seed, seconds in done})


if __name__ == "__main__":
    main()
