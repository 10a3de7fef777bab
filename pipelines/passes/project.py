"""Y = A B T for an orthonormalising basis B and a small T: Q and U, written as they are made and measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Rows, Target


@dataclass
class Projected:
    """Sums over rows, and rows on their way out."""

    gram: np.ndarray
    """YᴴY, (q, q): the identity for orthonormal Y."""
    misfit: np.ndarray
    """‖(A − Y F) eⱼ‖² of each column, (n,)."""
    back: np.ndarray
    """Aᴴ Y, (n, q); (0, q) when it is not asked for."""
    rows: Rows


@dataclass(frozen=True)
class Project(LaterPass):
    """The rows of Y (m, q), with q columns of T or of the basis; A ≈ Y F is measured when there is an F (q, n)."""

    basis: Basis
    T: np.ndarray | None
    F: np.ndarray | None
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    """Number type of the output: what is measured is what is stored."""
    slab_rows: int
    target: Target | None
    measure: bool = False
    """True when YᴴY is wanted without an F."""
    back: int = 0
    """n when AᴴY is wanted."""
    keep: bool = True
    """False when nobody wants the rows themselves."""
    group: int = 2**62
    """One state for a span: rows go out in order."""
    fan_in: int = 8
    name: str = "write"

    @property
    def q(self) -> int:
        """Columns of Y."""
        return self.basis.rank if self.T is None else self.T.shape[1]

    def start(self) -> Projected:
        n = 0 if self.F is None else self.F.shape[1]
        gram, back = (np.zeros((rows, self.q), self.dtype) for rows in (self.q, self.back))
        return Projected(gram, np.zeros(n), back, Rows(self.target))

    def absorb(self, state: Projected, slab: Slab) -> Projected:
        a, _ = slab.values(self.dtype)
        y = self.basis.rows(a)
        if self.T is not None:
            y = y @ self.T
        y = y.astype(self.stored, copy=False)
        if self.keep:
            state.rows.add(slab.start, y)
        if self.measure or self.F is not None:
            state.gram += y.conj().T @ y
        if self.F is not None:
            state.misfit += squares(a - y @ self.F)
        if self.back:
            state.back += a.conj().T @ y
        return state

    def merge(self, left: Projected, right: Projected) -> Projected:
        return Projected(
            left.gram + right.gram, left.misfit + right.misfit, left.back + right.back, left.rows + right.rows
        )

    def finish(self, state: Projected, span: Span) -> Projected:
        return Projected(state.gram, state.misfit, state.back, state.rows.end())
