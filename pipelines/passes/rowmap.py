"""Y = A W written row by row, for a W that is given."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.matrix import Slab, Span
from pipelines.passes.output import Rows, Target


@dataclass
class Mapped:
    """Rows on their way out."""

    rows: Rows
    sum: complex = 0.0
    """Of all entries: not finite when one of them is not."""


@dataclass(frozen=True)
class RowMap:
    """Reads rows a and writes a W, for W (n, q)."""

    W: np.ndarray
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    slab_rows: int
    target: Target | None
    group: int = 2**62
    """One state for a span: rows go out in order."""
    fan_in: int = 8
    name: str = "transform"

    def start(self) -> Mapped:
        return Mapped(Rows(self.target))

    def absorb(self, state: Mapped, slab: Slab) -> Mapped:
        a, _ = slab.values(self.dtype)
        y = (a @ self.W).astype(self.stored, copy=False)
        state.sum += complex(y.sum())
        state.rows.add(slab.start, y)
        return state

    def merge(self, left: Mapped, right: Mapped) -> Mapped:
        return Mapped(left.rows + right.rows, left.sum + right.sum)

    def finish(self, state: Mapped, span: Span) -> Mapped:
        return Mapped(state.rows.end(), state.sum)

    def finite(self, state: Mapped) -> bool:
        return bool(np.isfinite(state.sum))
