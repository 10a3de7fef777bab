"""(R, C) → x: a triangular solve when the rank is full, the minimum-norm solution when it is not.

Both kinds of inverse also apply (AᴴA)⁺, which is what one step of refinement needs: with g = Aᴴ(b − A x),
x + (RᴴR)⁻¹ g are the corrected semi-normal equations (Björck 1987).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import qr, solve_triangular

from pipelines.kernels.lapack import Tpmqrt, Tpqrt
from pipelines.kernels.sweep import Triangle, block_width, squares
from pipelines.small import rank as ranks
from pipelines.small.rank import Decision, Tolerance


@dataclass(frozen=True)
class FullRank:
    """R is upper triangular and all its columns count."""

    R: np.ndarray

    def solve(self, C: np.ndarray) -> np.ndarray:
        """R⁻¹ C, (n, k)."""
        return _triangular(self.R, C)

    def normal(self, g: np.ndarray) -> np.ndarray:
        """(RᴴR)⁻¹ g, (n, k)."""
        return _triangular(self.R, _triangular(self.R, g, adjoint=True))


@dataclass(frozen=True)
class MinimumNorm:
    """R D = U S Vᴴ cut after `rank` values; N (n, n − rank) spans the null space in the user's variables.

    The rank is decided in scaled variables z = D⁻¹x, but the smallest x is wanted: x = D z has a part in the null
    space D V₂, and it is taken out (twice: once leaves a trace of rounding).  Naive: wrong by 1 % and more.
    """

    D: np.ndarray
    U: np.ndarray
    S: np.ndarray
    Vh: np.ndarray
    N: np.ndarray

    def solve(self, C: np.ndarray) -> np.ndarray:
        """R⁺ C, (n, k)."""
        return self._smallest(self.D[:, None] * (self.Vh.conj().T @ ((self.U.conj().T @ C) / self.S[:, None])))

    def normal(self, g: np.ndarray) -> np.ndarray:
        """(RᴴR)⁺ g, (n, k), for g in the range of Rᴴ."""
        z = self.Vh @ (self.D[:, None] * g)
        return self._smallest(self.D[:, None] * (self.Vh.conj().T @ (z / self.S[:, None] ** 2)))

    def _smallest(self, x: np.ndarray) -> np.ndarray:
        for _ in range(2):
            x = x - self.N @ (self.N.conj().T @ x)
        return x


Inverse = FullRank | MinimumNorm


def decide(R: np.ndarray, tolerance: Tolerance, *, exact: bool) -> tuple[Decision, Inverse]:
    """The rank of R (n, n) under a tolerance, and the inverse that goes with it.

    Full rank is seen from a condition estimate (n² flops); only doubt costs a singular value decomposition.
    `exact` asks for the singular values in any case.
    """
    n = R.shape[0]
    D = ranks.column_scales(R) if tolerance.scaled else np.ones(n)
    RD = R * D
    rcond = ranks.reciprocal_condition(RD)
    # κ₂ ≤ n κ₁, and the estimate may be off by 3: above this bound no singular value can lie below the tolerance.
    if rcond > 10 * n * tolerance.rtol and n > 0:
        return _full(R, RD, tolerance, exact=exact or n <= ranks.EXACT_UP_TO), FullRank(R)
    U, S, Vh = np.linalg.svd(RD)
    rank = int((tolerance.rtol * S[0] < S).sum()) if n and S[0] > 0 else 0
    decision = _decided(R, S, rank, tolerance)
    if rank == n:
        return decision, FullRank(R)
    N = qr(D[:, None] * Vh[rank:].conj().T, mode="economic")[0]
    return decision, MinimumNorm(D, U[:, :rank], S[:rank], Vh[:rank], N)


def _full(R: np.ndarray, RD: np.ndarray, tolerance: Tolerance, *, exact: bool) -> Decision:
    n = R.shape[0]
    if exact:
        s, scaled = np.linalg.svd(R, compute_uv=False), np.linalg.svd(RD, compute_uv=False)
        return Decision(n, tolerance, s, s[0], s[-1], scaled[0] / scaled[-1], scaled[-1] / scaled[0], None)
    largest, smallest = ranks.largest_singular_value(R), ranks.smallest_singular_value(R)
    relative = ranks.smallest_singular_value(RD) / ranks.largest_singular_value(RD)
    return Decision(n, tolerance, None, largest, smallest, 1 / relative, relative, None)


def _decided(R: np.ndarray, S: np.ndarray, rank: int, tolerance: Tolerance) -> Decision:
    s = np.linalg.svd(R, compute_uv=False) if tolerance.scaled else S
    relative = S / S[0] if rank else S
    return Decision(
        rank, tolerance, s, float(s[0]) if rank else 0.0, float(s[rank - 1]) if rank else 0.0,
        float(S[0] / S[rank - 1]) if rank else 1.0,
        float(relative[rank - 1]) if rank else None, float(relative[rank]) if rank < len(S) else None,
    )  # fmt: skip


def with_ridge(triangle: Triangle, ridge: float) -> Triangle:
    """The triangle of [A; √λ I] with zeros under b: Tikhonov's problem is least squares with n more rows."""
    n, k = triangle.C.shape
    dtype: np.dtype[Any] = triangle.R.dtype
    result = Triangle(triangle.R.copy("F"), triangle.C.copy("F"), triangle.tail.copy())
    penalty, D = (
        np.asfortranarray(np.sqrt(ridge) * np.eye(n, dtype=dtype)),
        np.zeros((n, k), dtype, order="F"),
    )
    qr_ = Tpqrt(n, block_width(n), dtype, pentagon=n)
    qr_(result.R, penalty)
    Tpmqrt(qr_, k)(penalty, result.C, D)
    result.tail += squares(D)
    return result


def _triangular(R: np.ndarray, C: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
    if C.size == 0:
        return np.zeros(C.shape, np.result_type(R, C))
    x: np.ndarray = solve_triangular(R, C, trans="C" if adjoint else "N", check_finite=False)
    return x
