"""Compare a run that is killed and continued with an uninterrupted one: all objectives, on the proving ground.

    python benchmarks/experiments/resume.py --out runs/resume                  # CPU: must be equal bit for bit
    python benchmarks/experiments/resume.py --out runs/resume --device cuda    # GPU: with deterministic algorithms
    python benchmarks/experiments/resume.py --out runs/resume --tiny           # a few steps

Flags after `--` go to every `guidedcd train`. The script prints the largest difference of any logged number.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOCK = ("seconds", "samples_per_second", "memory_gb")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill", type=int, default=100, help="step whose checkpoint is written before the kill")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="four steps on four videos: whether the script runs")
    parser.add_argument("rest", nargs="*", help="more flags of `guidedcd train`")
    options = parser.parse_args()
    if options.tiny:
        options.steps, options.kill = 4, 2
        options.rest = ["--solver.steps", "10", *options.rest]
    return options


START = """
import sys, torch
if {gpu}:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
from guidedcd.cli import main
main(sys.argv[1:])
"""


def start(options: argparse.Namespace, name: str) -> subprocess.Popen:
    """A training run in a folder of its own, over a store that all of them share."""
    gpu = options.device != "cpu"
    flags = ["train", "--energies", "pta", "--rewards", "hps,clip,internv2", "--out", str(options.out / name)]
    flags += ["--store", str(options.out / "store"), "--device", options.device, "--name", "resume"]
    videos = "4" if options.tiny else "8"
    flags += ["--preprocess.videos", videos, "--preprocess.draws-per-video", "4", "--train.log-every", "1"]
    flags += ["--train.steps", str(options.steps), "--train.checkpoint.every", str(options.kill)]
    flags += ["--train.batch-size", str(options.batch_size), "--evaluate.prompts", "3", "--evaluate.videos", "0"]
    with open(options.out / f"{name}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", START.format(gpu=gpu), *flags, *options.rest],
            stdout=log,
            stderr=log,
            env={"OMP_NUM_THREADS": "1", **os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        )


def wait_for(process: subprocess.Popen, name: str, options: argparse.Namespace) -> None:
    """Wait for a run, and stop if it failed."""
    if process.wait():
        raise SystemExit(f"{name} failed:\n{(options.out / f'{name}.log').read_text()[-3000:]}")


def numbers(folder: Path) -> list[dict[str, float]]:
    """The lines of the log, without times and memory."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(CLOCK)} for line in lines]


def main() -> None:
    """Run, kill, continue, compare."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    wait_for(start(options, "straight"), "straight", options)
    print(f"straight after {time.perf_counter() - began:.0f} s", flush=True)
    process = start(options, "killed")
    checkpoint = options.out / "killed" / "checkpoints" / f"step-{options.kill:06d}"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (options.out / "killed" / "student").exists():
        raise SystemExit("the run ended before it was killed")
    print(f"killed at step {len(numbers(options.out / 'killed'))}", flush=True)
    wait_for(start(options, "killed"), "killed", options)
    one, other = numbers(options.out / "straight"), numbers(options.out / "killed")
    if [line.keys() for line in one] != [line.keys() for line in other] or len(one) != options.steps:
        raise SystemExit(f"the logs have different lines: {len(one)} and {len(other)}")
    difference = max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in a)
    result = "equal bit for bit" if one == other else f"largest difference {difference:.3g}"
    print(f"{options.steps} steps on {options.device}: {result}, {time.perf_counter() - began:.0f} s", flush=True)
    (options.out / "resume.json").write_text(json.dumps({"equal": one == other, "largest_difference": difference}))


if __name__ == "__main__":
    main()
