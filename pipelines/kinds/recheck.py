"""Stored results measured once more: what a read of the input says of the arrays as they are now.

Each function gives what the certificate of its kind would say today.  Nothing is taken from what the job once computed
but the arrays themselves; only the spectrum of an SVD, whose vectors are measured instead, is that of the certificate.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.certify import Certificate, FactorCertificate, certify
from pipelines.errors import BadData, PlanRefused
from pipelines.kinds.base import Work
from pipelines.kinds.factors import certificate_of, tolerance_of
from pipelines.kinds.least_squares import problem_of
from pipelines.kinds.pseudoinverse import PROBES, SEED, conditions, decided, probed_skew
from pipelines.kinds.svd import off_orthonormal
from pipelines.matrix import Source, Stored, System, Tally
from pipelines.methods import tsqr
from pipelines.methods.orthonormal import factor
from pipelines.methods.problem import Measured, check, factor_pass, unchanged
from pipelines.methods.tsqr_wide import measure_wide
from pipelines.passes.beside import Beside, Held, Probe, Probed
from pipelines.passes.invert import Checked, Penrose
from pipelines.result import Result
from pipelines.small.inverse import decide
from pipelines.storage import describe

Rechecked = tuple[Certificate | FactorCertificate, tuple[int, int, int]]
"""The certificate, and the identity of the input that it was measured on."""


def least_squares(work: Work, result: Result) -> Rechecked:
    """x: backward error, residual, error bound, rank."""
    job, wide = work.job, work.layout.shape.wide
    problem = replace(problem_of(work), target=None)
    if wide and job.ridge:
        raise PlanRefused(_again("a ridge solution of a wide matrix"))
    if wide:
        solution = measure_wide(problem, work.passes, _rows(work, result, "x", across=False))
    else:
        x = result.x.astype(work.layout.shape.dtype)
        solution = tsqr.measure(problem, work.passes, x[:, None] if x.ndim == 1 else x)
    if not np.isfinite(solution.rss).all():  # x is not, and has no error to speak of
        nothing = np.full(len(solution.rss), np.inf)
        solution = replace(solution, measured=Measured(solution.rss, nothing, nothing))
    return certify(solution, wide=wide, ridge=job.ridge, warnings=work.warnings), solution.identity


def qr(work: Work, result: Result) -> Rechecked:
    """Q and R: ‖QᴴQ − I‖, ‖A − QR‖, rank."""
    if work.job.form != "explicit":
        raise PlanRefused(_again(f"a QR with `form: {work.job.form}`"))
    R = result["R"].astype(work.layout.shape.dtype)
    F = R[:, np.argsort(result["P"])] if "P" in result.names else R
    held, tally = _beside(work, result, "Q", F, across=False)
    decision, _ = decide(R[:, : len(R)], tolerance_of(work, tally.rows), exact=False)
    return _with(certificate_of(work, decision, tally), held, len(R)), tally.identity


def svd(work: Work, result: Result) -> Rechecked:
    """U, s and Vᴴ: ‖UᴴU − I‖ of the large factor and of the small, ‖A − U S Vᴴ‖."""
    if work.job.vectors != "both":
        raise PlanRefused(_again(f"an SVD with `vectors: {work.job.vectors}`"))
    s, wide = result["s"], work.layout.shape.wide
    Vh = (result["U"].conj().T if wide else result["Vt"]).astype(work.layout.shape.dtype)
    held, tally = _beside(work, result, "Vt" if wide else "U", s[:, None] * Vh, across=wide)
    found = _with(_before(result), held, len(s))
    small = off_orthonormal(Vh)
    return replace(found, orthogonality=max(found.orthogonality or 0.0, small)), tally.identity


def low_rank(work: Work, result: Result) -> Rechecked:
    """L and R: ‖A − L R‖."""
    wide = work.layout.shape.wide
    large, F = ("R", result["L"].conj().T) if wide else ("L", result["R"])
    held, tally = _beside(work, result, large, F, across=wide)
    return replace(_with(_before(result), held, len(F)), orthogonality=None), tally.identity


def pseudoinverse(work: Work, result: Result) -> Rechecked:
    """X: Penrose's four conditions, or those of a ridge."""
    job, layout = work.job, work.layout
    if "pinv" not in result.names:
        raise PlanRefused(_again("a pseudoinverse that is an operator"))
    R, tally = factor(work.passes, work.system(), layout)
    decision, _ = decided(work, R, tally.rows)
    X = _rows(work, result, "pinv", across=not layout.shape.wide)
    system = _side_by_side(work, X)
    dtype = np.result_type(layout.shape.dtype, X.dtype)
    probed: Probed
    probed, _ = work.passes(Probe(len(R), PROBES, SEED, dtype, layout.slab_rows), system, layout.spans)
    seen: Checked
    seen, later = work.passes(Penrose(probed.XW, probed.AW, None, dtype, layout.slab_rows), system, layout.spans)
    unchanged(tally, replace(later, identity=(later.identity[0], 0, 0)))
    certificate = replace(certificate_of(work, decision, tally), verified=True)
    U, s, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
    if job.ridge:
        XA = (Vh.conj().T * (s**2 / (s**2 + job.ridge))) @ Vh
        error = float(np.linalg.norm(seen.XA - XA))
        # AX is Hermitian too; what X adds to that, no XA shows.
        return replace(certificate, ridge_error=max(error, probed_skew(seen))), tally.identity
    r = decision.rank
    kept = (U[:, :r] * s[:r]) @ Vh[:r]
    # Xᴴ = Q Rₓ, so that X = Rₓᴴ Qᴴ.
    triangle, _ = work.passes(replace(factor_pass(layout), name="factor-X"), replace(work.system(), A=X), layout.spans)
    penrose = conditions(seen, kept, np.triu(triangle.R).conj().T, wide=layout.shape.wide)
    return replace(certificate, penrose=penrose), tally.identity


