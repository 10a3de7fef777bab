"""Factors of a stored operator: may anything be made with them, and do they belong together?"""

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kinds.base import Work
from pipelines.kinds.recheck.base import SIX_DIGITS, Compared, distance, of
from pipelines.operators import Operator
from pipelines.passes.project import Project, Projected
from pipelines.result import Result


def soundly_made(result: Result, triangles: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """True when rows can be divided by the triangles and multiplied by the others: nothing else is promised."""
    present = [name for name in (*triangles, *others) if name in result.names]
    if not all(np.isfinite(result[name]).all() for name in present):
        return False
    return all(bool(result[name].diagonal().all()) for name in triangles if name in result.names)


def orthonormal_rows(work: Work, basis: Basis, most: float) -> Compared:
    """How far the Q that the factors make is from orthonormal, which projections and leverages rest on; one read."""
    dtype, r = work.layout.shape.dtype, basis.rank
    step = Project(
        basis, None, None, dtype, dtype, work.layout.slab_rows, None, measure=True, keep=False, name="verify"
    )
    made: Projected
    made, _ = work.passes(step, work.system(), work.layout.spans)
    gram = of(float(np.linalg.norm(made.gram - np.eye(r))), 1.0)
    return Compared("orthogonality_of_Q", gram, most * max(1, r) ** 0.5)


def right_factor(held: Operator, ridge: float, most: float) -> Compared:
    """K of X = K Qᴴ, which follows from the factors of Q: S = Q F, and K is F⁺, or (FᴴF + λI)⁻¹Fᴴ."""
    assert held.K is not None
    K = _ridge_factor(held.basis, ridge) if ridge else held.basis.inverse
    # A division enlarges roundings by up to ‖F‖ ‖K‖, which tells least where K has lost most.
    length = float(np.linalg.norm(K)) or 1.0
    enlarged = float(np.linalg.norm(np.linalg.pinv(K))) * length if K.size else 1.0
    return Compared("K", distance(held.K, K, length), max(most, min(most * enlarged, SIX_DIGITS)))


def _ridge_factor(basis: Basis, ridge: float) -> np.ndarray:
    """K for F = R₂ S Vᴴ."""
    assert basis.W is not None
    assert basis.R2 is not None
    lengths = np.linalg.norm(basis.W, axis=0)  # W = V S⁻¹
    U, s, Z = np.linalg.svd(basis.R2 / lengths)
    V = (basis.W / lengths) @ Z.conj().T
    return np.asarray((V * (s / (s**2 + ridge))) @ U.conj().T)
