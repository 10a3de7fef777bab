"""The tpqrt sweep: R of everything seen so far, one cache-sized slab after the other.

The triangle R and one slab fit in the second-level cache, so each row of A is read from memory once, whatever
its chunk.  LAPACK's unblocked panels (geqrf on a whole chunk) are 4 to 20 times slower for n ≤ 256.

Reference: Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and LU
factorizations", SISC 34 (2012), arXiv:0809.2407: sequential TSQR with a flat tree.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels.blas import Products
from pipelines.kernels.growth import Growth
from pipelines.kernels.lapack import Tpmqrt, Tpqrt

CACHE_BYTES = 768 * 1024
"""A slab is about this large: it has to share the second-level cache (1 MB or more) with the panels of R."""

MOST_ROWS = 4096
"""Rows of a slab at the most: on NIST's references, tiled, slabs of 12,000 rows cost up to two digits."""

WIDE_ROWS = 1024
"""Rows of a slab of wide matrices: with fewer, adding p × p products would take as long as making them."""


def block_width(p: int) -> int:
    """Columns of a block reflector (NB of tpqrt), by measurement: narrow ones win while R fits in the cache."""
    return next((width for most, width in ((24, 4), (160, 8), (384, 16), (2048, 32)) if p <= most), 64)


def slab_rows(p: int, t: int, itemsize: int, slab_bytes: int = CACHE_BYTES) -> int:
    """Rows of a slab: cache-sized, and for wide R enough of them that R is not read too often."""
    by_cache = slab_bytes // max(1, (p + t) * itemsize)
    return int(max(64, min(p, WIDE_ROWS), min(by_cache, MOST_ROWS)))


Plain = tuple[np.ndarray, np.ndarray | None]
"""A (rows, n) and b (rows, k) in row order, in the type of the triangle."""


@dataclass
class Triangle:
    """What a sweep leaves behind, for M = [A₁ B] with p pivot columns A₁ and t trailing columns B.

    With A₁ = QR:  R is (p, p), C = QᴴB is (p, t), and tail[j] = ‖(I − QQᴴ) B eⱼ‖² is (t,).
    """

    R: np.ndarray
    C: np.ndarray
    tail: np.ndarray
    growth: Growth | None = None
    """What has been added to R by products and not yet put in; None when R is all there is."""

    @classmethod
    def empty(cls, p: int, t: int, dtype: np.dtype[Any]) -> "Triangle":
        """The triangle of no rows at all."""
        return cls(np.zeros((p, p), dtype, order="F"), np.zeros((p, t), dtype, order="F"), np.zeros(t))

    def settle(self) -> "Triangle":
        """The triangle with R up to date, by itself."""
        if self.growth is not None:
            self.growth.settle(self.R)
            self.growth = None
        return self


class Sweep:
    """One thread's workspace for triangles of p pivot and t trailing columns."""

    def __init__(self, p: int, t: int, dtype: np.dtype[Any], rows: int, block: int | None = None) -> None:
        self.p = p
        # Columns eight elements apart from a power of two: no two of them fight for the same cache set.
        memory = np.empty((rows + 8) * (p + t), dtype)
        self._S = memory.reshape((rows + 8, p + t), order="F")
        self._rows = memory.reshape((rows + 8, p + t))
        self._qr = Tpqrt(p, block or block_width(p), dtype)
        self._apply = Tpmqrt(self._qr, t)
        self._products = Products(p, dtype)

    def buffer(self, rows: int) -> np.ndarray:
        """Room for a slab (rows, p + t) in column order, to be filled and then absorbed."""
        return self._S[:rows]

    def add(
        self, triangle: Triangle, rows: int, fill: Callable[[np.ndarray], None], plain: Plain | None = None
    ) -> None:
        """Add a slab of so many rows to the triangle, in place: by products where it grows and they are safe.

        `fill` copies the rows to where it is told; `plain` are the same where they can be multiplied as they lie.
        """
        growth = triangle.growth
        if growth is not None:
            if growth.ready(triangle.R):
                if growth.take(self.product(growth.P, rows, fill, plain), rows):
                    if growth.grown:
                        growth.settle(triangle.R)
                    return
                growth.settle(triangle.R)
                growth.fail()
            growth.rows += rows
        S = self.buffer(rows)
        fill(S)
        self.absorb(triangle, S)

    def product(
        self, P: np.ndarray | None, rows: int, fill: Callable[[np.ndarray], None], plain: Plain | None
    ) -> np.ndarray:
        """SᴴS of a slab (p, p), or WᴴW of W = S P, of which the upper triangle counts; the next call overwrites it."""
        if P is None and plain is not None:
            return self._products.gram(*plain)
        S = self._rows[:rows]
        fill(S)
        return self._products.gram(S if P is None else self._products.divide(S, P))

    def absorb(self, triangle: Triangle, S: np.ndarray) -> None:
        """Add the rows of S (rows, p + t) to the triangle, in place; S is used up."""
        A, B = S[:, : self.p], S[:, self.p :]
        self._qr(triangle.R, A)
        self._apply(A, triangle.C, B)
        triangle.tail += squares(B)


def merge(left: Triangle, right: Triangle, block: int | None = None) -> Triangle:
    """The triangle of the rows of both: triangular on triangular, (2/3) p³ flops; both are settled."""
    p, t = left.settle().C.shape
    right.settle()
    result = Triangle(left.R.copy("F"), left.C.copy("F"), left.tail + right.tail)
    R, C = np.asfortranarray(np.triu(right.R)), right.C.copy("F")
    qr = Tpqrt(p, block or block_width(p), left.R.dtype, pentagon=p)
    qr(result.R, R)
    Tpmqrt(qr, t)(R, result.C, C)
    result.tail += squares(C)
    return result


def squares(B: np.ndarray) -> np.ndarray:
    """‖B eⱼ‖² of each column, as (columns,) float64."""
    return np.einsum("ij,ij->j", B.conj(), B).real


_own = threading.local()


def workspace(p: int, t: int, dtype: np.dtype[Any], rows: int, block: int | None) -> Sweep:
    """This thread's workspace; the last one is kept, since a worker sweeps the same shape again and again."""
    key = (p, t, dtype, rows, block)
    if getattr(_own, "key", None) != key:
        _own.key, _own.sweep = key, Sweep(p, t, dtype, rows, block)
    sweep: Sweep = _own.sweep
    return sweep
