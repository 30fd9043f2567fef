"""What every energy does on the proving ground: to the teacher that it guides, and to students over seeds.

    python benchmarks/experiments/energies.py dose --device cuda --out runs/dose
    python benchmarks/experiments/energies.py students --device cuda --seeds 0,1,2 --parallel 10 --out runs/students
    python benchmarks/experiments/energies.py report --out runs/students

`dose` samples the teacher with each energy at several strengths; the reference of a prompt is the true video of it.
`students` trains every arm with every seed, samples each student with the same prompts and noise, and compares arms
with `--against` (without guidance by default, with the same rewards), paired by prompt and seed. Motion is judged on
intact videos, because torn objects count as fast. Each student has a process of its own, which trains, samples and
judges it and writes OUT/ARM-SEED.json; students that have this file are finished. `report` prints the comparison of
all files in OUT. `--tiny` takes a few steps. `dose` writes OUT/results.json. `--teacher shapes-dit` measures the video
transformer; give it `--energies` or `--arms` without `pta`, which reads attention over frames.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from arms import run_guidedcd, side_by_side

import guidedcd
from guidedcd.evaluation.bootstrap import estimate, over_seeds, paired
from guidedcd.plugins.registry import load_plugins
from guidedcd.proving import intervals

QUARTER = [
    *("--rewards", "hps,clip,internv2", "--rewards.hps.weight", "0.3"),
    *("--rewards.clip.weight", "0.3", "--rewards.internv2.weight", "0.5"),
]
"""Rewards at a quarter of their default weights: at the full weights they set the motion by themselves."""
GUIDANCE = {
    "none": [],
    "pta": ["--energies", "pta"],
    "x0-motion": ["--energies", "x0-motion"],
    "dynamics": ["--energies", "dynamics"],
    "dynamics-clean": ["--energies", "dynamics", "--energies.dynamics.reference", "clean"],
    "saturation": ["--energies", "saturation"],
}
"""Arms without rewards; with them the name ends in `+rewards`. `--arm NAME=FLAGS` adds one."""
TRAIN = [
    *("--preprocess.videos", "192", "--preprocess.draws-per-video", "8", "--train.steps", "300"),
    *("--train.batch-size", "16", "--train.rollouts.videos", "0", "--train.optimizer.lr", "1e-4"),
]
"""Settings of all arms: no videos of the student's own in training, whose rewards hide an energy."""
TINY = [
    *("--preprocess.videos", "4", "--preprocess.draws-per-video", "2", "--solver.steps", "10"),
    *("--train.steps", "4", "--train.batch-size", "2", "--train.rollouts.videos", "0"),
]
NO_EVALUATION = ["--evaluate", "none"]
KEYS = ("all", "motion", "speed-class", "background", "intact", "intact-speed", "intact-dynamic", "misfit")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dose", "students", "student", "report"))
    parser.add_argument("--teacher", default="shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/energies"))
    parser.add_argument("--device", default="cpu", help="several, comma-separated, share the students")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--prompts", type=int, default=256, help="prompts that name a motion; half as many do not")
    parser.add_argument("--prompt-seed", type=int, default=71, help="other prompts than those that chose a setting")
    parser.add_argument("--energies", default="pta,x0-motion,dynamics,saturation", help="of `dose`")
    parser.add_argument("--doses", default="0.003,0.01,0.03,0.1,0.3,1", help="strengths `relative` of `dose`")
    parser.add_argument("--steps", type=int, default=25, help="teacher steps of `dose`")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=FLAGS", help="one more arm of `students`")
    parser.add_argument("--arms", help="comma-separated: only these arms of `students`")
    parser.add_argument("--against", default="none", help="the arm without guidance")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no training begins")
    parser.add_argument("--tiny", action="store_true", help="few prompts and steps: whether the script runs")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.rest = sys.argv[end + 1 :]  # after `--`: more flags of `guidedcd train`
    if options.tiny:
        options.seeds, options.prompts, options.steps = "0", 4, 4
        options.rest = [*TINY, *options.rest]
    return options


