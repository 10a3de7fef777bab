"""How far A would have to move for x to be exact: the Karlson–Waldén estimate, and what follows for x.

J. F. Grcar, M. A. Saunders, Z. Su, "Estimates of optimal backward perturbations for linear least squares problems"
(2007): with ω = ‖r‖/‖x‖ and K the R-factor of [A; ωI], the estimate is (ω/‖r‖)·‖K⁻ᴴ Aᴴ r‖.  The R-factor of A
stands in for A, so no decomposition beyond a triangular merge is needed.  It is within [0.15, 1] of the exact
optimal backward error (B. Waldén, R. Karlson, J.-G. Sun, 1995) in the cases that were measured.
"""

import numpy as np
from scipy.linalg import solve_triangular

from pipelines.kernels.lapack import Tpqrt
from pipelines.kernels.sweep import block_width
from pipelines.small.rank import Decision

U = float(np.finfo(np.float64).eps) / 2
"""Unit roundoff, 1.1e-16: no backward error is claimed to be below it."""
UNSEEN = 2 * U
"""Backward error that the second read cannot see: its own rounding, and that of x as it is stored."""
FEW = 4
"""Right-hand sides up to which a triangular merge each is cheaper than one SVD."""


def optimal_backward_errors(R: np.ndarray, g: np.ndarray, rss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """‖ΔA‖_F of the nearest matrix for which x is exact, (k,), estimated; g = Aᴴ r is (n, k), rss = ‖r‖² (k,)."""
    r, norm_x, norm_g = np.sqrt(rss), np.linalg.norm(x, axis=0), np.linalg.norm(g, axis=0)
    result = np.zeros(len(r))
    zero = (norm_x == 0) & (r > 0)
    result[zero] = norm_g[zero] / r[zero]
    rest = np.flatnonzero((norm_x > 0) & (r > 0))
    omega = r[rest] / norm_x[rest]
    weighted = _merged if len(rest) <= FEW else _decomposed
    result[rest] = omega / r[rest] * weighted(R, g[:, rest], omega)
    return result


def _merged(R: np.ndarray, g: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """‖K⁻ᴴ g‖ for each ω, K from a merge of R with ωI."""
    return np.array([_one(R, g[:, j], w) for j, w in enumerate(omega)])


def _one(R: np.ndarray, g: np.ndarray, omega: float) -> float:
    n = R.shape[0]
    K = R.copy("F")
    Tpqrt(n, block_width(n), R.dtype, pentagon=n)(K, np.asfortranarray(omega * np.eye(n, dtype=R.dtype)))
    if not K.diagonal().all():
        return 0.0
    return float(np.linalg.norm(solve_triangular(K, g, trans="C", check_finite=False)))


def _decomposed(R: np.ndarray, g: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """The same from one SVD of R: ‖K⁻ᴴ g‖² = Σ |vᵢᴴ g|² / (sᵢ² + ω²)."""
    _, s, Vh = np.linalg.svd(R)
    result: np.ndarray = np.linalg.norm((Vh @ g) / np.sqrt(s[:, None] ** 2 + omega**2), axis=0)
    return result


def forward_bounds(
    epsilon: np.ndarray, decision: Decision, norm_z: np.ndarray, r: np.ndarray, norm_x: np.ndarray
) -> np.ndarray:
    """Bounds on ‖Δx‖/‖x‖, (k,), for changes of A D of norm ε, where D scales columns and z = D⁻¹x.

    P.-Å. Wedin (1973), to first order and doubled: ‖Δx‖ ≤ ε ‖A⁺‖ (‖z‖ + ‖D⁻¹A⁺‖ ‖r‖), and for a minimum-norm
    solution ε ‖A⁺‖ ‖D⁻¹‖ ‖x‖ on top.  Infinite where ε ‖D⁻¹A⁺‖ ≥ 1/2: then even the rank could be another.
    """
    result = 2 * epsilon * decision.scaled_inverse
    # 1/(1 - ε‖D⁻¹A⁺‖) is at most 2 where this is below 1; an x of nothing but zeros has no relative error.
    some = norm_x > 0
    change = norm_z[some] + decision.scaled_inverse * r[some] + decision.tilt * norm_x[some]
    bound = 2 * epsilon[some] * change / ((decision.smallest or np.inf) * norm_x[some])
    result[some] = np.where(result[some] < 1, bound, np.inf)
    return result
