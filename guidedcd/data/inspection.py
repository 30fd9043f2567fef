"""Inspection of a run's data before training: tables, reasons of skipped clips, and a contact sheet."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from rich.table import Table

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.console import console, plain_table, print_table, progress
from guidedcd.data.bucket_inspection import PlacedClips, geometries, print_buckets
from guidedcd.data.clips import Clip, ClipError, sample_of
from guidedcd.data.contract import is_encoded, opened
from guidedcd.data.geometry import Geometry
from guidedcd.data.media import contact_sheet
from guidedcd.data.routing import Reader, Route, Sample, route, rules_of
from guidedcd.devices import blame_memory
from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable
from guidedcd.plugins.configs import DatasetConfig

SHEET_ROWS = 12
"""Rows of the contact sheet, over all data sets."""


@attrs.frozen(kw_only=True)
class Inspected:
    """The sample of one data set."""

    name: str
    """The data set's name; data sets of equal names are numbered #2, #3 and so on."""
    path: str
    """Its path, or "" without one."""
    listed: int
    """Number of clips that it lists, usable or not."""
    share: int
    """Its number of the run's videos."""
    samples: list[Sample]
    """Metadata of the readable clips of the sample."""
    routes: list[Route]
    """The route of each of `samples`."""
    skipped: list[str]
    """Error messages of the other clips of the sample, each with the clip's id."""

    @property
    def tried(self) -> int:
        """Number of clips of the sample."""
        return len(self.samples) + len(self.skipped)


