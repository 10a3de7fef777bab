"""Rows of A made orthonormal without storing Q: divided by R, or times V S⁻¹, and divided by what was missing.

Q₁ = A R⁻¹ is orthonormal up to κ(R) u only.  One more factor, Q₁ = Q R₂, costs a read and makes it so to roundoff,
whatever the condition number, since Q₁ is well conditioned: A. R. Benson, D. F. Gleich, J. Demmel, "Direct QR
factorizations for tall-and-skinny matrices in MapReduce architectures" (2013), arXiv:1301.1071, indirect TSQR with
one step of refinement.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular


@dataclass(frozen=True)
class Basis:
    """a ↦ a[order] R⁻¹ for upper triangular R (r, r), or a ↦ a W for W (n, r); then ↦ · R₂⁻¹ when there is an R₂."""

    R: np.ndarray | None = None
    W: np.ndarray | None = None
    R2: np.ndarray | None = None
    """Well conditioned, so that dividing by it may be a product with its inverse."""

    order: np.ndarray | None = None
    """The columns of A that R belongs to, (r,), when they are not all of them in their own order."""

    @cached_property
    def _P2(self) -> np.ndarray | None:
        return None if self.R2 is None else divided(np.eye(len(self.R2), dtype=self.R2.dtype), self.R2)

    @property
    def rank(self) -> int:
        """Columns of Q."""
        return int(self.by.shape[1])

    @property
    def by(self) -> np.ndarray:
        """R, or W."""
        matrix = self.W if self.R is None else self.R
        assert matrix is not None
        return matrix

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of Q."""
        return self.by.dtype

    def rows(self, a: np.ndarray) -> np.ndarray:
        """The rows of Q (rows, r) that belong to rows of A.  Equal slabs give equal bits, which R₂ relies on."""
        if not a.size:
            return np.zeros((a.shape[0], self.rank), a.dtype)
        if self.order is not None:
            a = a[:, self.order]
        q: np.ndarray = a @ self.W if self.R is None else divided(a, self.R)
        return q if self._P2 is None else q @ self._P2

    def before(self, M: np.ndarray) -> tuple["Basis", np.ndarray]:
        """The basis without its R₂, and R₂⁻¹ M: what Q M takes, with one product of rows instead of two."""
        return (self, M) if self._P2 is None else (replace(self, R2=None), self._P2 @ M)

    @property
    def inverse(self) -> np.ndarray:
        """K (n, r) of A⁺ = K Qᴴ: R⁻¹ R₂⁻¹, or W R₂⁻¹."""
        assert self._P2 is not None
        if self.R is None:
            assert self.W is not None
            return self.W @ self._P2
        K: np.ndarray = solve_triangular(self.R, self._P2, check_finite=False) if self.R.size else self.R
        return K


def divided(a: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The rows of A R⁻¹."""
    if not a.size:
        return a
    q: np.ndarray = solve_triangular(R, a.T, trans="T", check_finite=False).T
    return q
