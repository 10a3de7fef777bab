"""QR: R from one read; Q in three, orthonormal to roundoff at any condition number."""

from dataclasses import replace

import numpy as np
from scipy.linalg import qr

from pipelines.certify import FactorCertificate, parts
from pipelines.errors import BadData, PlanRefused
from pipelines.jobs import QR
from pipelines.kernels.basis import Basis
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method, no_basis, positive_diagonal
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
from pipelines.methods.orthonormal import factor, orthonormal
from pipelines.methods.problem import frobenius, unchanged
from pipelines.passes.project import Project, Projected
from pipelines.small.inverse import decide
from pipelines.small.rank import Decision, column_scales

STEADY = 1e3
"""Condition numbers of Q₁ up to here leave Q₁ R₂⁻¹ orthonormal to roundoff; beyond, columns of A are dependent."""


method, basis_of = exact_method, no_basis


def writes(job: QR, *, wide: bool) -> bool:
    """True when Q is asked for; an implicit one is read as an explicit one would be."""
    return job.form != "r" and not wide


def steps(job: QR, layout: Layout) -> list[Step]:
    """One read for R; for Q one to find what it lacks and one to write it."""
    shape = layout.shape
    if shape.wide:
        m, n = shape.columns, shape.rows
        raise PlanRefused(
            f"The matrix is {m:,} × {n:,}, and kind: qr needs at least as many rows as columns. "
            "Factor its transpose, or use kind: svd."
        )
    needs_tall_for_nan(job, layout)
    one = factor_flops(shape.rows, layout.p, 0) * (4 if shape.dtype.kind == "c" else 1)
    found = [Step("factor", one, factors=True)]
    if job.form != "r":
        found.append(Step("orthogonalise", 1.5 * one, factors=True))
    if job.form == "implicit" and job.verify:
        found.append(Step("verify", 2.5 * one))
    if job.form == "explicit":
        size = written_bytes(layout, shape.columns, answer_dtype(job, layout).itemsize)
        found.append(Step("write", (2.5 if job.verify else 1) * one, writes=size))
    return found


def result_bytes(job: QR, layout: Layout) -> int:
    """R, and Q where it is asked for."""
    n, size = layout.shape.columns, answer_dtype(job, layout).itemsize
    if job.form == "implicit":
        return 3 * n * n * size
    return n * n * size + (written_bytes(layout, n, size) if job.form == "explicit" else 0)


def buffer_bytes(layout: Layout) -> int:
    """Rows of Q on their way to a chunk, and what was made of a slab."""
    return (4 * layout.out_rows + 4 * layout.slab_rows) * layout.shape.columns * layout.shape.dtype.itemsize


def reason(job: QR, layout: Layout) -> str:  # noqa: ARG001  # the same whatever the shape
    """Why this method."""
    if job.form != "r":
        return "indirect TSQR with one re-orthogonalisation: Q orthonormal to roundoff without storing it twice"
    return "TSQR: R from one pass, as accurate as LAPACK at any condition number"


def solve(work: Work) -> Outcome:
    """R, and Q, measured."""
    job, layout = work.job, work.layout
    system = work.system()
    R, tally = factor(work.passes, system, layout)
    decision, _ = decide(R, tolerance_of(work, tally.rows), exact=False)
    certificate = certificate_of(work, decision, tally)
    large: dict[str, np.ndarray] = {}
    orders: dict[str, np.ndarray] = {}
    if job.pivoting:
        R, orders["P"] = pivoted(R, decision)
    if job.form != "r":
        R, written, kept = _written(work, R, tally, orders.get("P"))
        large = in_memory(work, "Q", written.rows, len(R), columns=False) if job.form == "explicit" else kept
        if job.verify:
            misfit = written.misfit**0.5 / (frobenius(R) or 1.0)
            gram = float(np.linalg.norm(written.gram - np.eye(len(R))))
            certificate = replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)
    else:
        R = positive_diagonal(R)[0]
    certificate = replace(certificate, statement=_statement(job, certificate))
    small = {"R": R.astype(work.dtype, copy=False), **orders}
    if decision.singular_values is not None:
        small["singular_values"] = decision.singular_values
    return Outcome(
        arrays=small | large,
        dimensions={
            "R": ("row_of_R", "column"), "Q": ("row", "row_of_R"), "singular_values": ("value",),
            "R1": ("row_of_R1", "column_of_R1"), "R2": ("row_of_R2", "column_of_R2"), "signs": ("row_of_R",),
            "P": ("column",),
        },
        certificate=certificate,
        shortfalls=tuple(shortfalls_of(certificate, job.require)),
        identity=tally.identity,
    )  # fmt: skip


