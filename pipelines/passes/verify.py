"""What a given x leaves over: r = b − A x, its norm, and Aᴴ r, from a second read of the matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab
from pipelines.passes.base import LaterPass


@dataclass
class Leftover:
    """Sums over rows; r = b − A x has one column for each right-hand side."""

    g: np.ndarray
    """Aᴴ r, (n, k): zero at a least-squares solution."""
    rss: np.ndarray
    """‖r eⱼ‖², (k,)."""
    noise: np.ndarray
    """Σᵢ ‖aᵢD‖² |rᵢ|², (k,): the square of the rounding error of D g, in units of u."""
    heaviest: float
    """The largest ‖aᵢD‖² of a row of A."""
    lightest: float
    """The smallest ‖aᵢD‖² that is not zero."""


@dataclass(frozen=True)
class Verify(LaterPass):
    """The leftover of x (n, k), and the sizes of rows whose columns are scaled by D (n,)."""

    x: np.ndarray
    D: np.ndarray
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Leftover:
        k = self.x.shape[1]
        return Leftover(np.zeros(self.x.shape, self.dtype), np.zeros(k), np.zeros(k), 0.0, np.inf)

    def absorb(self, state: Leftover, slab: Slab) -> Leftover:
        a, b = slab.values(self.dtype)
        assert b is not None
        r = b - a @ self.x
        state.g += a.conj().T @ r
        state.rss += squares(r)
        rows = absolute_squares(a) @ self.D**2
        state.noise += rows @ absolute_squares(r)
        rows = rows[rows > 0]
        state.heaviest = max(state.heaviest, float(rows.max(initial=0.0)))
        state.lightest = min(state.lightest, float(rows.min(initial=np.inf)))
        return state

    def merge(self, left: Leftover, right: Leftover) -> Leftover:
        heaviest, lightest = max(left.heaviest, right.heaviest), min(left.lightest, right.lightest)
        return Leftover(left.g + right.g, left.rss + right.rss, left.noise + right.noise, heaviest, lightest)


def absolute_squares(a: np.ndarray) -> np.ndarray:
    """|aᵢⱼ|², real."""
    result: np.ndarray = np.square(a.real) + np.square(a.imag) if a.dtype.kind == "c" else np.square(a)
    return result
