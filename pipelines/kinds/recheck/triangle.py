"""Small factors of A held against its R, whatever orthonormal Q they belong to."""

import numpy as np

from pipelines.kinds.base import positive_diagonal
from pipelines.kinds.recheck.base import Compared, and_stored, finite, of
from pipelines.kinds.svd import off_orthonormal
from pipelines.small.rank import column_scales


def off_factor(R: np.ndarray, s: np.ndarray, Vh: np.ndarray) -> float:
    """‖R V − U S‖_F for a U with orthonormal columns that is nearly the best; s (k,) has to descend.

    The columns of R V are about as long as s says, so that its QR factor T, whose columns come in that order, is S up
    to rounding: what an earlier column is off by reaches later ones by a part of at most their ratio.  Neither a
    division by S nor a product with it is needed, of which the smallest values would be lost in rounding.
    """
    if not Vh.size:
        return 0.0
    T, _ = positive_diagonal(np.linalg.qr(R @ Vh.conj().T, mode="r"))
    return float(np.linalg.norm(T - np.diag(s)))


def apart(R: np.ndarray, F: np.ndarray) -> float:
    """‖R − Q F‖_F of R (n, n) for a Q with orthonormal columns that is nearly the best, F being (r, n).

    It is the distance of F from a triangle of A, whatever A's condition number.  The best Q is Procrustes', of R Fᴴ
    (P. H. Schönemann, 1966), a product that loses what is below √u; with F = U S Vᴴ, R V tells the same without it.
    """
    if not F.size:
        return float(np.linalg.norm(R))
    _, s, Vh = np.linalg.svd(F, full_matrices=False)
    outside = R - (R @ Vh.conj().T) @ Vh
    return float(np.hypot(off_factor(R, s, Vh), np.linalg.norm(outside)))


def triangle(R: np.ndarray, then: np.ndarray, most: float, order: np.ndarray | None = None) -> Compared:
    """A stored R (r, n), of A[:, order], held against the R of A: in each column, to the roundings of its length.

    It has to be triangular, with a real diagonal that is not negative, which makes it the only one at full rank.
    """
    most = and_stored(most, then)
    if then.ndim != 2 or then.shape[1:] != R.shape[1:] or len(then) > len(R) or not finite(then):
        return Compared("R", np.inf, most)
    D = column_scales(R)
    inverse = np.arange(len(D)) if order is None else np.argsort(order)
    usual = positive_diagonal(then)[0]
    unusual = np.linalg.norm((then - usual)[:, inverse] * D)
    found = np.hypot(apart(R * D, usual[:, inverse] * D), unusual)
    return Compared("R", of(float(found), float(np.linalg.norm(R * D))), most)


def vectors(name: str, R: np.ndarray, s: np.ndarray, Vh: np.ndarray, most: float) -> Compared:
    """Stored right vectors Vᴴ (k, n): orthonormal, and A V = U S for an orthonormal U."""
    most = and_stored(most, Vh)
    if Vh.shape != (len(s), R.shape[1]) or not finite(s, Vh):
        return Compared(name, np.inf, most * max(1, len(s)) ** 0.5)
    found = of(off_factor(R, s, Vh), float(np.linalg.norm(R)))
    # Each of k vectors may be off by as much as A, which counts as one.
    return Compared(name, max(found, off_orthonormal(Vh)), most * max(1, len(s)) ** 0.5)


def order(then: np.ndarray, n: int) -> Compared:
    """A stored order of columns: 0 for one that names each of n once."""
    right = then.shape == (n,) and np.array_equal(np.sort(then), np.arange(n))
    return Compared("P", 0.0 if right else np.inf, 0.0)
