"""The pseudoinverse written as it is made, and a read that holds what was stored against Penrose's four conditions."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.gaussian import gaussian
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Rows, Target


@dataclass
class Inverted:
    """Products with random columns, and rows of Xᴴ on their way out."""

    XW: np.ndarray
    """X Ω, (n, s)."""
    AW: np.ndarray
    """Aᴴ Ω, (n, s)."""
    rows: Rows


@dataclass(frozen=True)
class Invert(LaterPass):
    """X = K Qᴴ (n, m), its columns from rows of Q; what is written are rows of Xᴴ = Q Kᴴ."""

    basis: Basis
    K: np.ndarray
    """(n, r)."""
    probes: int
    """Columns of Ω, for the condition that no sum over rows can see."""
    seed: int
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    slab_rows: int
    target: Target | None
    keep: bool = True
    """False when nobody wants the rows themselves."""
    group: int = 2**62
    """One state for a span: rows go out in order."""
    fan_in: int = 8
    name: str = "write"

    def start(self) -> Inverted:
        dtype = np.result_type(self.dtype, self.stored)
        XW, AW = (np.zeros((len(self.K), self.probes), dtype) for _ in range(2))
        return Inverted(XW, AW, Rows(self.target))

    @cached_property
    def _steps(self) -> tuple[Basis, np.ndarray]:
        return self.basis.before(self.K.conj().T)

    def of(self, a: np.ndarray) -> np.ndarray:
        """The rows of Xᴴ (rows, n) that belong to rows of A."""
        first, rest = self._steps
        x: np.ndarray = first.rows(a) @ rest
        return x

    def absorb(self, state: Inverted, slab: Slab) -> Inverted:
        a, _ = slab.values(self.dtype)
        x = self.of(a).astype(self.stored, copy=False)
        if self.keep:
            state.rows.add(slab.start, x)
        if self.probes:
            omega = gaussian(self.seed, slab.start, slab.start + len(a), self.probes)
            state.XW += x.conj().T @ omega
            state.AW += a.conj().T @ omega
        return state

    def merge(self, left: Inverted, right: Inverted) -> Inverted:
        return Inverted(left.XW + right.XW, left.AW + right.AW, left.rows + right.rows)

    def finish(self, state: Inverted, span: Span) -> Inverted:
        return Inverted(state.XW, state.AW, state.rows.end())


@dataclass
class Checked:
    """Sums over rows of A and Xᴴ, as both are stored."""

    XA: np.ndarray
    """X A, (n, n)."""
    skew: np.ndarray
    """‖(AX − (AX)ᴴ) ωⱼ‖² for each random column, (s,)."""


@dataclass(frozen=True)
class Penrose(LaterPass):
    """Reads A and, as its right-hand sides, Xᴴ; of an operator Xᴴ is made again."""

    XW: np.ndarray
    AW: np.ndarray
    made: Invert | None
    """What makes Xᴴ where it is not stored."""
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Checked:
        n, s = self.XW.shape
        return Checked(np.zeros((n, n), np.result_type(self.dtype, self.XW)), np.zeros(s))

    def absorb(self, state: Checked, slab: Slab) -> Checked:
        a, xh = slab.values(self.dtype)
        if xh is None:
            assert self.made is not None
            xh = self.made.of(a)
        state.XA += xh.conj().T @ a
        state.skew += squares(a @ self.XW - xh @ self.AW)
        return state

    def merge(self, left: Checked, right: Checked) -> Checked:
        return Checked(left.XA + right.XA, left.skew + right.skew)
