"""(R, C) → x: a triangular solve when the rank is full, the minimum-norm solution when it is not.

Both kinds of inverse also apply (AᴴA)⁺, which is what one step of refinement needs: with g = Aᴴ(b − A x),
x + (RᴴR)⁻¹ g are the corrected semi-normal equations (Björck 1987).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import qr, solve_triangular

from pipelines.kernels.lapack import Tpmqrt, Tpqrt
from pipelines.kernels.sweep import Triangle, block_width, squares
from pipelines.small import rank as ranks
from pipelines.small.rank import Decision, Tolerance

LOST = 100.0
"""A smallest singular value below this many times n·eps of the largest has hardly a correct digit."""


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
    """R D = U S Vᴴ cut after `rank` values, and D⁻¹V = Q T with orthonormal Q (n, rank) and triangular T.

    The rank is decided in scaled variables z = D⁻¹x, but the smallest x is wanted.  Q spans the row space of R in
    the user's variables: R = U S Tᴴ Qᴴ, so R⁺ = Q T⁻ᴴ S⁻¹ Uᴴ.  Naive, x = D V S⁻¹ Uᴴ c is wrong by 1 % and more.
    """

    U: np.ndarray
    S: np.ndarray
    Q: np.ndarray
    T: np.ndarray

    def solve(self, C: np.ndarray) -> np.ndarray:
        """R⁺ C, (n, k)."""
        return self.Q @ _triangular(self.T, (self.U.conj().T @ C) / self.S[:, None], adjoint=True)

    def normal(self, g: np.ndarray) -> np.ndarray:
        """(RᴴR)⁺ g, (n, k), for g in the range of Rᴴ."""
        z = _triangular(self.T, self.Q.conj().T @ g) / self.S[:, None] ** 2
        return self.Q @ _triangular(self.T, z, adjoint=True)


Inverse = FullRank | MinimumNorm


def decide(R: np.ndarray, tolerance: Tolerance, *, exact: bool) -> tuple[Decision, Inverse]:
    """The rank of R (n, n) under a tolerance, and the inverse that goes with it.

    Full rank is seen from a condition estimate (n² flops); only doubt costs a singular value decomposition.
    `exact` asks for the singular values in any case.
    """
    n = R.shape[0]
    exact = exact or n <= ranks.EXACT_UP_TO
    D = ranks.column_scales(R) if tolerance.scaled else np.ones(n)
    RD = R * D
    rcond = ranks.reciprocal_condition(RD)
    # κ₂ ≤ n κ₁, and the estimate may be off by 3: above this bound no singular value can lie below the tolerance.
    if rcond > 10 * n * tolerance.rtol and n > 0:
        return _full(R, D, tolerance, exact=exact), FullRank(R)
    U, S, Vh = np.linalg.svd(RD)
    rank = int((tolerance.rtol * S[0] < S).sum()) if n and S[0] > 0 else 0
    decision = _decided(R, S, rank, tolerance, exact=exact)
    if rank == n:
        return decision, FullRank(R)
    inverse = _minimum_norm(D, U[:, :rank], S[:rank], Vh[:rank])
    return _tilted(decision, D, inverse), inverse


def _minimum_norm(D: np.ndarray, U: np.ndarray, S: np.ndarray, Vh: np.ndarray) -> MinimumNorm:
    """QR of D⁻¹V, rows sorted by size and columns pivoted: so small rows stay as accurate as large ones.

    The rows differ as much as the scales of the columns do: A. J. Cox, N. J. Higham, "Stability of Householder QR
    factorization for weighted least squares problems" (1998).
    """
    W = Vh.conj().T / D[:, None]
    if not W.size:
        return MinimumNorm(U, S, W, np.zeros((0, 0), W.dtype))
    order = np.argsort(-np.abs(W).max(axis=1), kind="stable")
    by_size, T, pivots = qr(W[order], mode="economic", pivoting=True)
    Q = np.empty_like(by_size)
    Q[order] = by_size
    return MinimumNorm(U[:, pivots], S[pivots], Q, T)


def _full(R: np.ndarray, D: np.ndarray, tolerance: Tolerance, *, exact: bool) -> Decision:
    n = R.shape[0]
    if exact:
        s = np.linalg.svd(R, compute_uv=False)
        scaled = s * D[0] if (D[0] == D).all() else np.linalg.svd(R * D, compute_uv=False)
        return Decision(n, tolerance, s, s[0], _smallest(R, s), scaled[0] / scaled[-1],
                        scaled[-1] / scaled[0], None, 1 / scaled[-1], 0.0)  # fmt: skip
    largest, smallest, RD = ranks.largest_singular_value(R), ranks.smallest_singular_value(R), R * D
    scaled_smallest = ranks.smallest_singular_value(RD)
    relative = scaled_smallest / ranks.largest_singular_value(RD)
    return Decision(n, tolerance, None, largest, smallest, 1 / relative, relative, None, 1 / scaled_smallest, 0.0)


def _smallest(R: np.ndarray, s: np.ndarray) -> float:
    """The smallest singular value of a nonsingular R, also where its columns come in very different units.

    The decomposition then finds it in its rounding errors only; triangular solves err by column, and do not.
    """
    lost = s[-1] <= LOST * len(s) * ranks.EPS * s[0] and bool(R.diagonal().all())
    return ranks.smallest_singular_value(R) if lost else float(s[-1])


def _decided(R: np.ndarray, S: np.ndarray, rank: int, tolerance: Tolerance, *, exact: bool) -> Decision:
    s = S if not tolerance.scaled else np.linalg.svd(R, compute_uv=False) if exact else None
    relative = S / S[0] if rank else S
    largest = smallest = 0.0
    if rank and s is not None:
        largest, smallest = float(s[0]), _smallest(R, s) if rank == len(s) else float(s[rank - 1])
    elif rank:  # below full rank, the inverse will tell what the smallest is
        largest = ranks.largest_singular_value(R)
        smallest = ranks.smallest_singular_value(R) if rank == len(S) else 0.0
    return Decision(
        rank, tolerance, s, largest, smallest,
        float(S[0] / S[rank - 1]) if rank else 1.0,
        float(relative[rank - 1]) if rank else None, float(relative[rank]) if rank < len(S) else None,
        float(1 / S[rank - 1]) if rank else 0.0, 0.0,
    )  # fmt: skip


def _tilted(decision: Decision, D: np.ndarray, inverse: MinimumNorm) -> Decision:
    """The decision with the norms of the inverse that minimum norm asks for."""
    if not decision.rank:
        return decision
    small = _triangular(inverse.T, np.diag(1 / inverse.S), adjoint=True)
    smallest, scaled = 1 / _norm(small), _norm((inverse.Q / D[:, None]) @ small)
    return replace(decision, smallest=smallest, scaled_inverse=scaled, tilt=float(1 / D.min()))


def _norm(M: np.ndarray) -> float:
    """‖M‖₂: for large M by the power method, which costs n² and not n³."""
    return float(np.linalg.norm(M, 2)) if M.shape[1] <= ranks.EXACT_UP_TO else ranks.largest_singular_value(M)


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
