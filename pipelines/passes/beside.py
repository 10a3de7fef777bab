"""A read of A beside what was stored of it row by row: is it still what it was said to be?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.gaussian import gaussian
from pipelines.kernels.scratch import norm2, product
from pipelines.kernels.sweep import squares
from pipelines.matrix import Slab
from pipelines.passes.base import LaterPass


@dataclass
class Held:
    """Sums over rows of A and Y."""

    gram: np.ndarray
    """YᴴY, (q, q)."""
    misfit: float
    """‖A − Y F‖²."""
    norm: float
    """‖A‖²."""
    back: np.ndarray
    """YᴴA, (q, n); (q, 0) when it is not asked for."""


@dataclass(frozen=True)
class Beside(LaterPass):
    """Reads A and, as its right-hand sides, Y: how orthonormal Y is, and how far Y F is from A."""

    F: np.ndarray
    """(q, n)."""
    dtype: np.dtype[Any]
    slab_rows: int
    back: bool = False
    """True when YᴴA is wanted."""
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Held:
        q, n = self.F.shape
        return Held(np.zeros((q, q), self.dtype), 0.0, 0.0, np.zeros((q, n if self.back else 0), self.dtype))

    def absorb(self, state: Held, slab: Slab) -> Held:
        a, y = slab.values(self.dtype)
        assert y is not None
        state.gram += y.conj().T @ y
        state.norm += norm2(a)
        left = product(y, self.F, "misfit")
        state.misfit += norm2(np.subtract(a, left, out=left))
        if self.back:
            state.back += y.conj().T @ a
        return state

    def merge(self, left: Held, right: Held) -> Held:
        return Held(left.gram + right.gram, left.misfit + right.misfit, left.norm + right.norm, left.back + right.back)


@dataclass
class Probed:
    """Sums over rows of A and Xᴴ."""

    XW: np.ndarray
    """X Ω of random columns, (n, s)."""
    AW: np.ndarray
    """AᴴΩ, (n, s)."""


@dataclass(frozen=True)
class Probe(LaterPass):
    """Reads A and, as its right-hand sides, Xᴴ: what the random columns of Penrose's fourth condition need first."""

    n: int
    probes: int
    seed: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "probe"

    def start(self) -> Probed:
        XW, AW = (np.zeros((self.n, self.probes), self.dtype) for _ in range(2))
        return Probed(XW, AW)

    def absorb(self, state: Probed, slab: Slab) -> Probed:
        a, xh = slab.values(self.dtype)
        assert xh is not None
        omega = gaussian(self.seed, slab.start, slab.start + len(a), self.probes)
        state.XW += xh.conj().T @ omega
        state.AW += a.conj().T @ omega
        return state

    def merge(self, left: Probed, right: Probed) -> Probed:
        return Probed(left.XW + right.XW, left.AW + right.AW)


@dataclass
class Shortest:
    """Sums over rows of Aᴴ and of the x that belong to them."""

    Ax: np.ndarray
    """A x, (m, k)."""
    Qx: np.ndarray
    """Qᴴ x, (r, k)."""
    xx: np.ndarray
    """‖x eⱼ‖², (k,)."""
    outside: np.ndarray
    """‖x eⱼ − Q c eⱼ‖², (k,)."""


@dataclass(frozen=True)
class Outside(LaterPass):
    """Reads Aᴴ for a wide A and, as its right-hand sides, x: A x, and what of x is no Q c."""

    basis: Basis
    """Q: the rows' span, orthonormal."""
    c: np.ndarray
    """(r, k)."""
    m: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Shortest:
        k = self.c.shape[1]
        Ax, Qx = np.zeros((self.m, k), self.dtype), np.zeros(self.c.shape, self.dtype)
        return Shortest(Ax, Qx, np.zeros(k), np.zeros(k))

    def absorb(self, state: Shortest, slab: Slab) -> Shortest:
        a, x = slab.values(self.dtype)
        assert x is not None
        q = self.basis.rows(a)
        state.Ax += a.conj().T @ x
        state.Qx += q.conj().T @ x
        state.xx += squares(x)
        state.outside += squares(x - q @ self.c)
        return state

    def merge(self, left: Shortest, right: Shortest) -> Shortest:
        return Shortest(left.Ax + right.Ax, left.Qx + right.Qx, left.xx + right.xx, left.outside + right.outside)
