"""Rounds: everybody once, then everybody again, so that a change of the machine's mood meets all alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.settings import say


@dataclass(frozen=True)
class Timed:
    """One measurement."""

    seconds: float
    x: np.ndarray | None = None
    """The answer, of those who give one."""
    parts: Mapping[str, float] | None = None
    """Seconds of what it is made of, where they are known."""


@dataclass(frozen=True)
class Contender:
    """Somebody whose time is taken."""

    name: str
    run: Callable[[], Timed]
    most_rounds: int = 100
    """Slow ones are measured less often."""


@dataclass(frozen=True)
class Series:
    """All measurements of one contender."""

    timed: tuple[Timed, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(one.seconds for one in self.timed)

    @property
    def x(self) -> np.ndarray | None:
        """The answer of the last round."""
        return self.timed[-1].x

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        each = [round(one.seconds, 5) for one in self.timed]
        found = {"median": round(self.seconds, 5), "min": min(each), "max": max(each), "each": each}
        parts = [one.parts for one in self.timed if one.parts]
        return found | ({"parts": parts} if parts else {})


def interleave(contenders: Sequence[Contender], rounds: int) -> dict[str, Series]:
    """The measurements of each contender by name; each round begins with another one."""
    found: dict[str, list[Timed]] = {one.name: [] for one in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for one in [*contenders[first:], *contenders[:first]]:
            if number < one.most_rounds:
                found[one.name].append(one.run())
                say(f"    round {number + 1}: {one.name} {found[one.name][-1].seconds:.3f} s")
    return {name: Series(tuple(timed)) for name, timed in found.items()}
