"""Cheaper settings of a run; each changes one option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from guidedcd.config.option_types import flag
from guidedcd.config.run import Run
from guidedcd.config.structure import changed
from guidedcd.energies.traits import stored_part
from guidedcd.preprocessing.estimates import reference_kinds


@attrs.frozen(kw_only=True)
class Choice:
    """A run with some settings changed."""

    stage: str
    """preprocess or train."""
    flags: str
    """The flags as on the command line."""
    run: Run
    note: str = ""
    """A side effect of the change, e.g. "another reference"."""


def choices(run: Run, kind: str) -> Iterator[Choice]:
    """Settings cheaper than those of the run.

    Args:
        run: The run.
        kind: Kind of the device: 16-bit networks are faster on "cuda" only.
    """
    yield from _preprocess(run, kind)
    yield from _train(run, kind)


def _preprocess(run: Run, kind: str) -> Iterator[Choice]:
    settings = run.preprocess
    choice = _changer(run, "preprocess")
    inverting = [name for name, kind in reference_kinds(run).items() if kind == "inversion"]
    if inverting:
        cheap = {name: attrs.evolve(run.energies[name], reference="single-step") for name in inverting}
        yield Choice(
            stage="preprocess",
            flags=" ".join(f"--energies.{name}.reference single-step" for name in inverting),
            run=attrs.evolve(run, energies={**run.energies, **cheap}),
            note="another reference",
        )
        if settings.draws_per_video < 8 and settings.videos * settings.draws_per_video >= 8:
            videos = settings.videos * settings.draws_per_video // 8
            yield choice("the same number of draws", draws_per_video=8, videos=videos)
    if run.solver.steps > 25:
        steps = 50 if run.solver.steps > 50 else 25
        solver = attrs.evolve(run.solver, steps=steps)
        if inverting:
            yield Choice(
                stage="preprocess",
                flags=f"--solver.steps {steps}",
                run=attrs.evolve(run, solver=solver),
                note="a coarser grid, longer steps",
            )
    if settings.precision == "no" and kind == "cuda":
        yield choice("", precision="bf16")
    if settings.quantize == "no":
        yield choice("predictions differ by 1 to 2 %", quantize="int8")
    if settings.recompute == "nothing" and stored_part(run).energies:
        yield choice("", recompute="cheap")
    if settings.dtype == "float32":
        yield choice("", dtype="bfloat16")


def _train(run: Run, kind: str) -> Iterator[Choice]:
    settings = run.train
    choice = _changer(run, "train")
    if settings.precision == "no" and kind == "cuda":
        yield choice("", precision="bf16")
    layers = "all" if settings.activation_checkpoint.layers == "none" else "none"
    yield choice("", activation_checkpoint={"layers": layers})
    if run.student.kind == "full":
        student = attrs.evolve(run.student, kind="lora")
        yield Choice(stage="train", flags="--student.kind lora", run=attrs.evolve(run, student=student))
    if settings.optimizer.name == "adamw" and kind == "cuda":
        yield choice("needs bitsandbytes", optimizer={"name": "adamw-8bit"})
    wide = [name for name, config in run.rewards.items() if getattr(config, "dtype", None) == "fp32"]
    if wide and kind == "cuda":
        yield _rewards(run, wide, "dtype", lambda config: "bf16")
    networks = [name for name, config in run.rewards.items() if hasattr(config, "dtype") and config.quantize == "no"]
    if networks:
        yield _rewards(run, networks, "quantize", lambda config: "int8")
    kept = [name for name, c in run.rewards.items() if getattr(c, "gradient_checkpointing", None) is False]
    if kept:
        yield _rewards(run, kept, "gradient_checkpointing", lambda config: True)
    many = [name for name, config in run.rewards.items() if config.frames > 1]
    if many:
        yield _rewards(run, many, "frames", lambda config: config.frames // 2)
    if run.rewards and settings.batch_size > 1 and settings.reward_batch != 1:
        yield choice("", reward_batch=1)


def _changer(run: Run, section: str) -> Any:
    def choice(note: str, **options: Any) -> Choice:
        flags = " ".join(_flags(f"--{section}", options))
        return Choice(stage=section, flags=flags, run=changed(run, **{section: options}), note=note)

    return choice


def _flags(path: str, options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flags(f"{path}.{flag(name)}", value)
        else:
            yield f"{path}.{flag(name)}" if value is True else f"{path}.{flag(name)} {value}"


def _rewards(run: Run, names: list[str], option: str, value: Any) -> Choice:
    rewards = {n: attrs.evolve(c, **{option: value(c)}) if n in names else c for n, c in run.rewards.items()}
    flags = " ".join(
        one for name in names for one in _flags(f"--rewards.{name}", {option: getattr(rewards[name], option)})
    )
    return Choice(stage="train", flags=flags, run=attrs.evolve(run, rewards=rewards))