RECHECKS: dict[str, Callable[[Work, Result], Rechecked]] = {
    "least_squares": least_squares,
    "low_rank": low_rank,
    "pseudoinverse": pseudoinverse,
    "qr": qr,
    "svd": svd,
}
"""The kinds of job whose results can be measured again."""


def _beside(work: Work, result: Result, name: str, F: np.ndarray, *, across: bool) -> tuple[Held, Tally]:
    """A and a stored factor of it, read side by side."""
    layout = work.layout
    Y = _rows(work, result, name, across=across)
    dtype = np.result_type(layout.shape.dtype, Y.dtype, F.dtype)
    system = _side_by_side(work, Y)
    held: Held
    held, tally = work.passes(Beside(F.astype(dtype), dtype, layout.slab_rows), system, layout.spans)
    check(tally, wide=layout.shape.wide)
    return held, tally


def _side_by_side(work: Work, Y: Source) -> System:
    """A beside a stored answer; rows of A that are left out are zeros, and those of the answer have to be."""
    rows = max(work.layout.block_rows, work.layout.out_rows)
    return replace(work.system(Y), block_rows=rows, b_decides=False, b_as_it_is=True)


def _rows(work: Work, result: Result, name: str, *, across: bool) -> Source:
    """A stored array as rows beside those of the system; `across` takes its conjugated columns.

    Raises:
        BadData: it is not as long as the matrix is now.
    """
    assert result.url is not None
    info = describe(result.url / name)
    shape = (info.shape[0], info.shape[1] if len(info.shape) > 1 else 1)
    found, rows = shape[int(across)], work.layout.shape.rows
    if found != rows:
        what = "columns" if work.layout.shape.wide else "rows"
        raise BadData(
            f"The {name} of this result belongs to a matrix of {found:,} {what}, and the matrix has {rows:,} now. Run "
            "the job again."
        )
    window = (0, shape[0]), (0, shape[1])
    return Stored(info, *window, False, False, work.run, transposed=across, narrow=not across)


def _with(certificate: FactorCertificate, held: Held, q: int) -> FactorCertificate:
    misfit = (held.misfit / held.norm) ** 0.5 if held.norm else held.misfit**0.5
    gram = float(np.linalg.norm(held.gram - np.eye(q)))
    return replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)


def _before(result: Result) -> FactorCertificate:
    certificate = result.certificate
    assert isinstance(certificate, FactorCertificate)
    return certificate


def _again(what: str) -> str:
    return (
        f"The arrays of {what} do not say by themselves whether they are right, so there is nothing to measure. Run "
        "the job again to have them measured as they are made."
    )
