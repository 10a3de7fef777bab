"""Rows made from a seed, on whichever worker needs them: a matrix to rehearse with, and a b whose x is known.

A = G D H: G (m, n) has independent uniform numbers of mean 0 and variance 1, D = diag(1, ..., 1/condition) falls
geometrically, and H = I - 2vvᵀ is orthogonal, so that a row costs O(n) beyond its random numbers.  Any cut of the rows
gives the same bits, because the k-th random number is a function of the seed and k: Philox is a counter that is
encrypted (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

WORDS = 4
"""Random words of 64 bits that Philox makes from one value of its counter."""
PIECE_BYTES = 128 * 1024
"""Rows are made so many at a time: they stay in a cache while they are scaled and reflected."""
FEW_COLUMNS = 4096
"""Columns of one product: NumPy cuts sums beyond 8,192 terms where its buffers end, which depends on the rows."""
ENTRIES, NOISE, REFLECTOR = range(3)
"""Which of a seed's sequences of random numbers."""
UNIT_VARIANCE = 12**0.5
"""Uniform numbers from -1/2 to 1/2, times this, have variance 1."""


@dataclass(frozen=True)
class Synthetic:
    """A tall A = G D H (rows, columns), or the transpose of one, each entry a function of the seed and its place."""

    rows: int
    """Of the tall matrix: at least as many as its columns."""
    columns: int
    condition: float
    """Of D; that of A is larger by a factor near 1 for a tall A: about (1 + √(n/m)) / (1 - √(n/m))."""
    seed: int
    dtype: np.dtype[Any]
    """float64, or float32: the same numbers rounded."""
    across: bool = False
    """True for a wide A, whose columns are what is made."""

    @property
    def shape(self) -> tuple[int, int]:
        return (self.columns, self.rows) if self.across else (self.rows, self.columns)

    @property
    def transposed(self) -> "Synthetic":
        """Aᵀ."""
        return replace(self, across=not self.across)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows start..stop (stop - start, columns), made now, or just before for the b beside them.

        Those made for b are in memory that the next b of this thread takes: use them before.
        """
        assert not self.across
        held = getattr(_made, "block", None)
        if held is not None and held[0] == (self, start, stop):
            _made.block = None
            found: np.ndarray = held[1]
            return found
        return self._make(start, stop, np.empty((stop - start, self.columns), self.dtype) if out is None else out)

    def row_sums(self, start: int, stop: int) -> np.ndarray:
        """A·1 of rows start..stop, (stop - start,) float64; the rows are kept for the read of A that follows."""
        shape = (stop - start, self.columns)
        buffer = getattr(_made, "buffer", None)
        if buffer is None or buffer.shape[0] < shape[0] or (buffer.shape[1], buffer.dtype) != (shape[1], self.dtype):
            buffer = _made.buffer = np.empty(shape, self.dtype)
        _made.block = None
        block = self._make(start, stop, buffer[: shape[0]])
        _made.block = (self, start, stop), block
        sums = np.empty(shape[0])
        for low, high in self._pieces(shape[0]):
            sums[low:high] = block[low:high].astype(np.float64, copy=False).sum(axis=1)
        return sums

    def identity(self, start: int, stop: int) -> int:
        """0: what is made follows from this object alone, which checkpoints are told of."""
        return 0

    touched = identity

    def _make(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        random = numbers(self.seed, ENTRIES, start * self.columns)
        scale, v = _directions(self.columns, self.condition, self.seed)
        for low, high in self._pieces(stop - start):
            part = out[low:high] if out.dtype == np.float64 else np.empty((high - low, self.columns))
            random.random(out=part)
            part -= 0.5
            part *= scale
            part -= (2 * _products(part, v))[:, None] * v
            out[low:high] = part
        return out

    def _pieces(self, rows: int) -> list[tuple[int, int]]:
        step = max(1, PIECE_BYTES // (8 * self.columns))
        return [(low, min(low + step, rows)) for low in range(0, rows, step)]


@dataclass(frozen=True)
class SyntheticRhs:
    """b = A·1 + noise (m, 1) float64, so that x is near ones; 1 + noise for a wide A, which can meet any b."""

    matrix: Synthetic
    noise: float
    """Standard deviation, uniform and independent."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Entries start..stop (stop - start, 1)."""
        sums = np.ones(stop - start) if self.matrix.across else self.matrix.row_sums(start, stop)
        noise = numbers(self.matrix.seed, NOISE, start).random(stop - start) - 0.5
        return (sums + self.noise * UNIT_VARIANCE * noise)[:, None]

    def identity(self, start: int, stop: int) -> int:
        """0, as for the matrix."""
        return 0

    touched = identity


_made = threading.local()
"""Rows that this thread made for b, until A is asked for them."""


def numbers(seed: int, sequence: int, first: int) -> np.random.Generator:
    """A generator whose next uniform number is number `first` of one of a seed's sequences."""
    words = np.random.Philox(key=np.array([seed, sequence], np.uint64), counter=first // WORDS)
    words.random_raw(first % WORDS, output=False)
    return np.random.Generator(words)


@lru_cache(maxsize=8)
def _directions(columns: int, condition: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of D, times what gives uniform numbers variance 1, and the unit vector v of H: (columns,) each."""
    v = numbers(seed, REFLECTOR, 0).random(columns) - 0.5
    return np.geomspace(1.0, 1.0 / condition, columns) * UNIT_VARIANCE, v / np.linalg.norm(v)


def _products(rows: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Rows times v, each added up in one order whatever rows stand beside it, which BLAS does not promise."""
    sums = np.zeros(len(rows))
    for low in range(0, len(v), FEW_COLUMNS):
        part = slice(low, low + FEW_COLUMNS)
        sums += np.einsum("ij,j->i", rows[:, part], v[part])
    return sums