def inspect_data(run: Run, *, sample: int = 32, sheet: Path | None = None) -> list[Inspected]:
    """Read a sample of every data set as the run would, print tables, and draw a contact sheet where `sheet` is given.

    Weights of the teacher and of rewards are loaded only where their classes need them.

    Args:
        run: The run.
        sample: Number of clips to read of each data set, evenly spaced over those of the run; 0 reads all of them.
        sheet: The PNG file for a contact sheet, with clips as the teacher's input.

    Raises:
        GuidedCDError: A data set cannot be opened, or none of the clips can be read.
    """
    if sheet is not None:
        if sheet.suffix != ".png":
            raise GuidedCDError(f"{sheet}: the contact sheet is a PNG image; choose a name that ends in .png.")
        check_writable(sheet.parent)
    placed: list[PlacedClips] = []
    if run.preprocess.buckets:
        shapes = geometries(run.teacher, run.preprocess.buckets)
        geometry = next(iter(shapes.values()))
        placed = [PlacedClips(chosen, shapes) for chosen in run.data]
    else:
        geometry = geometry_of(run.teacher, exact=any(is_encoded(chosen) for chosen in run.data))
    datasets: Sequence[Sequence[Clip]] = placed or [opened(chosen, geometry) for chosen in run.data]
    tokenizers, rules = readers(run.chosen("reward")), rules_of(run)
    # The components of the kind dataset have configs that derive from DatasetConfig.
    weights = [cast(DatasetConfig, chosen.config).weight for chosen in run.data]
    rows = -(-SHEET_ROWS // len(datasets))
    results, drawn = [], []
    for chosen, clips, weight, name in zip(run.data, datasets, weights, _names(run.data), strict=True):
        result = Inspected(
            name=name,
            path=str(getattr(chosen.config, "path", None) or ""),
            listed=len(clips),
            share=round(run.preprocess.videos * (weight / sum(weights))),
            samples=[],
            routes=[],
            skipped=[],
        )
        for clip in _read(clips, min(result.share, result.listed), sample, result):
            metadata = attrs.evolve(sample_of(clip), readers=tokenizers, energies=frozenset(run.energies))
            result.samples.append(metadata)
            result.routes.append(route(metadata, rules))
            if clip.video is not None and len(result.samples) <= rows:
                drawn.append((f"{clip.dataset} {clip.id}: {clip.caption}", clip.video))
        results.append(result)
    _print(results, tokenizers, geometry)
    if placed:
        print_buckets({result.name: clips for result, clips in zip(results, placed, strict=True)}, geometry)
    if not any(result.samples for result in results):
        reason = next((reason for result in results for reason in result.skipped), "there is none")
        raise GuidedCDError(f"none of the clips of the sample can be used (the first: {reason}).")
    if sheet is not None and not drawn:
        console.print(f"sheet    {sheet} is not written: the clips are latents, without pixels")
    elif sheet is not None:
        contact_sheet(sheet, [video for _, video in drawn], [caption for caption, _ in drawn])
        console.print(f"sheet    {sheet}: {len(drawn)} clips in the size of the teacher's videos")
    return results


def geometry_of(teacher: Chosen, *, exact: bool = False) -> Geometry:
    """The shape of a teacher's videos: from its options where they have it, else from the teacher itself.

    Args:
        teacher: The teacher and its options.
        exact: Whether the shape of the latents is needed too, which only the teacher can compute.
    """
    sizes: dict[str, Any] = {name: getattr(teacher.config, name, None) for name in ("frames", "height", "width", "fps")}
    if not exact and None not in sizes.values():
        return Geometry(**sizes)
    with blame_memory("the teacher"):
        geometry: Geometry = teacher.outline().geometry
        return geometry


def readers(rewards: Sequence[Chosen]) -> dict[str, Reader]:
    """Tokenizer and context length of rewards, by name."""
    result = {}
    for chosen in rewards:
        make = getattr(chosen.component().load(), "tokens", None)
        if make is not None:
            tokens = make(chosen.config)
            result[chosen.name] = Reader(max_tokens=tokens.max_tokens, count=tokens.count)
        else:
            with blame_memory(f"reward '{chosen.name}'"):
                reward = chosen.build()
            result[chosen.name] = Reader(max_tokens=reward.max_tokens, count=reward.count_tokens)
    return result


def _read(clips: Sequence[Clip], usable: int, sample: int, result: Inspected) -> Iterator[Clip]:
    """Readable clips, spread evenly over the first `usable`; errors of the others go to `result.skipped`."""
    count = min(sample or usable, usable)
    with progress(f"read {result.name}", count, unit="clips") as advance:
        for i in range(count):
            try:
                yield clips[(2 * i + 1) * usable // (2 * count)]
            except ClipError as error:
                result.skipped.append(str(error))
            advance()


def _names(data: Sequence[Chosen]) -> list[str]:
    """The names of the data sets, numbered where several are equal."""
    names = [chosen.name for chosen in data]
    return [f"{name}#{n}" if (n := names[: i + 1].count(name)) > 1 else name for i, name in enumerate(names)]


def _print(results: Sequence[Inspected], tokenizers: Mapping[str, Reader], geometry: Geometry) -> None:
    size = f"{geometry.width} x {geometry.height} pixels"
    console.print(f"teacher  {geometry.frames} frames at {geometry.fps:g} per second, {size}")
    for result in results:
        if result.path:
            console.print(f"data     {result.name} is {result.path}", markup=False)
    print_table(_summary(results))
    console.print()
    print_table(_captions(results, tokenizers))
    console.print()
    for result in results:
        for reason in result.skipped:
            console.print(f"skipped  {result.name}: {reason}", markup=False)
        if result.listed < result.share:
            console.print(
                f"note     {result.name} lists {result.listed} clips, but its share of {sum(r.share for r in results)} "
                f"is {result.share}: lower --preprocess.videos or its weight",
                markup=False,
            )


def _summary(results: Sequence[Inspected]) -> Table:
    """One row per data set: numbers of clips, of readable ones, and of those with motion or without guidance."""
    table = _table("data", "clips", "used by the run", "tried", "readable", "skipped", "motion known", "not guided")
    for result in results:
        counts = result.listed, result.share, result.tried, len(result.samples), len(result.skipped)
        motion = sum(sample.motion is not None for sample in result.samples)
        unguided = sum(not one.guided for one in result.routes)
        table.add_row(result.name, *map(str, (*counts, motion, unguided)))
    return table


def _captions(results: Sequence[Inspected], tokenizers: Mapping[str, Reader]) -> Table:
    """One row per data set and reward: lengths of the captions, how many fit, and how many are routed to it."""
    table = _table("data", "reader", "context", "tokens: median", "longest", "fits", "short caption fits", "routed")
    for result in results:
        samples = result.samples
        for name, reader in tokenizers.items():
            lengths = [reader.count(sample.caption) for sample in samples]
            short = [sample.short_caption for sample in samples if sample.short_caption]
            table.add_row(
                result.name,
                name,
                str(reader.max_tokens),
                *_lengths(lengths),
                _share(sum(length <= reader.max_tokens for length in lengths), len(samples)),
                _share(sum(reader.count(text) <= reader.max_tokens for text in short), len(short)),
                _share(sum(name in one.rewards for one in result.routes), len(samples)),
            )
        alone = sum(not one.rewards for one in result.routes)
        words = [len(sample.caption.split()) for sample in samples]
        median, longest = _lengths(words)
        table.add_row(
            result.name,
            "distillation alone",
            "",
            *(f"{text} words" if words else text for text in (median, longest)),
            "",
            "",
            _share(alone, len(samples)),
        )
    return table


def _lengths(numbers: Sequence[int]) -> tuple[str, str]:
    return (f"{statistics.median(numbers):g}", str(max(numbers))) if numbers else ("-", "-")


def _share(count: int, total: int) -> str:
    return f"{count} of {total}" if total else "-"


def _table(*columns: str) -> Table:
    return plain_table(*columns, numbers=set(columns[1:]) - {"reader"})
