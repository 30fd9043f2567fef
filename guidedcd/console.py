"""What the user sees while something runs: one console, one kind of progress bar. No torch here.

Names, captions and keys come from files that others wrote, so no control character of theirs reaches the terminal.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.errors import MarkupError
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that reverse text, and bytes that are no UTF-8 text."""


def harmless(text: str) -> str:
    """`text` with control characters spelled out, so that a terminal shows them and obeys none."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class SafeConsole(Console):
    """A console that shows control characters in texts and table cells instead of sending them to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text that a string stands for; one whose brackets are no markup is shown as it is."""
        try:
            return super().render_str(harmless(text), **options)
        except MarkupError:
            return super().render_str(harmless(text), **{**options, "markup": False})


console = SafeConsole(highlight=False, soft_wrap=True)
"""Results and messages: standard output."""

errors = SafeConsole(highlight=False, soft_wrap=True, stderr=True)
"""Mistakes: standard error."""


def plain_table(*columns: str, numbers: Iterable[str] = (), unbroken: Iterable[str] = ()) -> Table:
    """A table without lines.

    Args:
        columns: The titles.
        numbers: Titles of the columns that are aligned on the right.
        unbroken: Titles of the columns whose texts stay on one line, cut where they are too long.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            overflow="fold",
            no_wrap=column in unbroken,
        )
    return table


def print_table(table: Table) -> None:
    """Print a table; off a terminal nothing is wrapped, so that lines can be searched."""
    if console.is_terminal or console.quiet:
        console.print(table)
        return
    wide = SafeConsole(width=1000, color_system=None)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


QUIET_SECONDS = 10.0
"""Seconds between the plain lines that replace a bar when the output is not a terminal."""
FIRST_SECONDS = 2.0
"""Seconds before the first of these lines."""
END_SECONDS = 90.0
"""A remaining time of at least this many seconds is followed by the time of day at which the work ends."""

LATEST_SECONDS = 86_400.0
"""A remaining time of more seconds is not: a time of day names no day."""


@contextmanager
def progress(description: str, total: int, *, start: int = 0, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show how far `description` has come: a bar with rate and remaining time, plain lines off a terminal.

    Args:
        description: What is being done, e.g. "train".
        total: How many steps there are.
        start: How many of them were done before (a resumed run).
        unit: What a step is, e.g. "videos".

    Yields:
        advance(n=1, note="", reused=False): `n` more steps (whole or in part) are done. `note` is shown, such as
            "loss 0.12". Steps that are `reused` were done before, and do not count in the rate.
    """
    if console.quiet:  # one process of a launch prints
        yield lambda n=1, note="", reused=False: None
        return
    show = _bar if console.is_terminal else _lines
    with show(_Pace(description, total, start, unit)) as advance:
        yield advance


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Show what the program waits for: one line that changes, or off a terminal ever rarer lines.

    Yields:
        show(text): Something is still waited for, e.g. "waiting for pid 123, 3 min so far".
    """
    if console.quiet:
        yield lambda text: None
        return
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(Text(harmless(text)))
        return
    began = next_line = time.monotonic()

    def show(text: str) -> None:
        nonlocal next_line
        now = time.monotonic()
        if now >= next_line:
            print(harmless(text), file=sys.stdout, flush=True)
            next_line = now + max(QUIET_SECONDS, now - began)

    yield show


class _Pace:
    """How far some work has come, and how fast."""

    def __init__(self, description: str, total: int, start: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done: float = start
        self.before: float = start
        """Steps that were done before."""
        self.began = time.monotonic()

    def add(self, count: float, reused: bool) -> None:
        """Count steps that are done now."""
        self.done = _whole(self.done + count)
        self.before += count if reused else 0

    @property
    def finished(self) -> bool:
        """Whether everything is done."""
        return self.done >= self.total

    def counts(self) -> str:
        """E.g. "50/100 steps"."""
        return f"{self.done:.0f}/{self.total}{' ' + self.unit if self.unit else ''}"

    def text(self) -> str:
        """Rate and remaining time, or the time that it took; "" before anything is done."""
        seconds, count = time.monotonic() - self.began, self.done - self.before
        if self.finished:
            return ", ".join(filter(None, (_rate(count, seconds, self.unit), duration(seconds))))
        if count <= 0 or not (rate := _rate(count, seconds, self.unit)):
            return ""
        left = (self.total - self.done) * seconds / count
        is_shown = END_SECONDS <= left <= LATEST_SECONDS
        end = f", until {time.strftime('%H:%M', time.localtime(time.time() + left))}" if is_shown else ""
        return f"{rate}, about {duration(left)} left{end}"


@contextmanager
def _bar(pace: _Pace) -> Iterator[Callable[..., None]]:
    from rich.progress import BarColumn, Progress, TextColumn  # 10 ms that help does without

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}  {task.fields[pace]}"),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(pace.description, total=pace.total, counts=pace.counts(), pace="", note="")
        bar.update(task, completed=pace.done)

        def advance(n: float = 1, note: str = "", reused: bool = False) -> None:
            pace.add(n, reused)
            bar.update(task, completed=pace.done, counts=pace.counts(), pace=pace.text(), note=note)

        yield advance


@contextmanager
def _lines(pace: _Pace) -> Iterator[Callable[..., None]]:
    last = pace.began - QUIET_SECONDS + FIRST_SECONDS
    finished = False

    def advance(n: float = 1, note: str = "", reused: bool = False) -> None:
        nonlocal last, finished
        pace.add(n, reused)
        now = time.monotonic()
        if finished or (not pace.finished and now - last < QUIET_SECONDS):
            return
        last, finished = now, pace.finished
        words = (f"{pace.description}: {pace.counts()}", pace.text(), note)
        print(harmless(", ".join(filter(None, words))), file=sys.stdout, flush=True)

    yield advance


def _whole(done: float) -> float:
    """`done` without the rounding of a sum of shares: 7.9999999 is 8."""
    return round(done) if abs(done - round(done)) < 1e-6 else done


def _rate(count: float, seconds: float, unit: str) -> str:
    """E.g. "2.5 videos/s" or "4.1 s each", whichever is easier to read."""
    if count <= 0 or seconds <= 0:
        return ""
    rate = count / seconds
    return f"{rate:.3g} {unit or 'steps'}/s" if rate >= 1 else f"{1 / rate:.3g} s each"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, e.g. "1 prompt", "3 prompts"; `plural` where it is not the noun with an "s"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def latency(seconds: float, digits: int = 2) -> str:
    """A measured time with so many significant digits: "12 ms", "0.34 s", "25 s"."""
    value, unit = (seconds * 1000, "ms") if seconds < 0.1 else (seconds, "s")
    if value >= 10**digits:
        return f"{value:.0f} {unit}"
    return f"{float(f'{value:.{digits}g}'):g} {unit}"


def duration(seconds: float) -> str:
    """How long a computation takes: "12 s", "3 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def duration_range(low: float, high: float) -> str:
    """The limits of a time: "4 min to 9 min", or one time where both are written alike."""
    first, last = duration(low), duration(high)
    return first if first == last else f"{first} to {last}"


def file_size(count: float) -> str:
    """Bytes in the unit that is easiest to read: "999 B", "1.3 GB"."""
    if count < 1000:
        return f"{count:.0f} B"
    unit = min(int(math.log10(count) / 3), 4)
    return f"{count / 1000**unit:.3g} {('KB', 'MB', 'GB', 'TB')[unit - 1]}"
