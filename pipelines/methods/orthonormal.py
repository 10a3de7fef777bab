"""The steps that QR, SVD and the pseudoinverse share: R of A, the factor that Q₁ lacks, and the cut of the spectrum."""

from dataclasses import replace

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.layout import Layout
from pipelines.matrix import System, Tally
from pipelines.methods.cholesky_qr import triangle_of
from pipelines.methods.problem import Runs, check, columns_in_range, factor_pass, frobenius, in_range, unchanged
from pipelines.small.rank import column_norms


def factor(passes: Runs, system: System, layout: Layout) -> tuple[np.ndarray, Tally]:
    """R (n, n) of the rows, checked for what no later step could bear."""
    triangle, tally = triangle_of(passes, system, layout)
    check(tally, wide=layout.shape.wide)
    R = np.triu(triangle.R)
    in_range("matrix", np.atleast_1d(frobenius(R)))
    columns_in_range("row" if layout.shape.wide else "column", column_norms(R))
    return R, tally


def orthonormal(passes: Runs, system: System, layout: Layout, basis: Basis, first: Tally) -> Basis:
    """The basis with the R₂ that makes its rows orthonormal to roundoff: one more read."""
    step = replace(factor_pass(layout), p=basis.rank, t=0, name="orthogonalise", over=basis)
    second, seen = passes(step, system, layout.spans)
    unchanged(first, seen)
    return replace(basis, R2=np.triu(second.R))


def right_basis(Vh: np.ndarray, s: np.ndarray) -> Basis:
    """A ↦ a V S⁻¹: the left singular vectors, as far as roundoff lets them be orthonormal."""
    return Basis(W=Vh.conj().T / s)
