"""Products with Q, whose rows are made again from those of A: QᴴB in one read, Q C and what goes with it in another."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Rows, Target


@dataclass(frozen=True)
class Gather(LaterPass):
    """QᴴB (r, k): the state is the sum itself."""

    basis: Basis
    k: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "gather"

    def start(self) -> np.ndarray:
        return np.zeros((self.basis.rank, self.k), self.dtype)

    def absorb(self, state: np.ndarray, slab: Slab) -> np.ndarray:
        a, b = slab.values(self.dtype)
        assert b is not None
        state += self.basis.rows(a).conj().T @ b
        return state

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left + right

    def finite(self, state: np.ndarray) -> bool:
        # A NaN in bᵢⱼ makes all of column j NaN; A was looked at when it was factored.
        return bool(np.isfinite(state).all())


@dataclass(frozen=True)
class Output:
    """Rows that are made of q and b: q C, or b − q C, or the real number q C qᴴ."""

    name: str
    C: np.ndarray
    """(r, k); (r, r) for a quadratic form."""
    target: Target | None
    rest: bool = False
    """True for b − q C."""
    quadratic: bool = False
    """True for q C qᴴ."""

    @property
    def width(self) -> int:
        """Numbers in a row of it."""
        return 1 if self.quadratic else self.C.shape[1]

    def rows(self, q: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        """Its rows (rows, width) from those of Q and of B."""
        y = q @ self.C
        if self.quadratic:
            return np.asarray(np.einsum("ij,ij->i", y, q.conj()).real[:, None])
        if self.rest:
            assert b is not None
            return b - y
        return y


@dataclass
class Spreading:
    """Rows on their way out."""

    rows: list[Rows]
    """One for each output."""
    sum: complex = 0.0
    """Of all entries of Q: not finite when one of A is not."""


@dataclass(frozen=True)
class Spread:
    """Each output's rows, made of rows of Q."""

    basis: Basis
    outputs: tuple[Output, ...]
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    slab_rows: int
    group: int = 2**62
    """One state for a span: rows go out in order."""
    fan_in: int = 8
    name: str = "write"

    def start(self) -> Spreading:
        return Spreading([Rows(output.target) for output in self.outputs])

    def absorb(self, state: Spreading, slab: Slab) -> Spreading:
        a, b = slab.values(self.dtype)
        q = self.basis.rows(a)
        state.sum += complex(q.sum())
        for rows, output in zip(state.rows, self.outputs, strict=True):
            y = output.rows(q, b)
            rows.add(slab.start, y if output.quadratic else y.astype(self.stored, copy=False))
        return state

    def merge(self, left: Spreading, right: Spreading) -> Spreading:
        rows = [one + other for one, other in zip(left.rows, right.rows, strict=True)]
        return Spreading(rows, left.sum + right.sum)

    def finish(self, state: Spreading, span: Span) -> Spreading:
        return Spreading([rows.end() for rows in state.rows], state.sum)

    def finite(self, state: Spreading) -> bool:
        return bool(np.isfinite(state.sum))
