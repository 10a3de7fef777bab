"""x = Aᴴ y for a wide A, read as rows of Aᴴ, and in the same read A x: what y promises and what it leaves over.

A correction dy of y is added to x as Aᴴ dy, never to y: Aᴴ (y + dy) would round as much as Aᴴ y did.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.kernels.basis import Basis
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Target
from pipelines.small.rounding import rounded


@dataclass
class Combined:
    """Sums over rows of Aᴴ, and the rows of x that nobody has stored yet."""

    Ax: np.ndarray
    """A x, (m, k)."""
    xx: np.ndarray
    """‖x eⱼ‖², (k,)."""
    lost: np.ndarray
    """The same of what a narrower number type has taken from x."""
    pieces: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Combine(LaterPass):
    """x = Aᴴ y₁ + Aᴴ y₂ + …: stored span by span in the array `target`, or kept, or only measured."""

    ys: tuple[np.ndarray, ...]
    """Each (m, k): the first y and its corrections."""
    dtype: np.dtype[Any]
    slab_rows: int
    keep: bool
    """True when x is wanted, False when only A x is."""
    target: Target | None = None
    """A Zarr array (n, k) whose chunks are the spans, or None to keep x in memory."""
    stored: np.dtype[Any] | None = None
    """The number type that x will have: what is measured is what is stored."""
    over: Basis | None = None
    """A basis that the rows are taken to first: x = Aᴴ R⁻¹ y."""
    group: int = 64
    fan_in: int = 8
    name: str = "combine"

    def start(self) -> Combined:
        k = self.ys[0].shape[1]
        return Combined(np.zeros(self.ys[0].shape, self.dtype), np.zeros(k), np.zeros(k))

    def absorb(self, state: Combined, slab: Slab) -> Combined:
        a, _ = slab.values(self.dtype)
        q = a if self.over is None else self.over.rows(a)
        x = q @ self.ys[0]
        for y in self.ys[1:]:
            x += q @ y
        if self.stored is not None:
            whole, x = x, rounded(x, self.stored)
            state.lost += squares(x - whole)
        state.Ax += a.conj().T @ x
        state.xx += squares(x)
        if self.keep:
            state.pieces.append(x)
        return state

    def merge(self, left: Combined, right: Combined) -> Combined:
        lost = left.lost + right.lost
        return Combined(left.Ax + right.Ax, left.xx + right.xx, lost, left.pieces + right.pieces)

    def finish(self, state: Combined, span: Span) -> Combined:
        if self.target is not None and state.pieces:
            storage.write_rows(self.target.url, span.start, np.concatenate(state.pieces))
            return Combined(state.Ax, state.xx, state.lost)
        return state
