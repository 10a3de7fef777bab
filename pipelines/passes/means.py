"""Means of columns, of what is not NaN: sums of differences from a first guess, which cancel nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.matrix import Slab
from pipelines.passes.base import LaterPass


@dataclass
class Sums:
    """Sums over rows, by column."""

    sum: np.ndarray
    """Σ (aᵢⱼ − guessⱼ), (n,)."""
    count: np.ndarray
    """Entries that are not NaN, (n,)."""


@dataclass(frozen=True)
class Means(LaterPass):
    """Reads rows from which the guess is taken off already."""

    n: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "means"

    def start(self) -> Sums:
        return Sums(np.zeros(self.n, self.dtype), np.zeros(self.n))

    def absorb(self, state: Sums, slab: Slab) -> Sums:
        a, _ = slab.values(self.dtype)
        there = ~np.isnan(a)
        state.sum += np.where(there, a, 0).sum(axis=0)
        state.count += there.sum(axis=0)
        return state

    def merge(self, left: Sums, right: Sums) -> Sums:
        return Sums(left.sum + right.sum, left.count + right.count)

    def finite(self, state: Sums) -> bool:
        return bool(np.isfinite(state.sum).all())
