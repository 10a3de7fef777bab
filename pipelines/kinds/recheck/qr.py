"""A stored R, with Q, with the factors that stand for one, or alone."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.kinds.base import Work, positive_diagonal
from pipelines.kinds.factors import certificate_of, tolerance_of
from pipelines.kinds.qr import pivoted
from pipelines.kinds.recheck.base import Compared, Rechecked, as_cut, beside, of, roundings, values, with_held
from pipelines.kinds.recheck.operators import soundly_made
from pipelines.kinds.recheck.triangle import order, triangle
from pipelines.methods.orthonormal import factor
from pipelines.methods.problem import frobenius, unchanged
from pipelines.operators import operator_from
from pipelines.passes.project import Project, Projected
from pipelines.result import Result
from pipelines.small.inverse import decide
from pipelines.small.rank import Decision

OTHER_PIVOTS = 4.0
"""How many times as much as today's order of columns another one may leave, where columns are as good as each other."""


def recheck(work: Work, result: Result) -> Rechecked:
    """R, held against a new one; and ‖QᴴQ − I‖, ‖A − QR‖ of the Q that is stored, or that its factors make."""
    form, n = work.job.form, work.layout.shape.columns
    new, tally = factor(work.passes, work.system(), work.layout)
    decision, _ = decide(new, tolerance_of(work, tally.rows), exact=False)
    certificate = certificate_of(work, decision, tally)
    most = roundings(work, tally.rows)
    compared = [*_triangle(result, new, decision, most)]
    if decision.singular_values is not None:
        compared += values(result, ("singular_values",), decision.singular_values, most)
    then = result["R"]
    if form != "r" and then.shape[1:] == (n,):
        F = then[:, np.argsort(result["P"])] if "P" in result.names else then
        F = F.astype(np.result_type(F.dtype, work.layout.shape.dtype))
        if form == "explicit":
            held, seen = beside(work, result, "Q", F, across=False)
            unchanged(tally, replace(seen, identity=(seen.identity[0], 0, 0)))
            certificate = with_held(certificate, held, len(F))
        else:
            certificate = _implicit(work, result, F, certificate)
    return Rechecked(certificate, tally.identity, tuple(compared))


def _triangle(result: Result, new: np.ndarray, decision: Decision, most: float) -> list[Compared]:
    """R, and the order of its columns; what pivoting leaves out at the rank, it leaves out today too."""
    then = result["R"]
    if "P" not in result.names:
        return [triangle(new, then, most)]
    named = order(result["P"], new.shape[1])
    if named.value:
        return [named]
    R, P = pivoted(new, decision)
    left = triangle(new, positive_diagonal(R)[0], 0.0, P).value
    return [named, triangle(new, then, most + OTHER_PIVOTS * left, result["P"])]


def _implicit(work: Work, result: Result, F: np.ndarray, certificate: FactorCertificate) -> FactorCertificate:
    """What the factors make of A in one read."""
    lost = replace(certificate, verified=True, orthogonality=np.inf, reconstruction_error=np.inf)
    named = order(result["P"], F.shape[1]) if "P" in result.names else None
    if not soundly_made(result, ("R1", "R2"), ("signs",)) or (named and named.value) or not np.isfinite(F).all():
        return lost
    held = operator_from(result)
    assert held.signs is not None
    work = as_cut(work, held)
    layout = work.layout
    if len(held.signs) != len(F):
        return lost
    step = Project(
        held.basis, np.diag(held.signs) if len(F) else None, F, layout.shape.dtype, layout.shape.dtype,
        layout.slab_rows, None, keep=False, name="verify",
    )  # fmt: skip
    made: Projected
    made, _ = work.passes(step, work.system(), layout.spans)
    gram = float(np.linalg.norm(made.gram - np.eye(len(F))))
    misfit = of(made.misfit**0.5, frobenius(F))
    return replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)
