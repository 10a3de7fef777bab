"""The components of a wide matrix, one entry of each for each of its columns, with the column's mean and spread."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.centring import RowCentring
from pipelines.kernels.basis import Basis
from pipelines.matrix import Slab, Span
from pipelines.passes.base import LaterPass
from pipelines.passes.output import Rows, Target


@dataclass
class Written:
    """Sums over rows, and rows on their way out."""

    gram: np.ndarray
    """YᴴY, (k, k): the identity for orthonormal components."""
    empty: int | None
    """The first row that holds nothing but NaN."""
    rows: Rows
    mean: Rows
    scale: Rows


@dataclass(frozen=True)
class Components(LaterPass):
    """Reads rows of Aᴴ as they are stored and centres them here, since their means go out, too."""

    basis: Basis
    T: np.ndarray
    """(r, k)."""
    centring: RowCentring
    samples: int
    """Rows of A."""
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    slab_rows: int
    target: Target | None
    mean: Target | None
    scale: Target | None
    group: int = 2**62
    """One state for a span: rows go out in order."""
    fan_in: int = 8
    name: str = "write"

    def start(self) -> Written:
        gram = np.zeros((self.T.shape[1], self.T.shape[1]), np.result_type(self.dtype, self.stored))
        return Written(gram, None, Rows(self.target), Rows(self.mean), Rows(self.scale))

    def absorb(self, state: Written, slab: Slab) -> Written:
        a, _ = slab.values(self.dtype)
        centred, mean, norms = self.centring.parts(a)
        y = (self.basis.rows(centred) @ self.T).astype(self.stored, copy=False)
        state.gram += y.conj().T @ y
        state.rows.add(slab.start, y)
        state.mean.add(slab.start, mean.conj()[:, None])
        if self.centring.scale:
            state.scale.add(slab.start, norms[:, None] / max(1, self.samples - 1) ** 0.5)
        if self.centring.fill and state.empty is None:
            empty = np.flatnonzero(np.isnan(a).all(axis=1))
            state.empty = slab.start + int(empty[0]) if len(empty) else None
        return state

    def merge(self, left: Written, right: Written) -> Written:
        empty = left.empty if left.empty is not None else right.empty
        return Written(
            left.gram + right.gram, empty, left.rows + right.rows, left.mean + right.mean, left.scale + right.scale
        )

    def finish(self, state: Written, span: Span) -> Written:
        return Written(state.gram, state.empty, state.rows.end(), state.mean.end(), state.scale.end())


@dataclass
class Beheld:
    """Sums and extremes over rows of Aᴴ and what was stored for each of them."""

    misfit: float
    """‖A′ Z − Y S‖² of the centred rows A′."""
    mean: float
    """The largest difference of a mean from the stored one, of the root mean square of its row."""
    scale: float
    """The same of a spread."""


@dataclass(frozen=True)
class Beholds(LaterPass):
    """Reads rows of Aᴴ as they are stored and, as right-hand sides, their part of Y, their mean and their spread."""

    Z: np.ndarray
    """(samples, k)."""
    lengths: np.ndarray
    """The diagonal of S, (k,)."""
    centring: RowCentring
    samples: int
    dtype: np.dtype[Any]
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "verify"

    def start(self) -> Beheld:
        return Beheld(0.0, 0.0, 0.0)

    def absorb(self, state: Beheld, slab: Slab) -> Beheld:
        a, stored = slab.values(self.dtype)
        assert stored is not None
        centred, mean, norms = self.centring.parts(a)
        k = len(self.lengths)
        state.misfit += float((np.abs(centred @ self.Z - stored[:, :k] * self.lengths) ** 2).sum())
        size = np.hypot(np.abs(mean), norms / self.samples**0.5)
        size[size == 0] = 1
        state.mean = _largest(state.mean, np.abs(stored[:, k] - mean.conj()) / size)
        if self.centring.scale:
            spread = norms / max(1, self.samples - 1) ** 0.5
            state.scale = _largest(state.scale, np.abs(stored[:, k + 1] - spread) / size)
        return state

    def merge(self, left: Beheld, right: Beheld) -> Beheld:
        mean, scale = np.maximum(left.mean, right.mean), np.maximum(left.scale, right.scale)  # which keep a NaN
        return Beheld(left.misfit + right.misfit, float(mean), float(scale))


def _largest(before: float, found: np.ndarray) -> float:
    """The larger of two, or NaN where one is."""
    return float(np.maximum(before, found.max(initial=0.0)))
