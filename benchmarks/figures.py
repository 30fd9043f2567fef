"""The figures of docs/reference/measured-speed.md: official values, targets, and the rows that count for each."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import attrs

OFFICIAL: dict[str, dict[str, float]] = {
    "unet: *, batch 1": {"ms_per_sample": 78.8},
    "unet: *, batch 2": {"ms_per_sample": 64.0},
    "unet: *, batch 4": {"ms_per_sample": 57.3},
    "preprocessing: one draw per video*": {"samples_per_hour": 300},
    "preprocessing: eight draws per video*": {"samples_per_hour": 300},
    "preprocessing: score and prediction*": {"seconds": 0.243, "peak_gb": 19.1},
    "training: cd*": {"seconds": 1.02, "peak_gb": 29.4},
    "training: all*": {"seconds": 1.34, "peak_gb": 50.3},
    "training: sample*": {"seconds": 0.526, "peak_gb": 4.3},
    "sampling: 4 steps*": {"seconds": 0.526},
    "sampling: 8 steps*": {"seconds": 0.832},
    "sampling: 16 steps*": {"seconds": 1.441},
    "sampling: decoder alone*": {"seconds": 0.213},
}
"""Values of the released code with PyTorch's attention on one H200, by pattern of "benchmark: row".

A score and its prediction were measured at batch 1. A training step took 0.22 s (`cd`) and 0.27 s (`all`) more for a
garbage collection in every step; `cd` had all layers checkpointed.
"""


def official(name: str) -> Mapping[str, float]:
    """The official values of a row "benchmark: row"; none where there is no such row in the released code."""
    return next((values for pattern, values in OFFICIAL.items() if fnmatch.fnmatch(name, pattern)), {})


@attrs.frozen
class Target:
    """One number to reach."""

    name: str
    """Of the value, such as `seconds` or `peak_gb`."""
    value: float
    at_least: bool = False

    def is_reached(self, values: Mapping[str, float]) -> bool:
        """Whether measured values reach it."""
        if self.name not in values:
            return False
        return values[self.name] >= self.value if self.at_least else values[self.name] <= self.value


@attrs.frozen
class Figure:
    """One line of the table: the rows that count, the official values, and the targets."""

    title: str
    patterns: tuple[str, ...]
    """Of rows "benchmark: row"."""
    targets: tuple[Target, ...] = ()
    official: Mapping[str, float] = attrs.field(factory=dict)
    note: str = ""
    """Beside the official values."""


_CD, _ALL = OFFICIAL["training: cd*"], OFFICIAL["training: all*"]
FIGURES = (
    Figure(
        "UNet forward, per sample, best batch",
        ("unet: *",),
        (Target("ms_per_sample", 32),),
        OFFICIAL["unet: *, batch 4"],
        "batch 4",
    ),
    Figure(
        "motion-guided samples per GPU-hour, full inversion, one draw per video",
        ("preprocessing: one draw per video*",),
        (Target("samples_per_hour", 700, True),),
        OFFICIAL["preprocessing: one draw per video*"],
    ),
    Figure(
        "the same, eight draws per video",
        ("preprocessing: eight draws per video*",),
        (Target("samples_per_hour", 3500, True),),
        OFFICIAL["preprocessing: eight draws per video*"],
    ),
    Figure(
        "the same, single-step reference",
        ("preprocessing: single-step reference*",),
        (Target("samples_per_hour", 15000, True),),
    ),
    Figure(
        "PTA score and conditional prediction, per sample, batch 4",
        ("preprocessing: score and prediction*",),
        (Target("seconds", 0.12), Target("peak_gb", 30)),
        OFFICIAL["preprocessing: score and prediction*"],
        "batch 1",
    ),
    Figure(
        "CD step, batch 3, full fine-tuning",
        ("training: cd*", "training: parallel-one*"),
        (Target("seconds", 0.5),),
        _CD,
    ),
    Figure("the same, float32 states, least memory", ("training: cd*",), (Target("peak_gb", 32),), _CD),
    Figure("the same, 8-bit states", ("training: cd-8bit*",), (Target("peak_gb", 24),)),
    Figure(
        "CD + HPS + CLIP + InternVideo2 in one step",
        ("training: all*",),
        (Target("seconds", 0.7), Target("peak_gb", 40)),
        _ALL,
    ),
    Figure("LoRA training step", ("training: lora*",), (Target("peak_gb", 24),)),
    Figure(
        "sampling 4 steps with decode",
        ("sampling: 4 steps*", "training: sample*"),
        (Target("seconds", 0.25),),
        OFFICIAL["sampling: 4 steps*"],
    ),
    Figure("8 steps", ("sampling: 8 steps*",), (), OFFICIAL["sampling: 8 steps*"]),
    Figure("16 steps", ("sampling: 16 steps*",), (), OFFICIAL["sampling: 16 steps*"]),
    Figure(
        "2 GPUs, DDP, samples per second of one", ("training: parallel-ddp*",), (Target("times_one_gpu", 1.85, True),)
    ),
    Figure("2 GPUs, FSDP2, likewise", ("training: parallel-fsdp*",), (Target("times_one_gpu", 1.85, True),)),
)
VARIANTS = (" replayed/blocks", " recomputed/blocks", " all recomputed/blocks")
"""Ends of the names of rows that replay rewards, or recompute more: a reward's blocks, or attention too."""
STOCK: dict[str, dict[str, float]] = {
    "forward small batch 1": {"ms_per_sample": 41.2},
    "forward small batch 4": {"ms_per_sample": 40.4},
    "forward large batch 1": {"ms_per_sample": 618},
    "cd small": {"seconds": 0.26},
    "lora large": {"seconds": 3.46, "peak_gb": 11.6},
}
"""Values of diffusers' own code at Wan 1.3B's size on one H200, by the beginning of a row of `video_transformers.py`.

They are of the runs whose compiled rows are in results.json, with two exceptions. In the run with the pass of a single
small video the host was slower (48 ms), and 41 ms were measured the day before. The step with LoRA was measured a day
before the compiled one.
"""


