"""What a run would make of its data, before anything is computed: a table, reasons, and a contact sheet."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.table import Table

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.console import console, print_table, progress
from guidedcd.data.clips import Clip, ClipError, sample_of
from guidedcd.data.geometry import Geometry
from guidedcd.data.media import contact_sheet
from guidedcd.data.routing import Reader, Route, Sample, route
from guidedcd.devices import blame_memory
from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable

SHOWN = 12
"""Rows of the contact sheet, over all data sets."""


@attrs.frozen(kw_only=True)
class Inspected:
    """What was seen of one data set."""

    name: str
    """The data set's name; of several with one name, the later ones end in #2, #3 and so on."""
    path: str
    """Where it is, if it is anywhere."""
    listed: int
    """Clips that it lists, usable or not."""
    wanted: int
    """Its share of the run's videos."""
    samples: list[Sample]
    """Metadata of the clips that could be read, of those that were tried."""
    routes: list[Route]
    """What the run's routes make of each of `samples`."""
    skipped: list[str]
    """Why the others could not be read, each with its clip's id."""

    @property
    def tried(self) -> int:
        """How many clips were tried."""
        return len(self.samples) + len(self.skipped)


def inspect_data(run: Run, *, sample: int = 32, sheet: Path = Path("data.png")) -> list[Inspected]:
    """Read a sample of every data set of `run` as the run would, print what was found, and draw a contact sheet.

    Neither the teacher's weights nor those of rewards are loaded where their classes can do without.

    Args:
        run: What would be trained.
        sample: Clips to read of each data set, evenly spaced over those that the run would use; 0 reads all of them.
        sheet: A PNG file of what the teacher would see.

    Raises:
        GuidedCDError: A data set cannot be opened, or none of the clips can be read.
    """
    if sheet.suffix != ".png":
        raise GuidedCDError(f"{sheet}: the contact sheet is a PNG image; choose a name that ends in .png.")
    check_writable(sheet.parent)
    geometry = geometry_of(run.teacher)
    opened = [(chosen, chosen.build().open(geometry)) for chosen in run.data]
    known, rules = readers(run), list(run.build("route").values())
    shares = [chosen.config.weight / sum(one.config.weight for one in run.data) for chosen in run.data]
    rows = -(-SHOWN // len(opened))
    found, shown = [], []
    for (chosen, clips), share, name in zip(opened, shares, _names(run.data), strict=True):
        seen = Inspected(
            name=name,
            path=str(getattr(chosen.config, "path", None) or ""),
            listed=len(clips),
            wanted=round(run.preprocess.videos * share),
            samples=[],
            routes=[],
            skipped=[],
        )
        for clip in _read(clips, min(seen.wanted, seen.listed), sample, seen):
            about = attrs.evolve(sample_of(clip), readers=known)
            seen.samples.append(about)
            seen.routes.append(route(about, rules))
            if len(seen.samples) <= rows:
                shown.append((f"{clip.dataset} {clip.id}: {clip.caption}", clip.video))
        found.append(seen)
    _print(found, known, geometry)
    if not shown:
        reason = next((why for seen in found for why in seen.skipped), "there is none")
        raise GuidedCDError(f"none of the clips that were tried can be used (the first: {reason}).")
    contact_sheet(sheet, [video for _, video in shown], [caption for caption, _ in shown])
    console.print(f"sheet    {sheet}: {len(shown)} clips as the teacher would see them")
    return found


def geometry_of(teacher: Chosen) -> Geometry:
    """The size of a teacher's videos: from its options if they say it, else from the loaded teacher."""
    says = {name: getattr(teacher.config, name, None) for name in ("frames", "height", "width", "fps")}
    if None not in says.values():
        return Geometry(**says)
    with blame_memory("the teacher"):
        return teacher.build().geometry


def readers(run: Run) -> dict[str, Reader]:
    """The run's rewards as readers of text, each with its own tokenizer."""
    found = {}
    for chosen in run.chosen("reward"):
        make = getattr(chosen.component().load(), "tokens", None)
        if make is not None:
            tokens = make(chosen.config)
            found[chosen.name] = Reader(max_tokens=tokens.max_tokens, count=tokens.count)
        else:
            with blame_memory(f"reward '{chosen.name}'"):
                built = chosen.build()
            found[chosen.name] = Reader(max_tokens=built.max_tokens, count=built.count_tokens)
    return found


def _read(clips: Sequence[Clip], usable: int, sample: int, seen: Inspected) -> Iterator[Clip]:
    """Clips spread evenly over the first `usable`, those that can be read; the others go to `seen.skipped`."""
    count = min(sample or usable, usable)
    places = [(2 * i + 1) * usable // (2 * count) for i in range(count)]
    with progress(f"read {seen.name}", count, unit="clips") as advance:
        for place in places:
            try:
                yield clips[place]
            except ClipError as error:
                seen.skipped.append(str(error))
            advance()


def _names(data: Sequence[Chosen]) -> list[str]:
    """The data sets' names, made different where several have one."""
    names = [chosen.name for chosen in data]
    return [f"{name}#{n}" if (n := names[: i + 1].count(name)) > 1 else name for i, name in enumerate(names)]


def _print(found: Sequence[Inspected], known: Mapping[str, Reader], geometry: Geometry) -> None:
    size = f"{geometry.width} x {geometry.height} pixels"
    console.print(f"teacher  {geometry.frames} frames at {geometry.fps:g} per second, {size}")
    for seen in found:
        if seen.path:
            console.print(f"data     {seen.name} is {seen.path}", markup=False)
    print_table(_summary(found))
    console.print()
    print_table(_captions(found, known))
    console.print()
    for seen in found:
        for reason in seen.skipped:
            console.print(f"skipped  {seen.name}: {reason}", markup=False)
        if seen.listed < seen.wanted:
            console.print(
                f"note     {seen.name} lists {seen.listed} clips, but its share of {sum(s.wanted for s in found)} is "
                f"{seen.wanted}: lower --preprocess.videos or its weight",
                markup=False,
            )


def _summary(found: Sequence[Inspected]) -> Table:
    """Data sets by row: clips, and what of them can be read."""
    table = _table("data", "clips", "the run wants", "tried", "readable", "skipped", "motion known", "not guided")
    for seen in found:
        counts = seen.listed, seen.wanted, seen.tried, len(seen.samples), len(seen.skipped)
        motion = sum(sample.motion is not None for sample in seen.samples)
        unguided = sum(not one.guided for one in seen.routes)
        table.add_row(seen.name, *map(str, (*counts, motion, unguided)))
    return table


def _captions(found: Sequence[Inspected], known: Mapping[str, Reader]) -> Table:
    """Data sets and rewards by row: how long captions are for it, how many it can read, and how many it gets."""
    table = _table("data", "reader", "context", "tokens: median", "longest", "fits", "short caption fits", "routed")
    for seen in found:
        samples = seen.samples
        for name, reader in known.items():
            lengths = [reader.count(sample.caption) for sample in samples]
            short = [sample for sample in samples if sample.short_caption]
            table.add_row(
                seen.name,
                name,
                str(reader.max_tokens),
                *_lengths(lengths),
                _share(sum(length <= reader.max_tokens for length in lengths), len(samples)),
                _share(sum(sample.fits(name, sample.short_caption) for sample in short), len(short)),
                _share(sum(name in one.rewards for one in seen.routes), len(samples)),
            )
        alone = sum(not one.rewards for one in seen.routes)
        words = [len(sample.caption.split()) for sample in samples]
        median, longest = _lengths(words)
        table.add_row(
            seen.name,
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
    table: Any = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "reader" else "right", overflow="fold")
    return table
