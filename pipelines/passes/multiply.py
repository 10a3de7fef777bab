"""W = Aᴴ A Z in one read: both products are taken while the rows are in the cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.scratch import adjoint, product
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab
from pipelines.passes.base import LaterPass


@dataclass
class Multiplied:
    """Sums over rows."""

    Wh: np.ndarray
    """(AᴴAZ)ᴴ, (l, n)."""
    squares: np.ndarray
    """‖A eⱼ‖² of each column, (n,); (0,) when they are known already."""
    largest: float = 0.0
    """The largest of all entries (real or imaginary part), whose square may be no number any more."""


@dataclass(frozen=True)
class Multiply(LaterPass):
    """Reads rows a: yᴴ = Zᴴ aᴴ, Wᴴ += yᴴ a, in the order that keeps both products with a few rows fast."""

    Zh: np.ndarray
    """Zᴴ, (l, n)."""
    dtype: np.dtype[Any]
    slab_rows: int
    first: bool
    """True for the first read of A, which also looks at the size of its columns."""
    group: int = 2**62
    """One state for a span: merging them would cost as much as a few slabs."""
    fan_in: int = 8
    name: str = "multiply"

    def start(self) -> Multiplied:
        return Multiplied(np.zeros(self.Zh.shape, self.dtype), np.zeros(self.Zh.shape[1] if self.first else 0))

    def absorb(self, state: Multiplied, slab: Slab) -> Multiplied:
        a, _ = slab.values(self.dtype)
        state.Wh += product(product(self.Zh, adjoint(a), "y"), a, "W")
        if self.first:
            state.squares += squares(a)
            for part in (a.real, a.imag) if np.iscomplexobj(a) else (a,):
                state.largest = max(state.largest, float(part.max(initial=0.0)), -float(part.min(initial=0.0)))
        return state

    def merge(self, left: Multiplied, right: Multiplied) -> Multiplied:
        largest = max(left.largest, right.largest)
        return Multiplied(left.Wh + right.Wh, left.squares + right.squares, largest)

    def finite(self, state: Multiplied) -> bool:
        # A NaN in row i makes all of yᵢ NaN, and through it every entry of W.
        return bool(np.isfinite(state.Wh[:, :1]).all() and np.isfinite(state.squares).all())