def _wan(title: str, row: str, *targets: Target) -> Figure:
    note = "diffusers" if row in STOCK else ""
    return Figure(
        title,
        tuple(f"video_transformers: {row}{more}" for more in ("/blocks", "/blocks-graphs", "/layers", *VARIANTS)),
        targets,
        STOCK.get(row, {}),
        note,
    )


FIGURES += (
    _wan("Wan 1.3B forward, 33 frames of 256x448, batch 1", "forward small batch 1"),
    _wan("the same per sample, batch 4", "forward small batch 4", Target("ms_per_sample", 27)),
    _wan("Wan 1.3B forward, 81 frames of 480x832", "forward large batch 1", Target("ms_per_sample", 480)),
    _wan("Wan 1.3B, CD step, full fine-tuning, batch 1, 33 small frames", "cd small", Target("seconds", 0.17)),
    _wan("the same, LoRA, 81 frames of 480x832", "lora large", Target("seconds", 2.5), Target("peak_gb", 24)),
    _wan(
        "the same with HPS, CLIP and VideoReward",
        "lora large rewards",
        Target("seconds", 3.3),
        Target("peak_gb", 40),
    ),
    _wan(
        "Wan 1.3B, CD step, batch 2, DDP, samples per second of one",
        "parallel-ddp",
        Target("times_one_gpu", 1.85, True),
    ),
    _wan("the same, FSDP2", "parallel-fsdp", Target("times_one_gpu", 1.85, True)),
    _wan(
        "samples preprocessed per GPU-hour, 33 small frames",
        "preprocess small",
        Target("samples_per_hour", 15000, True),
    ),
)
EIGHT_BIT = "training: cd-8bit*"
"""Counts for a figure that names it, and for no other."""
