"""Cost of a run, predicted before it starts: GPU-hours, memory of a process, disk, and savings of other settings."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.proportions import unscaled
from guidedcd.config.run import Run
from guidedcd.console import console, file_size
from guidedcd.devices import device as find_device
from guidedcd.devices import process
from guidedcd.errors import with_option_names
from guidedcd.files import nearest_folder
from guidedcd.planning import tables
from guidedcd.planning.alternatives import choices
from guidedcd.planning.estimate import Estimator, Stage, usable
from guidedcd.planning.gpus import GIB, Machine, machine
from guidedcd.planning.skeletons import outline


@attrs.frozen(kw_only=True)
class Question:
    """Device, extent and output of a plan."""

    on: str | None = None
    """Plan for this GPU instead of the present device; 8xNAME for eight of them."""
    tflops: float | None = None
    """Peak 16-bit TFLOP/s of the device."""
    memory: float | None = None
    """Its memory in GiB."""
    processes: int | None = None
    """Number of devices; None for the number of this launch."""
    probe: bool = False
    """Also measure a small piece of the run on the present device."""
    cheaper: bool = True
    """Also predict what other settings would save."""
    as_json: bool = False
    """Print one JSON object instead of tables."""
    store: Path | None = None
    """The store's folder."""


def print_plan(run: Run, question: Question | None = None) -> dict[str, Any]:
    """Predict the cost of `guidedcd train` with this run, print it, and return it.

    Costs are counted on teachers and rewards without weights, where they take `weights=False`. On a device without a
    data sheet the teacher is also loaded, to measure a pass of a few seconds at most. Nothing is written.

    Args:
        run: The run.
        question: Device, extent and output; the defaults if None.

    Returns:
        JSON values: machine, preprocess, train, evaluate, decoding (where the teacher has a choice), cheaper, probe,
        warnings, and the assumption without a dataset.

    Raises:
        GuidedCDError: The device is unknown, or the teacher cannot be built.
    """
    question = question or Question()
    like, count = several(question.on)
    where = machine(
        find_device("cpu" if like else run.device), like=like, tflops=question.tflops, memory=question.memory
    )
    processes = question.processes or count or process()[1]
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)  # it warns of every cast
    estimator, as_table = Estimator(where, processes), not question.as_json
    with redirect_stdout(sys.stderr):  # what components print is no part of the JSON object
        estimator.calibrate(run)
        where = estimator.machine
        stages = {"preprocess": estimator.preprocess(run), "train": estimator.train(run)}
        try:
            stages["evaluate"] = estimator.evaluate(run)
        except Exception as error:  # a plugin's decoder or prompts; the rest of the plan stands without them
            estimator.left_out["the evaluation"] = str(error)
    figures: dict[str, Any] = {
        "machine": {**attrs.asdict(where), "processes": processes},
        **{name: attrs.asdict(stage) for name, stage in stages.items()},
        "warnings": warnings(run, stages, where, question.store, estimator.left_out),
    }
    if not run.data:
        geometry = outline(run.teacher).geometry
        figures["assumed"] = (
            f"no dataset is selected; the plan assumes {run.preprocess.videos:,} videos of {geometry.frames} frames, "
            f"{geometry.width} x {geometry.height} pixels, the size of the teacher's videos"
        )
    if run.preprocess.buckets:
        figures["assumed"] = "every video is counted in the size of the teacher's, whatever its bucket"
    if as_table:
        tables.stages(run, where, processes, stages, estimator)
    with redirect_stdout(sys.stderr):
        decodings = estimator.decodings(run)
    if decodings:
        figures["decoding"] = [attrs.asdict(one) for one in decodings]
    if question.probe:
        from guidedcd.planning.probe import probe

        figures["probe"] = probe(run, estimator)
        if as_table:
            tables.probed(figures["probe"])
    if decodings and as_table:
        tables.decodings(decodings, figures.get("probe", {}).get("decode_errors"))
    if question.cheaper:
        figures["cheaper"] = []
        for choice in choices(run, where.kind):
            after = getattr(estimator, choice.stage)(choice.run, largest=False)
            saved = savings(stages[choice.stage], after)
            if saved:
                figures["cheaper"].append({"stage": choice.stage, "flags": choice.flags, "note": choice.note, **saved})
        if as_table:
            tables.cheaper(figures["cheaper"])
    if as_table:
        if "assumed" in figures:
            console.print(f"data     {figures['assumed']}", highlight=False)
        for warning in figures["warnings"]:
            console.print(f"warning  {with_option_names(warning)}")
    else:
        print(json.dumps(figures, indent=1))
    return figures


