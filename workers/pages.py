"""What the page of jobs, the reports and the command line show alike: a pass in figures, a spectrum, a template."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.units import format_bytes, format_clock, format_rate
from workers.api import PassReport


@cache
def template(name: str) -> Any:
    """A template of HTML, in which whatever is put is text."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).parent / "templates"
    return Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True).get_template(name)


def part_of(one: PassReport) -> float:
    """How much of a pass is done, from 0 to 1."""
    return one.rows / one.of_rows if one.of_rows else float(one.done)


def figures(one: PassReport) -> str:
    """A pass in a few words: "25 %, 100 MB/s, 0:30 left", or what it read in which time."""
    part = part_of(one)
    rate = format_rate(one.bytes / one.seconds) if one.seconds else ""
    if one.done:
        return f"{format_bytes(one.bytes)} in {format_clock(one.seconds)}, {rate}"
    left = f"{format_clock(one.seconds * (1 - part) / part)} left" if part else ""
    return ", ".join(filter(None, [f"{100 * part:.0f} %", rate, left]))


class Axes:
    """A plot's rectangle in pixels, with y growing downwards, and the values at its bottom and its top."""

    def __init__(self, left: float, right: float, top: float, bottom: float, low: float, high: float) -> None:
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.low, self.high = low, high

    def y(self, value: float) -> float:
        """Where a value lies."""
        return self.bottom - (self.bottom - self.top) * (value - self.low) / ((self.high - self.low) or 1.0)

    def line(self, values: Sequence[float]) -> str:
        """The points of a polyline from the left to the right."""
        step = (self.right - self.left) / max(1, len(values) - 1)
        return " ".join(f"{self.left + i * step:.1f},{self.y(value):.1f}" for i, value in enumerate(values))


def logarithms(values: Sequence[float]) -> list[float]:
    """Their decimal logarithms, or none where they would make no line: zeros have none, and one point is no line."""
    logs = [math.log10(value) for value in values if value > 0]
    return logs if len(logs) > 1 else []
