"""R of [A b]: the pass that everything on the small side follows from, one read and Q never formed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels import sweep
from pipelines.kernels.sweep import Triangle
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
    name: str = "factor"
    over: np.ndarray | None = None
    """An R by which the rows are divided first: the factor of A R⁻¹ says how far that is from orthonormal."""

    def start(self) -> Triangle:
        return Triangle.empty(self.p, self.t, self.dtype)

    def absorb(self, state: Triangle, slab: Slab) -> Triangle:
        work = sweep.workspace(self.p, self.t, self.dtype, self.slab_rows, self.block)
        S = work.buffer(slab.a.shape[0])
        slab.fill(S)
        if self.over is not None:
            S[...] = sweep.rows_of_q(slab.values(self.dtype)[0], self.over)
        work.absorb(state, S)
        return state

    def merge(self, left: Triangle, right: Triangle) -> Triangle:
        return sweep.merge(left, right, self.block)

    def finish(self, state: Triangle, span: Span) -> Triangle:
        return state

    def finite(self, state: Triangle) -> bool:
        # A NaN in column j makes its norm NaN, and that is |R[j, j]|: n numbers tell about all of A.
        return bool(
            np.isfinite(state.R.diagonal()).all() and np.isfinite(state.C).all() and np.isfinite(state.tail).all()
        )
