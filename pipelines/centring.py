"""Rows without the means of their columns, or of themselves, and scaled: what PCA looks at, made as rows are read."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Centring:
    """a ↦ (a − shift) · by, with a one before it when there is a column of ones."""

    shift: np.ndarray
    """(n,)."""
    by: np.ndarray
    """(n,)."""
    ones: bool = False
    missing: bool = False
    """True when NaN is an entry that is missing, and no fault."""
    fill: bool = False
    """True when what is missing takes the value of the shift."""

    def __call__(self, a: np.ndarray) -> np.ndarray:
        """Rows (rows, n) as (rows, n) or (rows, 1 + n), in the type of the shift."""
        first = int(self.ones)
        out = np.ones((a.shape[0], first + a.shape[1]), np.result_type(self.shift, np.float64))
        inner = out[:, first:]
        np.subtract(a, self.shift, out=inner)
        inner *= self.by
        if self.fill:
            inner[np.isnan(inner)] = 0
        return out


@dataclass(frozen=True)
class RowCentring:
    """Each row without its own mean, and of length one when it is scaled: rows of Aᴴ for the columns of a wide A."""

    scale: bool = False
    fill: bool = False
    """True when NaN is an entry that is missing, and takes the mean of the others."""
    missing: ClassVar[bool] = False
    ones: ClassVar[bool] = False

    def __call__(self, a: np.ndarray) -> np.ndarray:
        """Rows (rows, m), centred, in double precision."""
        return self.parts(a)[0]

    def parts(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows, their means (rows,), and the norms that they had without those (rows,)."""
        raw, a = a, a.astype(np.result_type(a.dtype, np.float64))
        there = ~np.isnan(a) if self.fill else None
        with np.errstate(invalid="ignore", over="ignore"):
            # A second pass over the differences takes off what rounding left of a mean far larger than they are.
            mean = self._means(a, there)
            a -= mean[:, None]
            rest = self._means(a, there)
            a -= rest[:, None]
            if there is not None:
                a[~there] = 0
            norms = np.linalg.norm(a, axis=1)
            if self.scale:
                a /= np.where(norms > 0, norms, 1)[:, None]
        bad = ~np.isfinite(norms)
        a[bad] = raw[bad]  # as they are, so that what is wrong with them can be found
        return a, mean + rest, norms

    @staticmethod
    def _means(a: np.ndarray, there: np.ndarray | None) -> np.ndarray:
        if there is None:
            return np.asarray(a.mean(axis=1)) if a.shape[1] else np.zeros(len(a), a.dtype)
        return np.asarray(np.where(there, a, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1))
