"""What other settings would save: each is one flag, with what it changes from and to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from guidedcd.config.run import Run


@attrs.frozen(kw_only=True)
class Choice:
    """A run with some settings changed."""

    stage: str
    """preprocess or train."""
    flags: str
    """As they are typed."""
    run: Run
    note: str = ""
    """What else changes with it."""


def choices(run: Run, kind: str) -> Iterator[Choice]:
    """Cheaper settings than the run's, those that are in effect already left out.

    Args:
        run: What is planned.
        kind: Of the device: 16-bit networks pay on GPUs alone.
    """
    yield from _preprocess(run, kind)
    yield from _train(run, kind)


def _preprocess(run: Run, kind: str) -> Iterator[Choice]:
    settings = run.preprocess
    changed = _changer(run, "preprocess")
    inverting = [name for name, config in run.energies.items() if config.reference == "inversion"]
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
            yield changed("the same number of draws", draws_per_video=8, videos=videos)
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
        yield changed("", precision="bf16")
    if settings.recompute == "nothing" and run.energies:
        yield changed("", recompute="cheap")
    if settings.dtype == "float32":
        yield changed("", dtype="bfloat16")


def _train(run: Run, kind: str) -> Iterator[Choice]:
    settings = run.train
    changed = _changer(run, "train")
    if settings.precision == "no" and kind == "cuda":
        yield changed("", precision="bf16")
    if settings.gradient_checkpointing:
        yield Choice(
            stage="train",
            flags="--train.no-gradient-checkpointing",
            run=attrs.evolve(run, train=attrs.evolve(settings, gradient_checkpointing=False)),
        )
    else:
        yield changed("", gradient_checkpointing=True)
    if run.student.kind == "full":
        student = attrs.evolve(run.student, kind="lora")
        yield Choice(stage="train", flags="--student.kind lora", run=attrs.evolve(run, student=student))
    if settings.optimizer == "adamw" and kind == "cuda":
        yield changed("needs bitsandbytes", optimizer="adamw-8bit")
    wide = [name for name, config in run.rewards.items() if getattr(config, "dtype", None) == "fp32"]
    if wide and kind == "cuda":
        yield _rewards(run, wide, "dtype", lambda config: "bf16")
    many = [name for name, config in run.rewards.items() if config.frames > 1]
    if many:
        yield _rewards(run, many, "frames", lambda config: config.frames // 2)
    if run.rewards and settings.batch_size > 1 and settings.reward_batch != 1:
        yield changed("", reward_batch=1)


def _changer(run: Run, section: str) -> Any:
    def changed(note: str, **options: Any) -> Choice:
        flags = []
        for name, value in options.items():
            flag = f"--{section}.{name.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag} {value}")
        new = attrs.evolve(run, **{section: attrs.evolve(getattr(run, section), **options)})
        return Choice(stage=section, flags=" ".join(flags), run=new, note=note)

    return changed


def _rewards(run: Run, names: list[str], option: str, value: Any) -> Choice:
    rewards = {n: attrs.evolve(c, **{option: value(c)}) if n in names else c for n, c in run.rewards.items()}
    flags = " ".join(f"--rewards.{name}.{option} {getattr(rewards[name], option)}" for name in names)
    return Choice(stage="train", flags=flags, run=attrs.evolve(run, rewards=rewards))
