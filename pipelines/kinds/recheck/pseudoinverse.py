"""A stored pseudoinverse, or the factors of one: Penrose's four conditions, or what a ridge asks for."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.kinds.base import Work
from pipelines.kinds.factors import certificate_of
from pipelines.kinds.pseudoinverse import PROBES, SEED, conditions, decided, probed_skew
from pipelines.kinds.recheck.base import Rechecked, as_cut, finite, roundings, rows_of, side_by_side, values
from pipelines.kinds.recheck.operators import orthonormal_rows, right_factor, soundly_made
from pipelines.matrix import Tally
from pipelines.methods.orthonormal import factor
from pipelines.methods.problem import factor_pass, unchanged
from pipelines.operators import Operator, operator_from
from pipelines.passes.beside import Probe, Probed
from pipelines.passes.invert import Checked, Invert, Inverted, Penrose
from pipelines.result import Result
from pipelines.small.rank import Decision

CONDITIONS = ("AXA = A", "XAX = X", "AX Hermitian", "XA Hermitian")


def recheck(work: Work, result: Result) -> Rechecked:
    """X, as it is stored or as its factors make it."""
    R, tally = factor(work.passes, work.system(), work.layout)
    decision, _ = decided(work, R, tally.rows)
    certificate = replace(certificate_of(work, decision, tally), verified=True)
    s, most = decision.singular_values, roundings(work, tally.rows)
    compared = [] if s is None else values(result, ("singular_values",), s, most)
    if "pinv" in result.names:
        certificate = _explicit(work, result, R, decision, tally, certificate)
    elif (held := _sound(result, len(R))) is None:
        certificate = _lost(certificate, work.job.ridge)
    else:
        cut = as_cut(work, held)
        certificate = _operator(cut, held, R, decision, tally, certificate)
        compared += [orthonormal_rows(cut, held.basis, most), right_factor(held, work.job.ridge, most)]
    return Rechecked(certificate, tally.identity, tuple(compared))


def _sound(result: Result, n: int) -> Operator | None:
    """The operator, unless nothing can be made with its factors."""
    if not soundly_made(result, ("R1", "R2"), ("W", "K")):
        return None
    held = operator_from(result)
    lengths = np.linalg.norm(held.basis.by, axis=0)
    return held if held.K is not None and len(held.K) == n and lengths.all() else None


def _explicit(
    work: Work, result: Result, R: np.ndarray, decision: Decision, tally: Tally, certificate: FactorCertificate
) -> FactorCertificate:
    """X read beside A."""
    layout, wide = work.layout, work.layout.shape.wide
    X = rows_of(work, result, "pinv", across=not wide)
    system = side_by_side(work, work.system(), X)
    dtype = np.result_type(layout.shape.dtype, X.dtype)
    probed: Probed
    probed, _ = work.passes(Probe(len(R), PROBES, SEED, dtype, layout.slab_rows), system, layout.spans)
    seen: Checked
    seen, later = work.passes(Penrose(probed.XW, probed.AW, None, dtype, layout.slab_rows), system, layout.spans)
    unchanged(tally, replace(later, identity=(later.identity[0], 0, 0)))
    if work.job.ridge:
        # AX is Hermitian too; what X adds to that, no XA shows.
        error = max(_off_ridge(seen, R, work.job.ridge), probed_skew(seen))
        return replace(certificate, ridge_error=error)
    # Xᴴ = Q Rₓ, so that X = Rₓᴴ Qᴴ.
    triangle, _ = work.passes(replace(factor_pass(layout), name="factor-X"), replace(work.system(), A=X), layout.spans)
    penrose = conditions(seen, _kept(R, decision.rank), np.triu(triangle.R).conj().T, wide=wide)
    return replace(certificate, penrose=penrose)


def _operator(
    work: Work, held: Operator, R: np.ndarray, decision: Decision, tally: Tally, certificate: FactorCertificate
) -> FactorCertificate:
    """X = K Qᴴ made again, of rows of Q in the slabs that its factors belong to."""
    ridge = work.job.ridge
    assert held.K is not None
    layout, system = work.layout, work.system()
    dtype = layout.shape.dtype
    step = Invert(
        held.basis, held.K, 0 if ridge else PROBES, SEED, dtype, dtype, layout.slab_rows, None, keep=False, name="probe"
    )
    made: Inverted = step.start()
    if not ridge:
        made, later = work.passes(step, system, layout.spans)
        unchanged(tally, later)
    seen: Checked
    seen, later = work.passes(Penrose(made.XW, made.AW, step, dtype, layout.slab_rows), system, layout.spans)
    unchanged(tally, later)
    if ridge:
        return replace(certificate, ridge_error=_off_ridge(seen, R, ridge))
    return replace(certificate, penrose=conditions(seen, _kept(R, decision.rank), held.K, wide=layout.shape.wide))


def _lost(certificate: FactorCertificate, ridge: float) -> FactorCertificate:
    """That of factors which nothing can be made of."""
    if ridge:
        return replace(certificate, ridge_error=np.inf)
    return replace(certificate, penrose=dict.fromkeys(CONDITIONS, np.inf))


def _kept(R: np.ndarray, rank: int) -> np.ndarray:
    """R without what the rank leaves out."""
    U, s, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
    return np.asarray((U[:, :rank] * s[:rank]) @ Vh[:rank])


def _off_ridge(seen: Checked, R: np.ndarray, ridge: float) -> float:
    """‖XA − (AᴴA + λI)⁻¹AᴴA‖_F."""
    if not finite(seen.XA):
        return float(np.inf)
    _, s, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
    XA = (Vh.conj().T * (s**2 / (s**2 + ridge))) @ Vh
    return float(np.linalg.norm(seen.XA - XA))
