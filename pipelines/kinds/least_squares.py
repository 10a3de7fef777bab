"""Least squares: x and its certificate."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.certify import certify, shortfalls
from pipelines.inputs import Inputs
from pipelines.jobs import LeastSquares
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method, no_basis, positive_diagonal
from pipelines.layout import Layout, factor_flops
from pipelines.methods import tsqr
from pipelines.methods.options import Exact
from pipelines.methods.problem import Problem, Solution
from pipelines.passes.output import Target
from pipelines.storage import Staging

PREVIEW = 8
"""Entries of x that the summary shows."""


method, basis_of = exact_method, no_basis


def writes(_job: LeastSquares, *, wide: bool) -> bool:  # noqa: ARG001  # a wide x is written by spans, not chunks
    """False: x has n numbers."""
    return False


def steps(job: LeastSquares, layout: Layout) -> list[Step]:
    """The reads that are certain, with their flops; one more comes when a refinement is called for."""
    shape = layout.shape
    factor = factor_flops(shape.rows, layout.p, layout.t)
    multiply = 4.0 * shape.rows * shape.columns * shape.k
    complex_ = 4 if shape.dtype.kind == "c" else 1
    found = [Step("factor", factor * complex_, factors=True)]
    if shape.wide and job.nan == "omit_rows":
        found.insert(0, Step("look", 0.0))
    if shape.wide and job.verify:
        found.append(Step("combine", multiply * complex_))
    if shape.wide or job.verify:
        found.append(Step("combine" if shape.wide else "verify", multiply * complex_, sums=not shape.wide))
    return found


def result_bytes(job: LeastSquares, layout: Layout) -> int:
    """x, and R where it is asked for."""
    shape = layout.shape
    n = shape.rows if shape.wide else shape.columns
    numbers = n * shape.k + ("R" in job.arrays) * shape.columns**2
    return numbers * answer_dtype(job, layout).itemsize


def buffer_bytes(layout: Layout) -> int:
    """Rows of b, of the residual, and of a wide x."""
    return 4 * layout.block_rows * (layout.shape.k + 1) * layout.shape.dtype.itemsize


def reason(job: LeastSquares, layout: Layout) -> str:  # noqa: ARG001  # the same whatever the shape
    """Why this method."""
    if isinstance(job.method, Exact):
        return "asked for by the job file"
    return "as accurate as LAPACK at any condition number, in one pass"


def solve(work: Work) -> Outcome:
    """x, verified."""
    job, inputs, layout = work.job, work.inputs, work.layout
    solution = _solve(work)
    certificate = certify(solution, wide=layout.shape.wide, ridge=job.ridge, warnings=work.warnings)
    arrays = _arrays(work, solution)
    return Outcome(
        arrays=arrays,
        dimensions={name: _dimensions(name, array) for name, array in arrays.items()},
        certificate=certificate,
        shortfalls=tuple(shortfalls(certificate, job.require)),
        identity=solution.identity,
        attributes={"x": _named(inputs)},
        preview={"x": _first(arrays.get("x")), "names": list(inputs.names[:PREVIEW])},
    )


def _solve(work: Work) -> Solution:
    return tsqr.solve(problem_of(work), work.passes)


def problem_of(work: Work) -> Problem:
    """The job as a problem for any method."""
    job, inputs, layout = work.job, work.inputs, work.layout
    wide, b, weights = layout.shape.wide, inputs.b, inputs.weights
    assert b is not None
    system = work.system(None if wide else b, None if wide else weights)
    target = None if work.staging is None else _Target(work.staging, work.dtype, inputs)
    return Problem(
        system=system, layout=layout, b=b, weights=weights, rtol=job.rtol, ridge=job.ridge, verify=job.verify,
        exact_values="singular_values" in job.arrays, target=target, stored=work.dtype,
    )  # fmt: skip


@dataclass(frozen=True)
class _Target:
    """Where the tasks of a wide problem store their rows of x."""

    staging: Staging
    dtype: np.dtype[Any]
    inputs: Inputs

    def __call__(self, rows: int, columns: int, chunk_rows: int) -> Target:
        axes = 1 if self.inputs.vector else 2
        shape, chunks = (rows, columns)[:axes], (min(chunk_rows, max(rows, 1)), columns)[:axes]
        dimensions = ("column", "rhs")[:axes]
        named = _named(self.inputs)
        url = self.staging.create("x", shape, self.dtype, chunks, dimension_names=dimensions, attributes=named)
        return Target(url, chunks[0])


def _named(inputs: Inputs) -> dict[str, Any]:
    return {"columns": list(inputs.names)} if inputs.names else {}


def _arrays(work: Work, solution: Solution) -> dict[str, np.ndarray]:
    """What the result holds by name; a vector right-hand side makes vectors and scalars."""
    measured, vector = solution.measured, work.inputs.vector
    arrays = {"residual_norm": np.sqrt(solution.rss)}
    if measured is not None:
        arrays |= {"backward_error": measured.backward, "forward_error_bound": measured.forward}
    arrays = {name: array[0] if vector else array for name, array in arrays.items()}
    if solution.x is not None:
        x = solution.x.astype(solution.x.dtype if work.job.dtype == "auto" else work.dtype, copy=False)
        arrays["x"] = x[:, 0] if vector else x
    if solution.decision.singular_values is not None:
        arrays["singular_values"] = solution.decision.singular_values
    if "R" in work.job.arrays:
        arrays["R"] = positive_diagonal(solution.R)[0]
    return {name: np.asarray(array) for name, array in arrays.items()}


def _dimensions(name: str, array: np.ndarray) -> tuple[str, ...]:
    first = {"x": "column", "R": "row_of_R", "singular_values": "value"}.get(name, "rhs")
    second = "column" if name == "R" else "rhs"
    return (first, second)[: array.ndim]


def _first(x: np.ndarray | None) -> list[Any]:
    if x is None or x.dtype.kind == "c":
        return []
    column = x if x.ndim == 1 else x[:, 0] if x.shape[1] else x[:, :0].ravel()
    return [float(value) for value in column[:PREVIEW]]
