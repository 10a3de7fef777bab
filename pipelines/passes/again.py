"""Rows that a job has stored, beside the same rows made again: how far apart are they?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.scratch import norm2
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab
from pipelines.passes.apply import Output
from pipelines.passes.base import LaterPass


@dataclass
class Remade:
    """Sums over rows of A and of all outputs, side by side."""

    apart: np.ndarray
    """‖y − y′‖² of each column, stored and made again, (w,)."""
    size: np.ndarray
    """‖y′‖² of each column, (w,)."""
    norm: float
    """‖A‖²."""
    gram: np.ndarray
    """YᴴY of what is stored, (w, w); (0, 0) when it is not asked for."""


@dataclass(frozen=True)
class Again(LaterPass):
    """Reads A and, as its right-hand sides, B (of `k` columns) and what was stored of the outputs, w columns in all."""

    basis: Basis
    outputs: tuple[Output, ...]
    k: int
    dtype: np.dtype[Any]
    slab_rows: int
    measure: bool = False
    """True when YᴴY is wanted."""
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Remade:
        w = sum(output.width for output in self.outputs)
        q = w if self.measure else 0
        return Remade(np.zeros(w), np.zeros(w), 0.0, np.zeros((q, q), self.dtype))

    def absorb(self, state: Remade, slab: Slab) -> Remade:
        a, beside = slab.values(self.dtype)
        assert beside is not None
        q, b, y = self.basis.rows(a), beside[:, : self.k], beside[:, self.k :]
        made = np.hstack([output.rows(q, b) for output in self.outputs])
        state.apart += squares(y - made)
        state.size += squares(made)
        state.norm += norm2(a)
        if self.measure:
            state.gram += y.conj().T @ y
        return state

    def merge(self, left: Remade, right: Remade) -> Remade:
        return Remade(left.apart + right.apart, left.size + right.size, left.norm + right.norm, left.gram + right.gram)
