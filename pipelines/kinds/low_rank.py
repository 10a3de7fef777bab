"""A ≈ L R: the truncated SVD in two factors, the large one written as it is made."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.errors import PlanRefused
from pipelines.jobs import LowRank
from pipelines.kernels.basis import Basis
from pipelines.kinds import spectral
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype
from pipelines.kinds.factors import in_memory, needs_tall_for_nan, shortfalls_of, target_of, written_bytes
from pipelines.kinds.spectral import Spectrum
from pipelines.layout import Layout
from pipelines.methods.options import Exact
from pipelines.methods.problem import unchanged
from pipelines.methods.randomized import RESOLVED, Found
from pipelines.passes.project import Project, Projected

method, reason, basis_of, buffer_bytes = spectral.method, spectral.reason, spectral.basis_of, spectral.buffer_bytes

CLEAR_OF = 10.0
"""A tolerance has to be this many times what differences of squared norms can tell."""


def writes(_job: LowRank, *, wide: bool) -> bool:  # noqa: ARG001  # the large side has a factor either way
    """True."""
    return True


def steps(job: LowRank, layout: Layout) -> list[Step]:
    """The reads that find the spectrum, and one that writes."""
    shape, n = layout.shape, layout.shape.columns
    needs_tall_for_nan(job, layout)
    if job.rank is not None and job.rank > n:
        raise PlanRefused(
            f"A pair of rank {job.rank:,} is asked for, and the matrix has at most rank {n:,}. Set `rank` to at most "
            "that."
        )
    if not isinstance(method(job, shape), Exact) and job.tolerance is not None and job.tolerance < CLEAR_OF * RESOLVED:
        raise PlanRefused(
            f"The tolerance is {job.tolerance:.1e}, and a randomized method finds the rank for one of at least "
            f"{CLEAR_OF * RESOLVED:.0e}: it knows the error as a difference of squares. Give a `rank`, or use "
            "`method: tsqr`."
        )
    project = 2.0 * shape.rows * n * _most(job, layout) * (4 if shape.dtype.kind == "c" else 1)
    size = written_bytes(layout, _most(job, layout), answer_dtype(job, layout).itemsize)
    return [*spectral.steps(job, layout), Step("write", (3 if job.verify else 1) * project, writes=size)]


def _most(job: LowRank, layout: Layout) -> int:
    return job.rank or min(layout.p, layout.shape.columns)


def result_bytes(job: LowRank, layout: Layout) -> int:
    """Both factors."""
    rank, size = _most(job, layout), answer_dtype(job, layout).itemsize
    return written_bytes(layout, rank, size) + rank * layout.shape.columns * size


def solve(work: Work) -> Outcome:
    """L and R, and how near their product is."""
    job, wide = work.job, work.layout.shape.wide
    spectrum = spectral.spectrum_of(work, lambda found, width: rank_of(job, found, len(found.s)) <= width)
    decision, certificate = spectral.certified(work, spectrum)
    r = rank_of(job, spectrum, decision.rank)
    s, Vh = spectrum.s[:r], spectrum.Vh[:r]
    factor, written = _written(work, s, Vh, spectrum)
    missing = spectral.too_few(work, spectrum, r) if job.tolerance is not None else []
    error = spectrum.tail(r)
    if job.verify:
        error = written.misfit**0.5 / (spectrum.norm or 1.0)
        certificate = replace(certificate, verified=True)
    if job.tolerance is not None and error > job.tolerance and not missing:
        missing = [f"the error is {error:.3g} of ‖A‖; a tolerance of {job.tolerance:.3g} is asked for"]
    certificate = replace(certificate, reconstruction_error=error, best_error=spectrum.tail(r))
    if job.verify and not spectrum.exact:
        bounds = spectral.residuals(written, s, Vh, weights_of(job, s, wide=wide))
        certificate = replace(
            certificate,
            values_error=spectral.values_error(bounds, s),
            best_error=spectral.best_error(spectrum, s, error, bounds) if spectrum.resolved else None,
        )
    certificate = replace(certificate, statement=_statement(certificate, spectrum, r))
    small, large = ("L", "R") if wide else ("R", "L")
    one = np.ascontiguousarray(factor.conj().T if wide else factor).astype(work.dtype, copy=False)
    return Outcome(
        arrays={small: one, "s": s} | in_memory(work, large, written.rows, r, columns=wide),
        dimensions={"L": ("row", "component"), "R": ("component", "column"), "s": ("component",)},
        certificate=certificate,
        shortfalls=(*missing, *shortfalls_of(certificate, job.require)),
        identity=spectrum.tally.identity,
        preview={"s": [float(value) for value in s[:8]]},
    )


def rank_of(job: LowRank, spectrum: Spectrum | Found, rank: int) -> int:
    """r: as asked for, or the smallest whose tail is within the tolerance; `rank` when none is, and at the most."""
    if job.rank is not None:
        return min(job.rank, rank)
    assert job.tolerance is not None, "the job has a rank or a tolerance"
    norm = 1.0 if isinstance(spectrum, Spectrum) else spectrum.norm
    most = job.tolerance * norm
    return next((r for r in range(rank) if spectrum.tail(r) <= most), rank)


def weights_of(job: LowRank, s: np.ndarray, *, wide: bool) -> np.ndarray:
    """What the rows that are written have of S, (r,): U times this; the other factor has the rest."""
    if job.weight == "both":
        return np.sqrt(s)
    return s if (job.weight == "right") == wide else np.ones(len(s))


def _written(work: Work, s: np.ndarray, Vh: np.ndarray, spectrum: Spectrum) -> tuple[np.ndarray, Projected]:
    """The factor of the small side (r, n), and what the read that writes the other measured."""
    job, layout, wide = work.job, work.layout, work.layout.shape.wide
    safe, weights = np.where(s > 0, s, 1), weights_of(job, s, wide=wide)
    F = spectral.as_stored((s / np.where(weights > 0, weights, 1))[:, None] * Vh, work.dtype)
    name, dimensions = ("R", ("component", "column")) if wide else ("L", ("row", "component"))
    step = Project(
        Basis(W=Vh.conj().T * (weights / safe)), None, F if job.verify else None, layout.shape.dtype, work.dtype,
        layout.slab_rows, target_of(work, name, len(s), dimensions, columns=wide),
        back=layout.shape.columns if job.verify and not spectrum.exact else 0,
    )  # fmt: skip
    written: Projected
    written, seen = work.passes(step, work.system(), layout.spans)
    unchanged(spectrum.tally, seen)
    return F, written


def _statement(c: FactorCertificate, spectrum: Spectrum, r: int) -> str:
    about = "is" if spectrum.exact else "is about"
    best = f"; the least that any matrix of that rank can reach {about} {c.best_error:.4g}" if c.best_error else ""
    how = "measured on what was written" if c.verified else "as the spectrum tells, not measured"
    return f"L R, of rank {r:,}, differs from your matrix by {c.reconstruction_error:.4g} of its norm, {how}{best}."
