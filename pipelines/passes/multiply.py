"""W = Aᴴ A Z in one read: both products are taken while the rows are in the cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab, Span


@dataclass
class Multiplied:
    """Sums over rows."""

    W: np.ndarray
    """Aᴴ A Z, (n, l)."""
    squares: np.ndarray
    """‖A eⱼ‖² of each column, (n,); (0,) when they are known already."""


@dataclass(frozen=True)
class Multiply:
    """Reads rows a: y = a Z, W += aᴴ y."""

    Z: np.ndarray
    """(n, l)."""
    dtype: np.dtype[Any]
    slab_rows: int
    first: bool
    """True for the first read of A, which also looks at the size of its columns."""
    group: int = 2**62
    """One state for a span: merging them would cost as much as a few slabs."""
    fan_in: int = 8
    name: str = "multiply"

    def start(self) -> Multiplied:
        n = len(self.Z)
        return Multiplied(np.zeros(self.Z.shape, self.dtype), np.zeros(n if self.first else 0))

    def absorb(self, state: Multiplied, slab: Slab) -> Multiplied:
        a, _ = slab.values(self.dtype)
        state.W += a.conj().T @ (a @ self.Z)
        if self.first:
            state.squares += squares(a)
        return state

    def merge(self, left: Multiplied, right: Multiplied) -> Multiplied:
        return Multiplied(left.W + right.W, left.squares + right.squares)

    def finish(self, state: Multiplied, span: Span) -> Multiplied:
        return state

    def finite(self, state: Multiplied) -> bool:
        # A NaN in row i makes all of yᵢ NaN, and through it every entry of W.
        return bool(np.isfinite(state.W[:1]).all() and np.isfinite(state.squares).all())
