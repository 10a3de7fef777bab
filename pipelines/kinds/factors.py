"""What the kinds that factor a matrix share: the certificate of its spectrum, and where large factors are written."""

from typing import Any

import numpy as np

from pipelines.certify import FactorCertificate, ends_of
from pipelines.errors import PlanRefused
from pipelines.jobs.base import MatrixJob, RequireFactors
from pipelines.kinds.base import Work
from pipelines.layout import Layout, tree_depth
from pipelines.matrix import Tally
from pipelines.passes.output import Rows, Target
from pipelines.small.rank import Decision, Tolerance, tolerance


def needs_tall_for_nan(job: MatrixJob, layout: Layout) -> None:
    """Raises PlanRefused where rows with NaN cannot be left out, because columns of A are read."""
    if job.nan == "omit_rows" and layout.shape.wide:
        raise PlanRefused(
            f"nan: omit_rows needs at least as many rows as columns, and the matrix is {layout.shape.columns:,} × "
            f"{layout.shape.rows:,}. Choose the rows to use with `matrix: {{url: …, rows: [start, stop]}}`."
        )


def tolerance_of(work: Work, rows: int) -> Tolerance:
    """Whose rule decides the rank."""
    layout = work.layout
    return tolerance(work.job.rtol, rows, layout.shape.columns, tree_depth(layout.span_count, layout.fan_in))


def certificate_of(work: Work, decision: Decision, tally: Tally) -> FactorCertificate:
    """The spectrum's part of a certificate."""
    n = work.layout.shape.columns
    return FactorCertificate(
        statement="", verified=False, rank=decision.rank, n=n, full_rank=decision.rank == n,
        rtol=decision.tolerance.rtol, rtol_rule=decision.tolerance.rule, rtol_reason=decision.tolerance.reason,
        condition_number=float(decision.condition_number) if decision.rank else 1.0, singular_values=ends_of(decision),
        rows_used=tally.rows, rows_omitted=tally.omitted, warnings=work.warnings,
    )  # fmt: skip


def shortfalls_of(c: FactorCertificate, require: RequireFactors) -> list[str]:
    """What the job file requires and the certificate does not reach, one sentence each."""
    found = []
    for name in ("condition_number", "orthogonality", "reconstruction_error", "values_error", "penrose"):
        most, value = getattr(require, name, None), getattr(c, name)
        if name == "penrose" and value is not None:
            value = max(value.values())
        if name == "values_error" and value is None and c.method == "tsqr":
            continue  # exact values have no error to speak of
        if most is not None and not (value is not None and value <= most):
            found.append(f"{name} is {'unknown' if value is None else f'{value:.2g}'}; at most {most:.2g} is required")
    rank = c.n if require.rank == "full" else require.rank
    if rank is not None and c.rank != rank:
        found.append(f"rank is {c.rank}; {rank}{' (full)' if require.rank == 'full' else ''} is required")
    return found


def target_of(
    work: Work,
    name: str,
    width: int,
    dimensions: tuple[str, ...],
    *,
    columns: bool,
    vector: bool = False,
    dtype: np.dtype[Any] | None = None,
) -> Target | None:
    """Room for an array whose rows (or columns) are made by the rows of the system, `width` numbers each."""
    if work.staging is None:
        return None
    rows, chunk = work.layout.shape.rows, max(1, min(work.layout.out_rows, work.layout.shape.rows))
    shape: tuple[int, ...] = (width, rows) if columns else (rows, width)
    chunks: tuple[int, ...] = (width, chunk) if columns else (chunk, width)
    if vector:
        shape, chunks, dimensions = shape[:1], chunks[:1], dimensions[:1]
    dtype = dtype or work.dtype
    return Target(work.staging.create(name, shape, dtype, chunks, dimension_names=dimensions), chunk, columns)


def in_memory(work: Work, name: str, rows: Rows, width: int, *, columns: bool) -> dict[str, np.ndarray]:
    """The array itself when nothing is stored."""
    if work.staging is not None:
        return {}
    array = rows.together(width, work.dtype)
    return {name: np.ascontiguousarray(array.conj().T) if columns else array}


def written_bytes(layout: Layout, width: int, itemsize: int) -> int:
    """Bytes of such an array."""
    return layout.shape.rows * width * itemsize
