"""Training steps at VideoCrafter2's size (1.4 B parameters, 320x512, 16 frames), with random weights and batches.

    python benchmarks/training.py --out training.json                  # one GPU
    python benchmarks/training.py --processes 2 --only parallel        # two GPUs: DDP and FSDP2 against one of them
    python benchmarks/training.py --tiny                               # a CPU, tiny networks
    python benchmarks/training.py --profile cd/layers                  # a table of operations of one step
    python benchmarks/training.py --count --tiny --only cd/no          # how many operations a step launches

It calls the trainer's own step. Rows are named WHAT/FAST, where FAST is a value of --train.fast.
"""

from __future__ import annotations

from collections.abc import Iterator

import harness
from training_parallel import ALONE, PARALLEL, measure_parallel
from training_steps import STEPS, count_step, measure_reward, measure_sample, measure_step, profile

ORDER = (
    *("all-most-internv2/graphs", "all-most/layers", "cd/layers", "all/layers", "cd-checkpointed/layers"),
    *("all-checkpointed/layers", "cd-most/layers", "lora-checkpointed/layers", "all-temporal/layers"),
    *("cd-8bit-checkpointed/layers", "reward-hps", "reward-clip", "reward-internv2", "sample/layers"),
    *("cd/blocks", "cd-checkpointed/blocks", "all/blocks", "all-temporal/blocks", "all-checkpointed/blocks"),
    *("cd/no", "cd-checkpointed/no", "all/no", "cd-average-checkpointed/layers"),
)
"""What is measured without --only, the most important first."""
FAST = ("no", "layers", "graphs", "blocks", "blocks-tuned")


def rows(only: str) -> Iterator[str]:
    """The rows to measure; --only selects among all combinations, also those that are not in `ORDER`."""
    others = [f"{what}/{fast}" for what in STEPS for fast in FAST] if only else []
    for name in dict.fromkeys((*ORDER, *others)):
        if harness.selected(name, only):
            yield name


def main(arguments: list[str] | None = None) -> None:
    """Measure what is selected."""
    parser = harness.parser(__doc__, budget=540, repeats=7, warm_up=3)
    parser.add_argument("--processes", type=int, default=1, help="GPUs for the rows named parallel-*")
    parser.add_argument("--fast", default="layers", help="--train.fast of the rows named parallel-*")
    parser.add_argument("--profile", metavar="ROW", help="profile this row's step instead, such as cd/layers")
    parser.add_argument("--count", action="store_true", help="count the operations of steps instead of timing them")
    options = parser.parse_args(arguments)
    if options.profile:
        return profile(options.profile, options)
    recorder = harness.Recorder(options, "training")
    parallel = [name for name in PARALLEL if harness.selected(f"{name}/{options.fast}", options.only)]
    if options.processes > 1 and (parallel or harness.selected(ALONE, options.only)):
        measure_parallel(recorder, options, parallel)
    measures = {"reward": measure_reward, "sample": measure_sample}
    for name in rows(options.only):
        what = name.replace("/", "-").partition("-")[0]
        if options.count and what in measures:
            continue
        measure = count_step if options.count else measures.get(what, measure_step)
        recorder.attempt(name, lambda name=name, measure=measure: measure(recorder, name, options))
    print(f"done after {recorder.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