def prompts(count: int, seed: int) -> dict[str, list]:
    """Prompts with a named motion, and half as many without."""
    from guidedcd_shapes.prompts import evaluation_prompts

    without = evaluation_prompts(count // 2, seed + 1, "no-motion")
    return {"motion": evaluation_prompts(count, seed, "full"), "no-motion": without}


def judge(videos: torch.Tensor, texts: list) -> dict[str, list[float]]:
    """Values of the oracle by prompt, NaN where one does not apply."""
    component = load_plugins().get("metric", "shapes-oracle")
    values = component.build(component.config())(videos, texts)
    return {key: values[key].tolist() for key in KEYS}


def mean(values: list[float]) -> float:
    """The mean of the values that are not NaN."""
    return estimate(values, resamples=1).mean


def dose(options: argparse.Namespace) -> list[dict]:
    """The teacher with every energy at every strength; one row for each."""
    from guidedcd_shapes import drawing
    from guidedcd_shapes.prompts import truth

    texts = prompts(options.prompts, options.prompt_seed)["motion"]
    references = drawing.render(truth(texts), generator=torch.Generator().manual_seed(0))
    teacher = guidedcd.load_teacher(options.teacher, device=options.device)
    settings = [
        (None, 0.0),
        *((name, r) for name in options.energies.split(",") for r in map(float, options.doses.split(","))),
    ]
    rows = []
    for name, relative in settings:
        began, pooled = time.perf_counter(), {key: [] for key in KEYS}
        for seed in map(int, options.seeds.split(",")):
            videos = teacher.sample(
                [prompt.text for prompt in texts],
                {name: {"relative": relative}} if name else None,
                references.to(options.device) if name else None,
                options.steps,
                [seed * 100_000 + i for i in range(len(texts))],
                batch=128,
            )
            for key, values in judge(videos, texts).items():
                pooled[key] += values
        row = {"energy": name or "none", "relative": relative, **{key: mean(pooled[key]) for key in KEYS}}
        rows.append(row)
        numbers = " ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "energy")
        print(f"{row['energy']:12s} {numbers}  {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def arms_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Flags of `guidedcd train` by arm."""
    guidance = dict(GUIDANCE)
    for text in options.arm:
        name, _, flags = text.partition("=")
        guidance[name] = flags.split()
    arms = guidance | {f"{name}+rewards": [*flags, *QUARTER] for name, flags in guidance.items()}
    return {name: arms[name] for name in options.arms.split(",")} if options.arms else arms


def settings(rest: list[str]) -> list[str]:
    """The settings of all arms, with the flags of the command line in place of those that they change."""
    flags = dict(zip(TRAIN[::2], TRAIN[1::2], strict=True)) | dict(zip(rest[::2], rest[1::2], strict=True))
    return [text for pair in flags.items() for text in pair]


def student(options: argparse.Namespace) -> None:
    """Train, sample and judge one student: the one arm in `--arms` with the one seed in `--seeds`."""
    (arm, flags), seed = next(iter(arms_of(options).items())), int(options.seeds)
    folder, log = options.out / f"{arm}-{seed}", options.out / f"{arm}-{seed}.log"
    command = ["train", "--teacher", options.teacher, *flags, "--seed", str(seed), "--device", options.device]
    command += ["--out", str(folder), "--name", folder.name, *NO_EVALUATION, *settings(options.rest)]
    run_guidedcd(command, log, options.threads)
    torch.set_num_threads(options.threads)
    network = guidedcd.load_student(folder, device=options.device)
    values = {}
    for split, texts in prompts(options.prompts, options.prompt_seed).items():
        videos = network([prompt.text for prompt in texts], 4, list(range(len(texts))), batch=128)
        values[split] = judge(videos.cpu(), texts)
    path = options.out / f"{arm}-{seed}.json"
    path.with_suffix(".part").write_text(json.dumps({"arm": arm, "seed": seed, "flags": flags, "values": values}))
    path.with_suffix(".part").replace(path)


def start(options: argparse.Namespace, arm: str, seed: int, device: str) -> None:
    """Run `student` in a process of its own, unless it is finished or the time is over."""
    path = options.out / f"{arm}-{seed}.json"
    if path.exists() or time.perf_counter() - options.began > options.budget:
        return
    command = [sys.executable, __file__, "student", "--arms", arm, "--seeds", str(seed), "--device", device]
    for name in ("teacher", "out", "prompts", "prompt_seed", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for text in options.arm:
        command += ["--arm", text]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    with open(path.with_suffix(".log"), "a") as log:
        code = subprocess.call([*command, "--", *options.rest], stdout=log, stderr=log, env=environment)
    outcome = f"failed; see {log.name}" if code else "is finished"
    print(f"{arm}-{seed} {outcome} after {time.perf_counter() - options.began:.0f} s", flush=True)


def students(options: argparse.Namespace) -> None:
    """Train and judge all arms."""
    # Runs with the same seed share a store, and wait for the one that fills it.
    jobs = [(arm, int(seed)) for seed in options.seeds.split(",") for arm in arms_of(options)]
    side_by_side(functools.partial(start, options), jobs, options.device, options.parallel)
    report(options)


def report(options: argparse.Namespace) -> None:
    """Print means over seeds, and differences to the arm without guidance, with 95 % intervals."""
    values: dict[str, dict[int, dict[str, dict[str, list[float]]]]] = {}
    for path in sorted(options.out.glob("*-*.json")):
        row = json.loads(path.read_text())
        values.setdefault(row["arm"], {})[row["seed"]] = row["values"]
    against = options.against
    for arm, by_seed in values.items():
        base = values.get(f"{against}+rewards" if arm.endswith("+rewards") else against, {})
        for split in next(iter(by_seed.values())):
            print(f"\n{arm}, prompts {split}, {len(by_seed)} seeds")
            for key in KEYS:
                means = [mean(by_seed[seed][split][key]) for seed in by_seed]
                line = f"  {key:15s} {statistics.fmean(means):7.3f}  [" + " ".join(f"{m:.3f}" for m in means) + "]"
                shared = [seed for seed in by_seed if seed in base]
                if base is not by_seed and shared and not any(map(math.isnan, means)):
                    line += difference([(by_seed[seed][split][key], base[seed][split][key]) for seed in shared])
                print(line)


def difference(pairs: list[tuple[list[float], list[float]]]) -> str:
    """The difference of two arms: the mean, and intervals over seeds (Student's t) and over prompts (bootstrap).

    The latter is of the prompts to which the value applies in both arms.
    """
    differences = [mean(ours) - mean(theirs) for ours, theirs in pairs]
    of_seeds = intervals.over_seeds(differences)
    text = f"  {of_seeds.mean:+.3f}"
    if of_seeds.n > 1:
        text += f"  seeds {of_seeds.low:+.3f} to {of_seeds.high:+.3f}"
    over_prompts = paired(*(over_seeds([pair[i] for pair in pairs]) for i in range(2)))
    return text + f"  prompts {over_prompts.mean:+.3f}: {over_prompts.low:+.3f} to {over_prompts.high:+.3f}"


def main() -> None:
    """Measure and write OUT/results.json."""
    options = parse()
    options.began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what != "dose":
        {"students": students, "student": student, "report": report}[options.what](options)
        return
    path = options.out / "results.json"
    results = {"command": sys.argv[1:], "torch": torch.__version__, "results": dose(options)}
    path.write_text(json.dumps(results, indent=1))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
