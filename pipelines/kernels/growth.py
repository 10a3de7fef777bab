"""Rows added to a triangle R by products instead of reflectors, where that is as accurate.

Rows S are divided by the triangle that earlier rows left, W = S R⁻¹, and with I + Σ WᴴW = UᴴU the factor of all rows
is U R.  A product of matrices and a rank-k update do that at the speed of dgemm, which block reflectors do not reach.
Nothing is squared that could lose digits: rows like the earlier ones have W of modest size whatever the condition
number of A, so I + Σ WᴴW is well conditioned.  Two tests decide, and reflectors do what fails them:

- Computed W is S R⁻¹ + E with |E| ≤ c u |S| |R⁻¹|, an error of |S| |R⁻¹| |R| in the rows of A.  It is at the level of
  roundoff when |R⁻¹| |R| is modest for columns scaled to norm one (Skeel's condition number), and R decides that alone.
- Rows far larger than the earlier ones, or in new directions, have a large WᴴW.

Where R is better conditioned still, the division can go: R'ᴴR' = RᴴR + Σ SᴴS, of which rounding takes u ‖aₖ‖ ‖aₗ‖
from each entry, and u |R⁻ᴴ| ‖a‖ ‖a‖ᵀ |R⁻¹| |R| from R.  That has to be at the level of roundoff for the triangle of
all rows, R', too.  Positive terms take nothing from the smallest singular value, so it is enough to look at R when no
column has grown much since: ‖a'ₖ‖² ≤ (1 + τ) ‖aₖ‖² makes the condition number for scaled columns at most
√(1 + τ) times as large, and the error 1 + τ times, for the τ of one slab and that of those before it.  Right-hand
sides b in the last columns, R = [R₁₁ c; 0 ρ], may fit A well: c takes an error of u |R₁₁⁻ᴴ| ‖a‖ ‖b‖ from that, and
only ρ one that grows with (‖b‖ / ρ)².

Reference: preconditioned CholeskyQR as in J. E. Garrison, I. C. F. Ipsen, "A randomized preconditioned Cholesky-QR
algorithm" (2024), arXiv:2406.11751, with earlier rows in the place of the sketch; R. D. Skeel, "Scaling for numerical
stability in Gaussian elimination" (1979), for the condition number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

FROM_COLUMNS = 32
"""Narrower triangles gain nothing by a division: it takes as long as reflectors do."""
FIRST_ROWS = 2
"""Rows, in units of p, that reflectors take before the first division: fewer would leave R nearly singular."""
MOST_AMPLIFIED = 8.0
"""Largest amplification by |R⁻¹| |R| that counts as modest, for each column: errors of p columns partly cancel."""
MOST_SQUARED = 8.0
"""The same of |R⁻ᴴ| ‖a‖ ‖a‖ᵀ |R⁻¹| |R|, which decides whether SᴴS may be summed without a division."""
MOST_FITTED = 1e3
"""Largest ‖b‖ / ρ where SᴴS is summed: ρ² keeps nine digits, and only the norm of an unverified residual needs it."""
MOST_NEW = 8.0
"""Largest diagonal entry of one slab's WᴴW."""
MOST_GROWN = 4.0
"""Largest diagonal entry of Σ WᴴW before R takes it in: a taller R is better conditioned, and may pass its tests."""
MOST_TALLER = 4.0
"""Largest growth τ of a squared column, by one slab and by all before R takes them in, where SᴴS is summed."""
SQUARED = (1e-200, 1e200)
"""Squared columns between which sums of squares neither overflow nor lose small entries that count."""


