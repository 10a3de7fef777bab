"""Rows to principal components and back, with what an earlier PCA found."""

from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.centring import Centring
from pipelines.certify import FactorCertificate
from pipelines.errors import BadData, PlanRefused
from pipelines.jobs import PCATransform
from pipelines.jobs.base import address_of
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method
from pipelines.kinds.factors import shortfalls_of, target_of, written_bytes
from pipelines.layout import Layout, Shape
from pipelines.methods.problem import check
from pipelines.passes.rowmap import Mapped, RowMap
from pipelines.result import Result, open_result, whole

method = exact_method


def resolved(job: PCATransform) -> PCATransform:
    """The job with the PCA opened.

    Raises:
        BadData: there is none.
    """
    result = job.pca if isinstance(job.pca, Result) else open_result(address_of(job.pca, job))
    kind, where = result.summary.get("kind"), result.url or "in memory"
    if kind != "pca":
        raise BadData(
            f"The result {where} is of kind {kind}, and `kind: pca_transform` needs one of kind pca. Run that first."
        )
    with whole(where):
        components, mean, spread, lengths = _parts(result)
        k, n = components.shape
        shapes = [np.shape(mean), np.shape(spread), np.shape(lengths)]
        if shapes != [(n,), (n,), (k,)]:
            raise ValueError(f"components of shape {(k, n)} with {shapes}")
        if not all(np.isfinite(part).all() for part in (components, mean, spread, lengths)):
            raise ValueError("a part holds NaN or infinity")
        assert isinstance(result.certificate, FactorCertificate)
    return job.model_copy(update={"pca": result})


def basis_of(job: PCATransform, shape: Shape) -> int:  # noqa: ARG001  # the PCA says it
    """Columns of what is written."""
    return max(1, _width(job))


def _width(job: PCATransform) -> int:
    k, n = job.pca["components"].shape
    return int(n if job.inverse else k)


def writes(job: PCATransform, *, wide: bool) -> bool:  # noqa: ARG001  # rows are read whole, however long
    """True."""
    return True


def steps(job: PCATransform, layout: Layout) -> list[Step]:
    """One read, which writes."""
    k, n = job.pca["components"].shape
    needed, found = (k, layout.shape.columns) if job.inverse else (n, layout.shape.columns)
    if found != needed:
        what = "scores, one column for each component" if job.inverse else "rows of the matrix that the PCA was made of"
        raise BadData(
            f"The matrix has {found:,} columns, and {needed:,} are needed: {what}. Check `matrix`, `pca` and `inverse`."
        )
    flops = 2.0 * layout.shape.rows * k * n
    size = written_bytes(layout, _width(job), answer_dtype(job, layout).itemsize)
    return [Step("transform", flops, writes=size, products=True)]


def result_bytes(job: PCATransform, layout: Layout) -> int:
    """What is written."""
    return written_bytes(layout, _width(job), answer_dtype(job, layout).itemsize)


def buffer_bytes(layout: Layout) -> int:
    """Centred rows, and those that are on their way to a chunk."""
    rows = (4 * layout.out_rows + 4 * layout.slab_rows) * layout.p + 2 * layout.block_rows * layout.shape.columns
    return rows * layout.shape.dtype.itemsize


def reason(job: PCATransform, layout: Layout) -> str:  # noqa: ARG001  # the same whatever the shape
    """Why this method."""
    return "rows from their scores, in one read" if job.inverse else "scores of rows, in one read"


def solve(work: Work) -> Outcome:
    """Scores, or rows."""
    job, layout = work.job, work.layout
    centring, W, dtype = map_of(work)
    stored = np.dtype(job.dtype) if job.dtype != "auto" else dtype
    if dtype.kind == "c" and stored.kind != "c":
        raise PlanRefused(
            f"What is written is complex, and `dtype: {job.dtype}` has no room for imaginary parts. Set `dtype` to "
            "complex128, complex64 or auto."
        )
    name = "reconstruction" if job.inverse else "scores"
    dimensions = ("row", "column") if job.inverse else ("row", "component")
    step = RowMap(
        W, dtype, stored, layout.slab_rows,
        target_of(work, name, W.shape[1], dimensions, columns=False, dtype=stored),
    )  # fmt: skip
    made: Mapped
    made, tally = work.passes(step, replace(work.system(), centring=centring), layout.spans)
    check(tally)
    arrays = {name: made.rows.together(W.shape[1], stored)} if work.staging is None else {}
    c = job.pca.certificate
    assert isinstance(c, FactorCertificate)
    statement = f"{name.capitalize()} by a PCA, row by row; not measured. The PCA said of itself: {c.statement}"
    return Outcome(
        arrays=arrays,
        dimensions={name: dimensions},
        certificate=replace(
            c, statement=statement, verified=False, warnings=work.warnings, rows_used=tally.rows,
            rows_omitted=tally.omitted,
        ),
        shortfalls=tuple(shortfalls_of(c, job.require)),
        identity=tally.identity,
    )  # fmt: skip


def map_of(work: Work) -> tuple[Centring, np.ndarray, np.dtype[Any]]:
    """What is done to rows: they are centred, and multiplied by W, in numbers of this type."""
    job = work.job
    dtype = np.result_type(work.layout.shape.dtype, job.pca["components"].dtype, np.float64)
    centring, W = _backward(job.pca, dtype) if job.inverse else _forward(job.pca, dtype, fill=job.nan == "mean")
    return centring, W, dtype


def _parts(pca: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Components (k, n), mean (n,), spread of the columns (n,), and what whitening divides scores by (k,)."""
    job, components = pca.summary["job"], pca["components"]
    k, n = components.shape
    spread = pca["scale"] if job["scale"] else np.ones(n)
    return components, pca["mean"], spread, np.sqrt(pca["explained_variance"]) if job["whiten"] else np.ones(k)


def _forward(pca: Any, dtype: np.dtype[Any], *, fill: bool) -> tuple[Centring, np.ndarray]:
    components, mean, spread, lengths = _parts(pca)
    by = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0.0)
    return Centring(mean.astype(dtype), by, missing=fill, fill=fill), components.conj().T / lengths


def _backward(pca: Any, dtype: np.dtype[Any]) -> tuple[Centring, np.ndarray]:
    """Rows [1, scores] times [mean; components]."""
    components, mean, spread, lengths = _parts(pca)
    k = len(components)
    return Centring(np.zeros(k, dtype), np.ones(k), ones=True), np.vstack(
        [mean, lengths[:, None] * components * spread]
    )
