"""SVD through R: values and the small side's vectors from one read, the large side's from one or two more."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate, parts
from pipelines.errors import PlanRefused
from pipelines.jobs import SVD
from pipelines.jobs.svd import Relative
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype
from pipelines.kinds.factors import (
    certificate_of,
    in_memory,
    needs_tall_for_nan,
    shortfalls_of,
    target_of,
    tolerance_of,
    written_bytes,
)
from pipelines.layout import Layout, factor_flops
from pipelines.matrix import Tally
from pipelines.methods.orthonormal import factor, orthonormal, right_basis
from pipelines.methods.problem import frobenius, unchanged
from pipelines.passes.project import Project, Projected
from pipelines.small.rank import Decision, cut

STEADY = 10.0
"""Up to this condition number A V S⁻¹ is orthonormal to roundoff by itself, and one read is saved."""


def writes(job: SVD, *, wide: bool) -> bool:
    """True when the vectors of the large side are asked for."""
    return job.vectors == "both" or (job.vectors == "right" and wide)


def steps(job: SVD, layout: Layout) -> list[Step]:
    """One read for the values; for the large side's vectors one to make them orthonormal and one to write them."""
    shape = layout.shape
    needs_tall_for_nan(job, layout)
    k = _most(job, shape.columns)
    complex_ = 4 if shape.dtype.kind == "c" else 1
    found = [Step("factor", factor_flops(shape.rows, layout.p, 0) * complex_, factors=True)]
    if writes(job, wide=shape.wide):
        project = 2.0 * shape.rows * shape.columns * k * complex_
        found.append(Step("orthogonalise", project + factor_flops(shape.rows, k, 0) * complex_))
        size = written_bytes(layout, k, answer_dtype(job, layout).itemsize)
        found.append(Step("write", (2 if job.verify else 1) * project, writes=size))
    return found


def _most(job: SVD, n: int) -> int:
    if isinstance(job.values, int):
        if job.values > n:
            raise PlanRefused(
                f"{job.values:,} singular values are asked for, and the matrix has {n:,}. Set `values` to at most "
                f"{n:,}, or to all."
            )
        return job.values
    return n


def result_bytes(job: SVD, layout: Layout) -> int:
    """s, and the vectors."""
    n, size = layout.shape.columns, answer_dtype(job, layout).itemsize
    k = _most(job, n)
    small = k * n if job.vectors != "none" else 0
    large = written_bytes(layout, k, size) if writes(job, wide=layout.shape.wide) else 0
    return (small + n) * size + large


def buffer_bytes(layout: Layout) -> int:
    """Rows of U on their way to a chunk, and what was made of a slab."""
    return (4 * layout.out_rows + 4 * layout.slab_rows) * layout.shape.columns * layout.shape.dtype.itemsize


def reason(job: SVD) -> str:  # noqa: ARG001  # randomized methods will ask
    """Why this method."""
    return "exact through TSQR: the singular values of R are those of A, at any condition number"


def solve(work: Work) -> Outcome:
    """s, and the vectors that are asked for, measured."""
    job, layout = work.job, work.layout
    wide = layout.shape.wide
    R, tally = factor(work.passes, work.system(), layout)
    _, spectrum, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
    limit = replace(tolerance_of(work, tally.rows), scaled=False)
    decision = cut(spectrum, replace(limit, reason=limit.reason.replace(", on columns scaled to norm one", "")))
    k = _kept(job, spectrum, decision)
    certificate = replace(certificate_of(work, decision, tally), best_error=_tail(spectrum, k))
    s, large, columns = spectrum[:k], {}, "Vt" if wide else "U"
    if writes(job, wide=wide):
        s, Vh, written = _written(work, s, Vh[:k], tally)
        large = in_memory(work, columns, written.rows, k, columns=wide)
        if job.verify:
            misfit = float(np.sqrt(written.misfit.sum())) / (frobenius(R) or 1.0)
            gram = float(np.linalg.norm(written.gram - np.eye(k)))
            certificate = replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)
    certificate = replace(certificate, statement=_statement(certificate, k))
    small = {"s": s, "singular_values": spectrum}
    if job.vectors != "none" and not (wide and job.vectors == "right"):
        name, array = ("U", Vh[:k].conj().T) if wide else ("Vt", Vh[:k])
        small[name] = np.ascontiguousarray(array).astype(work.dtype, copy=False)
    return Outcome(
        arrays=small | large,
        dimensions={"s": ("value",), "singular_values": ("value",), "U": ("row", "value"), "Vt": ("value", "column")},
        certificate=certificate,
        shortfalls=tuple(shortfalls_of(certificate, job.require)),
        identity=tally.identity,
        preview={"s": [float(value) for value in s[:8]]},
    )


def _kept(job: SVD, spectrum: np.ndarray, decision: Decision) -> int:
    """How many values there are vectors for: none for zeros, whose vectors A does not determine."""
    if isinstance(job.values, Relative):
        return int((spectrum > job.values.tolerance * decision.largest).sum()) if decision.rank else 0
    if job.vectors == "none":
        return _most(job, len(spectrum))
    return min(_most(job, len(spectrum)), decision.rank)


def _tail(spectrum: np.ndarray, k: int) -> float:
    """√(Σ_{i>k} sᵢ²) / ‖A‖: the least error of rank k (Eckart & Young 1936)."""
    whole = float(np.linalg.norm(spectrum))
    return float(np.linalg.norm(spectrum[k:])) / whole if whole else 0.0


def _written(work: Work, s: np.ndarray, Vh: np.ndarray, tally: Tally) -> tuple[np.ndarray, np.ndarray, Projected]:
    """s, Vᴴ and what the writing read measured; with Q = A V S⁻¹ R₂⁻¹ the SVD of R₂ S corrects all three."""
    layout, wide, k = work.layout, work.layout.shape.wide, len(s)
    basis, T = right_basis(Vh, s), None
    if k and s[0] > STEADY * s[-1]:
        basis = orthonormal(work.passes, work.system(), layout, basis, tally)
        assert basis.R2 is not None
        T, s, Z = np.linalg.svd(basis.R2 * s)
        Vh = Z @ Vh
    F = s[:, None] * Vh
    name, dimensions = ("Vt", ("value", "column")) if wide else ("U", ("row", "value"))
    step = Project(
        basis, T, F if work.job.verify else None, layout.shape.dtype, work.dtype, layout.slab_rows,
        target_of(work, name, k, dimensions, columns=wide),
    )  # fmt: skip
    written: Projected
    written, seen = work.passes(step, work.system(), layout.spans)
    unchanged(tally, seen)
    return s, Vh, written


def _statement(c: FactorCertificate, k: int) -> str:
    if c.orthogonality is None or c.reconstruction_error is None:
        return (
            "These are the singular values of a matrix that differs from yours by a few roundings in each entry "
            "(Householder QR is backward stable); no further read measured that."
        )
    best = f", and no matrix of rank {k:,} comes nearer than {c.best_error:.2e}" if c.best_error else ""
    return (
        f"U S Vᴴ differs from your matrix by {parts(c.reconstruction_error)}{best}; the vectors are orthonormal up to "
        f"{c.orthogonality:.1e}. Both were measured on what was written."
    )
