"""How a run looks while it goes on: live bars on a terminal, plain lines everywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipelines.progress import Event, Listener, Note, PassFinished, PassProgress, PassStarted, ignore
from pipelines.units import counted, format_bytes, format_clock, format_count, format_rate
from workers.output import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 2
"""Lines never come faster than this."""
MOST_SECONDS_BETWEEN_LINES = 60
"""A long pass says something at least this often."""


@contextmanager
def watching(quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows what a run tells on stderr: bars on a terminal, lines elsewhere, or nothing."""
    if quiet:
        yield ignore
    elif sys.stderr is not None and sys.stderr.isatty():
        with live_bars() as bars:
            yield _never_in_the_way(bars)
    else:
        yield Lines()


def _never_in_the_way(listener: Listener) -> Listener:
    """The listener for as long as the terminal is there: a run goes on without one."""

    def tell(event: Event) -> None:
        with suppress(OSError, ValueError):
            listener(event)

    return tell


class Lines:
    """Plain lines: one for every 10 % of a pass, or for every minute of a long one."""

    def __init__(self, tell: Callable[[str], None] = say) -> None:
        self._say = tell
        self._rows = 0
        self._said_rows = 0
        self._said_seconds = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case PassStarted():
                self._rows, self._said_rows, self._said_seconds = event.rows, 0, 0.0
                size = f"{event.rows:,} rows, {format_bytes(event.bytes)}"
                self._say(f"{event.name}: {size}, in {counted(event.spans, 'task')}")
            case PassProgress() if self._is_worth_a_line(event):
                self._said_rows, self._said_seconds = event.rows, event.seconds
                state = state_of(event, self._rows, memory="worker memory")
                percent = 100 * event.rows // max(self._rows, 1)
                self._say(f"{event.name}: {percent} % of {self._rows:,} rows, {state}")
            case PassFinished():
                speed = format_rate(event.bytes / max(event.seconds, 1e-9))
                self._say(f"{event.name}: done, {event.rows:,} rows in {format_clock(event.seconds)}, {speed}")
            case Note():
                self._say(event.text)

    def _is_worth_a_line(self, event: PassProgress) -> bool:
        waited = event.seconds - self._said_seconds
        moved = event.rows - self._said_rows >= 0.1 * self._rows
        return waited >= SECONDS_BETWEEN_LINES and (moved or waited >= MOST_SECONDS_BETWEEN_LINES)


@contextmanager
def live_bars() -> Iterator["Bars"]:
    """A bar for each pass, drawn on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description:<8}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}", markup=False),
        console=Console(stderr=True),
        expand=True,
    )
    with progress:
        yield Bars(progress)


class Bars:
    """Keeps the bars of a run up to date."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._rows: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case PassStarted():
                total = max(event.rows, 1)
                self._rows[event.name] = event.rows
                self._bars[event.name] = self._progress.add_task(event.name, total=total, state="starts")
            case PassProgress():
                rows = self._rows[event.name]
                state = f"{_short(event.rows)} of {_short(rows)} rows, {state_of(event, rows)}"
                self._progress.update(self._bars[event.name], completed=event.rows, state=state)
            case PassFinished():
                speed = format_rate(event.bytes / max(event.seconds, 1e-9))
                state = f"{_short(event.rows)} rows in {format_clock(event.seconds)}, {speed}"
                self._progress.update(self._bars[event.name], completed=max(event.rows, 1), state=state)
            case Note():
                self._progress.console.print(event.text, markup=False, highlight=False, soft_wrap=True)


def _short(rows: int) -> str:
    """Rows in a few characters: 336k, 1.2M."""
    return format_count(rows, "").replace(" ", "")


def state_of(event: PassProgress, rows: int, memory: str = "worker") -> str:
    """Speed, time left and memory: "1.2 GB/s, 0:03 left, worker 212 MiB"."""
    parts = [format_rate(event.bytes / max(event.seconds, 1e-9))]
    if event.rows:
        parts.append(f"{format_clock(event.seconds * (rows - event.rows) / event.rows)} left")
    if event.memory_bytes:
        parts.append(f"{memory} {format_bytes(event.memory_bytes)}")
    return ", ".join(parts)