def pivoted(R: np.ndarray, decision: Decision) -> tuple[np.ndarray, np.ndarray]:
    """R (rank, n) of A[:, P], and P, by Businger and Golub (1965) on the triangle: its columns are as long as A's.

    Columns are compared as the rule for the rank compares them, or one in small units would come last.
    """
    if not R.size:
        return R, np.arange(R.shape[1])
    D = column_scales(R) if decision.tolerance.scaled else np.ones(R.shape[1])
    pivoted, order = qr(R * D, mode="r", pivoting=True, check_finite=False)
    return np.asarray(pivoted[: decision.rank] / D[order]), np.asarray(order)


def _written(
    work: Work, R: np.ndarray, tally: Tally, order: np.ndarray | None
) -> tuple[np.ndarray, Projected, dict[str, np.ndarray]]:
    """R of the Q that is written, what the writing read measured, and the factors of an implicit Q."""
    explicit, verify = work.job.form == "explicit", work.job.verify
    layout, n = work.layout, len(R)
    square, first = R[:, :n], None if order is None else order[:n]
    _needs_independent(square, n)
    basis = orthonormal(work.passes, work.system(), layout, Basis(np.asfortranarray(square), order=first), tally)
    assert basis.R2 is not None
    if n and np.linalg.cond(basis.R2) > STEADY:
        _dependent(n)
    whole, signs = positive_diagonal(basis.R2 @ R)
    F = whole.astype(work.dtype).astype(np.result_type(work.dtype, np.float64))  # what is measured is what is stored
    if order is not None:
        F = F[:, np.argsort(order)]
    step = Project(
        basis, np.diag(signs) if n else None, F if verify else None, layout.shape.dtype,
        work.dtype if explicit else layout.shape.dtype, layout.slab_rows,
        target_of(work, "Q", n, ("row", "row_of_R"), columns=False) if explicit else None,
        keep=explicit, name="write" if explicit else "verify",
    )  # fmt: skip
    written = step.start()
    if explicit or verify:
        written, seen = work.passes(step, work.system(), layout.spans)
        unchanged(tally, seen)
    return whole, written, {"R1": basis.by, "R2": basis.R2, "signs": signs}


def _needs_independent(R: np.ndarray, n: int) -> None:
    if n and not R.diagonal().all():
        _dependent(n)


def _dependent(n: int) -> None:
    raise BadData(
        f"The {n:,} columns of the matrix are not independent: their R has no inverse to working accuracy, so Q would "
        "not be determined by them. Leave out the columns that depend on others (`matrix: {url: …, columns: […]}`), or "
        "set `pivoting: true`, which orders them and stops at the rank."
    )


def _statement(job: QR, c: FactorCertificate) -> str:
    if job.form == "r":
        return (
            "R is the factor of a matrix that differs from yours by a few roundings in each entry (Householder QR is "
            "backward stable); nothing was measured, since Q was not asked for."
        )
    if c.orthogonality is None or c.reconstruction_error is None:
        made = "were written" if job.form == "explicit" else "are kept as factors"
        return f"Q and R {made} and not measured: `verify: false` left that out."
    what = "was written" if job.form == "explicit" else "its factors make"
    return (
        f"QR differs from your matrix by {parts(c.reconstruction_error)}, and QᴴQ from the identity by "
        f"{c.orthogonality:.1e}: both measured on what {what}."
    )
