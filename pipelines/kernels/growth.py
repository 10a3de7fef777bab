"""Rows added to a triangle R by products instead of reflectors, where that is as accurate.

Rows S are divided by the triangle that earlier rows left, W = S R⁻¹, and with I + Σ WᴴW = UᴴU the factor of all rows
is U R.  A product of matrices and a rank-k update do that at the speed of dgemm, which block reflectors do not reach.
Nothing is squared that could lose digits: rows like the earlier ones have W of modest size whatever the condition
number of A, so I + Σ WᴴW is well conditioned.  Two tests decide, and reflectors do what fails them:

- Computed W is S R⁻¹ + E with |E| ≤ c u |S| |R⁻¹|, an error of |S| |R⁻¹| |R| in the rows of A.  It is at the level of
  roundoff when |R⁻¹| |R| is modest for columns scaled to norm one (Skeel's condition number), and R decides that alone.
- Rows far larger than the earlier ones, or in new directions, have a large WᴴW.

Reference: preconditioned CholeskyQR as in J. E. Garrison, I. C. F. Ipsen, "A randomized preconditioned Cholesky-QR
algorithm" (2024), arXiv:2406.11751, with earlier rows in the place of the sketch; R. D. Skeel, "Scaling for numerical
stability in Gaussian elimination" (1979), for the condition number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from pipelines.kernels.blas import Quotient

FROM_COLUMNS = 32
"""Narrower triangles gain nothing: reading and copying a slab takes as long as factoring it."""
FIRST_ROWS = 2
"""Rows, in units of p, that reflectors take before the first division: fewer would leave R nearly singular."""
MOST_AMPLIFIED = 8.0
"""Largest amplification by |R⁻¹| |R| that counts as modest, for each column: errors of p columns partly cancel."""
MOST_NEW, MOST_GROWN = 8.0, 64.0
"""Largest diagonal entry of one slab's WᴴW, and of their sum before R takes it in."""


@dataclass
class Growth:
    """What has been added to a triangle since R was last brought up to date; all that decides lies in here."""

    rows: int = 0
    """Rows that the triangle stands for."""
    P: np.ndarray | None = None
    """R⁻¹ (p, p), while rows are being divided."""
    G: np.ndarray | None = None
    """Σ WᴴW (p, p), upper triangle."""
    wait: int = 0
    """Slabs that reflectors take before the next attempt."""
    patience: int = 2
    """How many slabs to wait after the next failure: it doubles, so hopeless attempts cost little."""

    def ready(self, R: np.ndarray) -> bool:
        """True when the next rows may be divided by R (p, p)."""
        if self.P is not None:
            return True
        if self.wait or self.rows < FIRST_ROWS * R.shape[0]:
            self.wait = max(0, self.wait - 1)
            return False
        P = inverse(R)
        if P is None:
            self.fail()
            return False
        self.P, self.G = P, np.zeros_like(P)
        return True

    def divide(self, quotient: Quotient, S: np.ndarray) -> bool:
        """Add the rows of S, unless they are too large for that; S is used up in any case."""
        assert self.P is not None
        assert self.G is not None
        new = quotient(S, self.P)
        # A NaN fails the comparison, too: then reflectors carry it on, to be seen and reported.
        if not new.diagonal().real.max() <= MOST_NEW:
            return False
        self.G += new
        self.rows += S.shape[0]
        return True

    @property
    def grown(self) -> bool:
        """True when R should take in what has been added."""
        return self.G is not None and float(self.G.diagonal().real.max()) > MOST_GROWN

    def settle(self, R: np.ndarray) -> None:
        """Bring R up to date, in place."""
        if self.G is None:
            return
        p = R.shape[0]
        if self.G.any():
            self.G[np.diag_indices(p)] += 1
            potrf, trmm = (lapack.zpotrf, blas.ztrmm) if np.iscomplexobj(R) else (lapack.dpotrf, blas.dtrmm)
            U, info = potrf(self.G, lower=0, clean=1)
            assert info == 0, "I + WᴴW with WᴴW of modest size is positive definite"
            R[...] = trmm(1.0, U, np.triu(R))
        self.P = self.G = None

    def fail(self) -> None:
        """Leave the next few slabs to reflectors."""
        self.wait, self.patience = self.patience, 2 * self.patience


def inverse(R: np.ndarray) -> np.ndarray | None:
    """R⁻¹ (p, p) in column order, or None where dividing by R would lose digits."""
    if not R.diagonal().all() or not np.isfinite(R.diagonal()).all():
        return None
    R = np.triu(R)
    trtri: Any = lapack.ztrtri if np.iscomplexobj(R) else lapack.dtrtri
    P, info = trtri(np.asfortranarray(R), lower=0)
    return P if info == 0 and amplification(R, P) <= MOST_AMPLIFIED * R.shape[0] else None


def amplification(R: np.ndarray, P: np.ndarray) -> float:
    """What errors of u |S| |R⁻¹| do to the columns of S: max_l Σ_k ‖aₖ‖ (|R⁻¹| |R|)ₖₗ / ‖aₗ‖, with ‖aₖ‖ = ‖rₖ‖."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        size = np.abs(R)
        norms = np.sqrt((size**2).sum(axis=0))
        ratio = (norms @ np.abs(P)) @ size / norms
    return float(ratio.max()) if np.isfinite(ratio).all() else np.inf
