"""The largest singular values of a matrix whose R would be too large, from a block of random columns.

N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011): the range finder
and subspace iteration.  C. Musco, C. Musco, "Randomized block Krylov methods for stronger and faster approximate
singular value decomposition" (2015), arXiv:1504.05477: keeping all products.  J. A. Tropp, A. Yurtsever, M. Udell,
V. Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming data" (2017), arXiv:1706.05736:
the sketch.

Products Aᴴ(A Z) are taken in one read each.  What is found at the end comes from R of A K, K being an orthonormal
basis, so that values far below √u σ₁ are found as well, which the Gram matrix would lose.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from pipelines.kernels.basis import Basis
from pipelines.kernels.gaussian import gaussian
from pipelines.layout import Layout
from pipelines.matrix import System, Tally
from pipelines.methods.options import BlockKrylov, Iterated, Sketch
from pipelines.methods.problem import Runs, check, columns_in_range, factor_pass, in_range, unchanged
from pipelines.passes.multiply import Multiplied, Multiply
from pipelines.small.rank import column_norms

RESOLVED = 1e-7
"""Differences of squared norms cannot tell a smaller relative error from none."""
FIRST_WIDTH = 64
"""Columns of the random block when a tolerance decides how many are needed; they double until that is known."""
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Found:
    """The largest singular values of A (m, n) and their right vectors."""

    s: np.ndarray
    """(L,), descending; each at most the singular value of A of its number, but for a sketch, which knows squares."""
    Vh: np.ndarray
    """(L, n), orthonormal rows."""
    norm: float
    """‖A‖_F."""
    tally: Tally
    """Of the first read."""

    def tail(self, k: int) -> float:
        """‖A − A V Vᴴ‖_F of the first k vectors, by a difference of squares: known down to RESOLVED of ‖A‖."""
        rest = self.norm**2 - float((self.s[:k] ** 2).sum())
        return max(rest, (RESOLVED * self.norm) ** 2) ** 0.5


def widths(values: int | None, options: Iterated | Sketch, n: int) -> list[int]:
    """Columns of the random block, round after round; one round when the number of values is known."""
    if values is not None:
        return [min(n, values + options.oversampling)]
    most = min(n, options.most_columns)
    found = [min(FIRST_WIDTH, most)]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def basis_columns(width: int, options: Iterated | Sketch, n: int) -> int:
    """Columns of the basis K that a block of so many leads to."""
    return min(n, width * (options.steps + 1)) if isinstance(options, BlockKrylov) else width


def find(
    passes: Runs,
    system: System,
    layout: Layout,
    options: Iterated | Sketch,
    values: int | None,
    enough: Callable[[Found, int], bool],
) -> Found:
    """The values that a random block leads to; wider ones are tried until there are enough.

    `values` is how many are asked for, or None when `enough` decides, which sees what a block of some width found.
    """
    n = layout.shape.columns
    found: Found | None = None
    for width in widths(values, options, n):
        fresh = gaussian(options.seed, 0, n, width).astype(layout.shape.dtype)
        if found is not None:  # what is known already leads on, with random columns beside it
            fresh[:, : min(width // 2, len(found.s))] = found.Vh[: width // 2].conj().T
        found = _round(passes, system, layout, options, orthonormal_columns(fresh), found)
        if values is not None or enough(found, width):
            break
    assert found is not None
    return found


def _round(
    passes: Runs, system: System, layout: Layout, options: Iterated | Sketch, Z: np.ndarray, before: Found | None
) -> Found:
    """What one start block leads to."""
    steps = 1 if isinstance(options, Sketch) else options.steps
    norm, tally = (before.norm, before.tally) if before else (0.0, None)
    K = Z
    for _ in range(steps):
        pass_ = Multiply(np.ascontiguousarray(Z.conj().T), layout.shape.dtype, layout.slab_rows, first=tally is None)
        product: Multiplied
        product, seen = passes(pass_, system, layout.spans)
        if tally is None:
            norm, tally = _checked(product, seen, layout), seen
        unchanged(tally, seen)
        W = product.Wh.conj().T
        if isinstance(options, Sketch):
            return Found(*_nystrom(Z, W), norm, tally)
        Z = orthonormal_columns(W, K if isinstance(options, BlockKrylov) else None)
        K = np.hstack([K, Z]) if isinstance(options, BlockKrylov) else Z
    assert tally is not None
    step = replace(factor_pass(layout), p=K.shape[1], t=0, rhs=0, name="resolve", over=Basis(W=K))
    triangle, seen = passes(step, system, layout.spans)
    unchanged(tally, seen)
    _, s, Zh = np.linalg.svd(np.triu(triangle.R))
    return Found(s, Zh @ K.conj().T, norm, tally)


def _checked(product: Multiplied, tally: Tally, layout: Layout) -> float:
    """‖A‖_F of the first read, checked for what no later step could bear."""
    check(tally, wide=layout.shape.wide)
    norms = np.sqrt(product.squares)
    columns_in_range("row" if layout.shape.wide else "column", norms)
    norm = float(column_norms(norms[:, None])[0])
    in_range("matrix", np.array([norm or product.largest]))  # the squares of tiny entries are zeros
    return norm


def orthonormal_columns(W: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """An orthonormal basis (n, l) of W's columns and, beyond K's, of as many as there is room for."""
    if known is None:
        return np.asarray(np.linalg.qr(W)[0])
    room = W.shape[0] - known.shape[1]
    Q = W[:, :room]
    # Twice is enough (Kahan, Parlett 1980) for what is not noise; noise has to be orthogonal to K all the same.
    for _ in range(3):
        Q = np.linalg.qr(Q - known @ (known.conj().T @ Q))[0]
    return np.asarray(Q)


def _nystrom(Z: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S and Vᴴ of W (ZᴴW)⁻¹ Wᴴ ≈ AᴴA for W = AᴴA Z, with a shift that keeps ZᴴW positive definite."""
    size = float(np.linalg.norm(W))
    if not size:
        return np.zeros(Z.shape[1]), Z.conj().T
    shift = EPS * size * len(Z) ** 0.5
    while True:
        shifted = W + shift * Z
        core = Z.conj().T @ shifted
        try:
            C = cholesky((core + core.conj().T) / 2)
            break
        except LinAlgError:
            shift *= 10
    V, roots, _ = np.linalg.svd(solve_triangular(C, shifted.conj().T, trans="C").conj().T, full_matrices=False)
    return np.sqrt(np.maximum(roots**2 - shift, 0)), V.conj().T
