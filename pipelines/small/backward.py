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

U = float(np.finfo(np.float64).eps) / 2
"""Unit roundoff, 1.1e-16: no backward error is claimed to be below it."""
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
    eta: np.ndarray, condition: float, r: np.ndarray, largest: float, norm_x: np.ndarray, *, deficient: bool
) -> np.ndarray:
    """Bounds on ‖Δx‖/‖x‖, (k,), for backward errors η relative to ‖A‖₂ = `largest`.

    P.-Å. Wedin (1973): η (κ + κ² ‖r‖ / (‖A‖ ‖x‖)); one more κ when the minimum-norm solution is meant.
    Infinite where ηκ ≥ 1: then even the rank could be another.
    """
    result = np.full(len(eta), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where(norm_x > 0, r / (largest * norm_x), 0.0)
    # 1/(1 - ηκ) is below 2 here.
    safe = eta * condition < 0.5
    bound = 2 * eta * ((2 if deficient else 1) * condition + condition**2 * angle)
    result[safe] = bound[safe]
    return result
