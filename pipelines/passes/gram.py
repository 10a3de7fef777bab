"""Rows divided by a triangle that all tasks share, and their Gram matrix: states that add up."""

from dataclasses import dataclass

import numpy as np

from pipelines.kernels import panels, sweep
from pipelines.kernels.sweep import Triangle
from pipelines.matrix import Slab, Span
from pipelines.passes.factor import Factor, as_they_lie

FAN_IN = 4
"""States that one merge takes: sums cost little, and fewer at a time would be sent more often."""


@dataclass
class Sums:
    """G = Σ WᴴW (p, p), of which the upper triangle counts and which a finished span packs, (p (p + 1) / 2,)."""

    G: np.ndarray
    rest: Triangle | None = None
    """The triangle of the rows that were too large for it."""


@dataclass(frozen=True)
class Gram:
    """Σ WᴴW of W = S P, or Σ SᴴS, of slabs S whose product has no diagonal entry above `most`; R of the others."""

    factor: Factor
    """The pass that the others go through, and its sizes."""
    P: np.ndarray | None
    """R₀⁻¹ (p, p) in column order, or None where nothing has to be divided."""
    most: np.ndarray
    """(p,)"""
    name: str = "factor"

    @property
    def slab_rows(self) -> int:
        return self.factor.slab_rows

    @property
    def group(self) -> int:
        return self.factor.group

    @property
    def fan_in(self) -> int:
        return FAN_IN

    def start(self) -> Sums:
        p = self.factor.p
        return Sums(np.zeros((p, p), self.factor.dtype, order="F"))

    @property
    def alone(self) -> bool:
        """True when states are so large that a process works on one at a time, with all of its threads."""
        return self.factor.alone

    def absorb(self, state: Sums, slab: Slab) -> Sums:
        add = self._add_by_panels if self.alone else self._add
        if not add(state.G, slab):  # a NaN, too: reflectors carry it on, to be seen and reported
            state.rest = self.factor.absorb(state.rest or self.factor.start(), slab)
        return state

    def _add(self, G: np.ndarray, slab: Slab) -> bool:
        one = self.factor
        work = sweep.workspace(one.p, one.t, one.dtype, one.slab_rows, one.block)
        new = work.product(self.P, slab.a.shape[0], slab.fill, as_they_lie(slab, one.dtype))
        if not (new.diagonal().real <= self.most).all():
            return False
        G += new
        return True

    def _add_by_panels(self, G: np.ndarray, slab: Slab) -> bool:
        S = np.empty((slab.a.shape[0], self.factor.p))
        slab.fill(S)
        W = S if self.P is None else panels.divided(S, self.P, np.empty_like(S))
        if not (np.einsum("ij,ij->j", W, W) <= self.most).all():
            return False
        panels.add_gram(W, G)
        return True

    def merge(self, left: Sums, right: Sums) -> Sums:
        both = [state.rest for state in (left, right) if state.rest is not None]
        rest = self.factor.merge(*both) if len(both) == 2 else both[0] if both else None
        return Sums(left.G + right.G, rest)

    def finish(self, state: Sums, span: Span) -> Sums:
        rest = None if state.rest is None else self.factor.finish(state.rest, span)
        return Sums(packed(state.G), rest)

    def finite(self, state: Sums) -> bool:
        return bool(np.isfinite(state.G.diagonal()).all()) and (state.rest is None or self.factor.finite(state.rest))


def packed(G: np.ndarray) -> np.ndarray:
    """The upper triangle of G (p, p), column after column: (p (p + 1) / 2,)."""
    return np.concatenate([G[: j + 1, j] for j in range(len(G))]) if len(G) else G.reshape(0)


def unpacked(packed: np.ndarray, p: int) -> np.ndarray:
    """G (p, p) in column order, zeros below its diagonal."""
    G, start = np.zeros((p, p), packed.dtype, order="F"), 0
    for j in range(p):
        G[: j + 1, j] = packed[start : start + j + 1]
        start += j + 1
    return G