def several(name: str | None) -> tuple[str | None, int | None]:
    """The GPU of a name such as "8xh100", and how many of them; None where the name has no number."""
    match = re.fullmatch(r"([1-9]\d*)x(.+)", name or "")
    return (match[2], int(match[1])) if match else (name, None)


@attrs.frozen(eq=False)
class Plan:
    """The predicted cost of a run; `str(plan)` is the table that `guidedcd plan` prints."""

    figures: dict[str, Any]
    """JSON values: machine, preprocess, train, evaluate, decoding, cheaper, probe, warnings."""
    text: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return self.text


def plan(
    run: Run,
    *,
    on: str | None = None,
    tflops: float | None = None,
    memory: float | None = None,
    processes: int | None = None,
    probe: bool = False,
    cheaper: bool = True,
    store: Path | None = None,
) -> Plan:
    """Predict the device-hours, memory and disk that `distil(run)` takes; print the result for the table.

    Args:
        run: The run.
        on: Plan for this GPU instead of the present device: "h200", "h100", "a100", "4090", ...; "8xh100" for eight.
        tflops: Peak 16-bit TFLOP/s of the device, in place of its data sheet.
        memory: Memory of the device in GiB, in place of its data sheet.
        processes: Number of devices that share the work, by default that of this launch.
        probe: Also measure a small piece of the run on the present device, in at most 60 seconds.
        cheaper: Also predict what other settings would save.
        store: The folder of the latent store, whose disk is checked for space.

    Raises:
        GuidedCDError: The device is unknown, or the teacher cannot be built.
    """
    question = Question(
        on=on, tflops=tflops, memory=memory, processes=processes, probe=probe, cheaper=cheaper, store=store
    )
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        figures = print_plan(run, question)
    return Plan(figures, text.getvalue().strip())


def savings(before: Stage, after: Stage) -> dict[str, list[float]]:
    """[before, after] of the figures that change by more than 2 %, by name; {} where none becomes smaller."""
    changes = {}
    for name in ("device_hours", "peak_gib", "disk_gb"):
        old, new = getattr(before, name) or 0.0, getattr(after, name) or 0.0
        if abs(old - new) > 0.02 * max(old, new):
            changes[name] = [old, new]
    return changes if any(new < old for old, new in changes.values()) else {}


def warnings(
    run: Run, stages: dict[str, Stage], where: Machine, store: Path | None, left_out: dict[str, str]
) -> list[str]:
    """Sentences about missing memory and disk space, and about components that could not be counted."""
    sentences = [f"the prediction leaves out {name}: {reason}" for name, reason in left_out.items()]
    sentences += filter(None, [unscaled(run)])
    room = usable(where) / GIB
    for name, stage in stages.items():
        if stage.peak_gib is not None and stage.peak_gib > room:
            batch = stage.largest_batch
            advice = f"--{name}.batch-size {batch} fits" if batch else "no batch size fits: see the cheaper settings"
            sentences.append(
                f"{name} needs {stage.peak_gib:.1f} GiB per process, {where.name} has {room:.1f} to spare; {advice}"
            )
    folder = nearest_folder(store or Path("runs"))
    free, needed = shutil.disk_usage(folder).free, 1e9 * sum(stage.disk_gb for stage in stages.values())
    if needed > free:
        sentences.append(f"{file_size(needed)} of disk are needed, {folder} has {file_size(free)} free")
    return sentences
