"""R of [A b]: the pass that everything on the small side follows from, one read and Q never formed."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines.kernels import sweep
from pipelines.kernels.basis import Basis
from pipelines.kernels.blas import in_row_order
from pipelines.kernels.growth import Growth
from pipelines.kernels.sweep import Plain, Triangle
from pipelines.matrix import Slab, Span


@dataclass(frozen=True)
class Factor:
    """R (p, p) of the first p columns of each slab, and C = Qᴴ B of its t others.

    With p = n + k and t = 0 the right-hand sides are columns of the factor:
    R of [A b] is [R₁₁ C; 0 P], and ‖P eⱼ‖ is the norm of the residual of bⱼ.
    With p = n and t = k they are carried along, which is cheaper when there are many: 2mn² + 4mnk flops.
    """

    p: int
    t: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int
    fan_in: int
    block: int | None = None
    products: bool = True
    """False for reflectors only, True for products where they are safe: see kernels/growth.py."""
    rhs: int = 0
    """How many of the p columns, the last ones, are right-hand sides."""
    alone: bool = False
    """True when a process shall work on one span at a time: states are that large, and threads help inside."""
    name: str = "factor"
    over: Basis | None = None
    """A basis that the rows are taken to first: the factor of A R⁻¹ says how far that is from orthonormal."""

    def start(self) -> Triangle:
        state = Triangle.empty(self.p, self.t, self.dtype)
        state.growth = Growth(self.rhs) if self.products and self.t == 0 else None
        return state

    def absorb(self, state: Triangle, slab: Slab) -> Triangle:
        work = sweep.workspace(self.p, self.t, self.dtype, self.slab_rows, self.block)
        if self.over is None:
            work.add(state, slab.a.shape[0], slab.fill, as_they_lie(slab, self.dtype))
        else:
            work.add(state, slab.a.shape[0], partial(_quotient, slab, self.dtype, self.over))
        return state

    def merge(self, left: Triangle, right: Triangle) -> Triangle:
        return sweep.merge(left, right, self.block)

    def finish(self, state: Triangle, span: Span) -> Triangle:
        return state.settle()

    def finite(self, state: Triangle) -> bool:
        # A NaN in column j makes its norm NaN, and that is |R[j, j]|: n numbers tell about all of A.
        return bool(
            np.isfinite(state.R.diagonal()).all() and np.isfinite(state.C).all() and np.isfinite(state.tail).all()
        )


def as_they_lie(slab: Slab, dtype: np.dtype[Any]) -> Plain | None:
    """The rows where BLAS can take them without a copy."""
    if slab.w is not None or not in_row_order(slab.a, dtype):
        return None
    if slab.b is None or in_row_order(slab.b, dtype):
        return slab.a, slab.b
    return slab.a, np.ascontiguousarray(slab.b, dtype)


def _quotient(slab: Slab, dtype: np.dtype[Any], over: Basis, S: np.ndarray) -> None:
    S[...] = over.rows(slab.values(dtype)[0])