@dataclass
class Growth:
    """What has been added to a triangle since R was last brought up to date; all that decides lies in here."""

    rhs: int = 0
    """How many of the last columns are right-hand sides."""
    rows: int = 0
    """Rows that the triangle stands for."""
    P: np.ndarray | None = None
    """R⁻¹ (p, p), while rows are being divided."""
    squares: np.ndarray | None = None
    """‖aₖ‖² of the rows that R stands for, (p,), while SᴴS is being summed."""
    G: np.ndarray | None = None
    """Σ WᴴW or Σ SᴴS (p, p), of which the upper triangle counts."""
    wait: int = 0
    """Slabs that reflectors take before the next attempt."""
    patience: int = 2
    """How many slabs to wait after the next failure: it doubles, so hopeless attempts cost little."""

    def ready(self, R: np.ndarray) -> bool:
        """True when the next rows may be added to R (p, p) by products."""
        if self.G is not None:
            return True
        if self.wait or self.rows < FIRST_ROWS * R.shape[0]:
            self.wait = max(0, self.wait - 1)
            return False
        P = inverse(R)
        if P is None:
            self.fail()
            return False
        if summable(R, P, self.rhs):
            self.squares = np.linalg.norm(R, axis=0) ** 2
        elif R.shape[0] >= FROM_COLUMNS:
            self.P = P
        else:
            self.fail()
            return False
        self.G = np.zeros_like(P)
        return True

    def take(self, new: np.ndarray, rows: int) -> bool:
        """Add the product SᴴS or WᴴW (p, p) of so many rows, unless they are too large for that."""
        assert self.G is not None
        most = np.full(len(new), MOST_NEW) if self.squares is None else MOST_TALLER * self.squares
        # A NaN fails the comparison, too: then reflectors carry it on, to be seen and reported.
        if not (new.diagonal().real <= most).all():
            return False
        self.G += new
        self.rows += rows
        return True

    @property
    def grown(self) -> bool:
        """True when R should take in what has been added."""
        assert self.G is not None
        most = MOST_GROWN if self.squares is None else MOST_TALLER * self.squares
        return bool((self.G.diagonal().real > most).any())

    def settle(self, R: np.ndarray) -> None:
        """Bring R up to date, in place."""
        if self.G is None:
            return
        if self.G.any():
            trmm = blas.ztrmm if np.iscomplexobj(R) else blas.dtrmm
            R_then = np.triu(R)
            if self.squares is None:
                self.G[np.diag_indices(len(R))] += 1
                R[...] = trmm(1.0, cholesky(self.G), R_then)
            else:
                R[...] = cholesky(self.G + trmm(1.0, R_then, R_then, trans_a=2))
        self.P = self.G = self.squares = None

    def fail(self) -> None:
        """Leave the next few slabs to reflectors."""
        self.wait, self.patience = self.patience, 2 * self.patience


def cholesky(G: np.ndarray) -> np.ndarray:
    """U (p, p) of G = UᴴU, which is well conditioned and of which the upper triangle counts."""
    U, info = (lapack.zpotrf if np.iscomplexobj(G) else lapack.dpotrf)(G, lower=0, clean=1)
    assert info == 0, "a sum of positive definite and well conditioned terms is positive definite"
    return np.asarray(U)


def inverse(R: np.ndarray, most: float | None = None) -> np.ndarray | None:
    """R⁻¹ (p, p) in column order, or None where dividing by R would lose digits: amplify errors more than that."""
    if not R.diagonal().all() or not np.isfinite(R.diagonal()).all():
        return None
    R = np.triu(R)
    trtri: Any = lapack.ztrtri if np.iscomplexobj(R) else lapack.dtrtri
    P, info = trtri(np.asfortranarray(R), lower=0)
    return P if info == 0 and amplification(R, P) <= (most or MOST_AMPLIFIED) * R.shape[0] else None


def summable(R: np.ndarray, P: np.ndarray, rhs: int = 0) -> bool:
    """True when errors of u ‖aₖ‖ ‖aₗ‖ in RᴴR are at the level of roundoff in R, and none of its squares overflows."""
    norms, n = np.linalg.norm(R, axis=0), R.shape[0] - rhs
    if not (SQUARED[0] < (norms**2).min() and (norms**2).max() < SQUARED[1]):
        return False
    if not (norms[n:] <= MOST_FITTED * np.abs(R.diagonal()[n:])).all():
        return False
    R, P = R[:n, :n], P[:n, :n]
    return float(np.linalg.norm(norms[:n] @ np.abs(P))) * amplification(R, P) <= MOST_SQUARED * n


def amplification(R: np.ndarray, P: np.ndarray) -> float:
    """What errors of u |S| |R⁻¹| do to the columns of S: max_l Σ_k ‖aₖ‖ (|R⁻¹| |R|)ₖₗ / ‖aₗ‖, with ‖aₖ‖ = ‖rₖ‖."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        size = np.abs(R)
        norms = np.sqrt((size**2).sum(axis=0))
        ratio = (norms @ np.abs(P)) @ size / norms
    return float(ratio.max()) if np.isfinite(ratio).all() else np.inf
