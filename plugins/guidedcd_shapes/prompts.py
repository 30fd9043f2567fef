"""Evaluation prompts with their true scenes; their seeds, and a fifth of the combinations, never occur in training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor

from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd_shapes import captions, world
from guidedcd_shapes.world import Scene

KINDS = ("full", "no-motion", "dense", "mixed")
SPLITS = {"motion": (0, "full"), "no-motion": (0, "no-motion"), "validation": (1, "full"), "training": (-1, "mixed")}
"""Seed and kind of each split."""
NAMED = ("color", "shape", "size", "background", "second")
"""Attributes that every prompt names; all prompts except "no-motion" also name the motion."""


def evaluation_prompts(n: int, seed: int = 0, kind: str = "mixed", two: float = 0.15) -> list[Prompt]:
    """Prompts of the proving ground.

    Args:
        n: Number of prompts; a longer list begins with the prompts of a shorter one.
        seed: Seed of the scenes, disjoint from training for every value.
        kind: `full` names every attribute, `no-motion` all except motion (with one object), `dense` is long,
            `mixed` alternates `full` and `no-motion`.
        two: Share of `full` and `dense` prompts with two objects.
    """
    if kind not in KINDS:
        raise GuidedCDError(f"there are no '{kind}' prompts; choose one of {', '.join(KINDS)}.")
    return [_prompt(i, seed, kind, two) for i in range(n)]


def split_prompts(split: str, count: int) -> list[Prompt]:
    """The first `count` prompts of the teacher's split "motion", "no-motion", "validation" or "training"."""
    seed, kind = SPLITS[split]
    return evaluation_prompts(count, seed, kind)


def _prompt(index: int, seed: int, kind: str, two: float) -> Prompt:
    rng = random.Random(f"evaluation {seed} {index}")
    kind = ("full", "no-motion")[index % 2] if kind == "mixed" else kind
    still = kind == "no-motion"
    scene = world.sample_scene(rng, "uniform", two=0.0 if still else two, unseen=rng.random() < 0.2)
    write = captions.dense_caption if kind == "dense" else captions.full_caption
    text = captions.full_caption(scene, rng, motion=False) if still else write(scene, rng)
    return Prompt(
        text=text,
        scene=attrs.asdict(scene),
        named=NAMED if still else (*NAMED, "motion"),
        id=f"{kind}-{seed}-{index:03d}",
    )


def scene_of(prompt: Prompt) -> Scene:
    """The true scene of a prompt.

    Raises:
        GuidedCDError: It is unknown.
    """
    if prompt.scene is None:
        raise GuidedCDError(f"the oracle needs prompts with a known scene; '{prompt.text}' has none.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in prompt.scene.items()}
    return Scene(**values)


def truth(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The prompts' true scenes, packed for the oracle.

    Raises:
        GuidedCDError: A prompt has no known scene.
    """
    return world.pack([scene_of(prompt) for prompt in prompts])
