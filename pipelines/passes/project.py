"""Y = A B T for an orthonormalising basis B and a small T: Q and U, written as they are made and measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.scratch import adjoint, norm2, product
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Rows, Target


@dataclass
class Projected:
    """Sums over rows, and rows on their way out."""

    gram: np.ndarray
    """YᴴY, (q, q): the identity for orthonormal Y."""
    misfit: float
    """‖A − Y F‖²."""
    back: np.ndarray
    """Yᴴ A, (q, n); (q, 0) when it is not asked for."""
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
    """n when YᴴA is wanted."""
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
        dtype = np.result_type(self.dtype, self.stored)
        gram, back = (np.zeros((self.q, columns), dtype) for columns in (self.q, self.back))
        return Projected(gram, 0.0, back, Rows(self.target))

    def absorb(self, state: Projected, slab: Slab) -> Projected:
        a, _ = slab.values(self.dtype)
        y = self.basis.rows(a)
        if self.T is not None:
            y = y @ self.T
        y = y.astype(self.stored, copy=False)
        if self.keep:
            state.rows.add(slab.start, y)
        if self.measure or self.F is not None:
            whole = y.astype(state.gram.dtype, copy=False)  # sums of few digits would be noise of their own
            state.gram += whole.conj().T @ whole
        if self.F is not None:
            left = product(y, self.F, "misfit")
            state.misfit += norm2(np.subtract(a, left, out=left))
        if self.back:
            state.back += product(adjoint(y), a, "back")
        return state

    def merge(self, left: Projected, right: Projected) -> Projected:
        return Projected(
            left.gram + right.gram, left.misfit + right.misfit, left.back + right.back, left.rows + right.rows
        )

    def finish(self, state: Projected, span: Span) -> Projected:
        return Projected(state.gram, state.misfit, state.back, state.rows.end())
