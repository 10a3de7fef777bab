"""Products with an operator: QᴴB in one read of A and B, what is made of it in another, and nothing factored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic_core import PydanticCustomError

from pipelines.certify import FactorCertificate
from pipelines.errors import BadData, PlanRefused
from pipelines.inputs import Inputs
from pipelines.jobs import Apply, ArraySource
from pipelines.jobs.apply import OF_M_ROWS
from pipelines.jobs.base import address_of, as_source, must_be_apart
from pipelines.jobs.synthetic import FromSeed
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method, no_basis
from pipelines.kinds.factors import target_of
from pipelines.layout import Layout, Shape, lay_out
from pipelines.matrix import Source, System, Tally
from pipelines.methods.options import Tsqr
from pipelines.methods.problem import check
from pipelines.operators import Operator, operator_from
from pipelines.passes.apply import Gather, Output, Spread
from pipelines.roots import check_allowed
from pipelines.storage import local_path

method, basis_of = exact_method, no_basis

OF_Q = ("Q", "Q_adjoint")
"""What a Q can do; the rest is for a pseudoinverse."""


@dataclass(frozen=True)
class Role:
    """What one of `compute` is of the system S = Q F, which is A, or Aᴴ when A is wide."""

    gathers: bool = False
    """True when QᴴB is needed."""
    spreads: bool = False
    """True when there is a row of it for each row of S."""
    large: bool = False
    """True when B has a row for each row of S."""


def role_of(compute: str, *, wide: bool) -> Role:
    """Which reads it takes: a sum over the rows of S, something for each of them, both, or none."""
    down, up, small = Role(gathers=True, large=True), Role(spreads=True), Role()
    onto = Role(gathers=True, spreads=True, large=True)
    if compute in ("pinv", "pinv_adjoint"):
        return up if (compute == "pinv") == wide else down
    if compute in OF_Q:
        return up if compute == "Q" else down
    if compute == "leverage":
        return small if wide else Role(spreads=True)
    return onto if (compute in OF_M_ROWS) != wide else small


def resolved(job: Apply) -> Apply:
    """The job with the operator opened, and with what its own file says of A where this one says nothing.

    Raises:
        BadData: there is no such operator, or it cannot do what is asked for.
        PlanRefused: it was factored from an array in memory, and no matrix is given.
    """
    if isinstance(job.operator, Operator):
        return job
    given = job.operator
    held = operator_from(address_of(given, job) if isinstance(given, str) else given)
    wrong = [one for one in job.compute if (one in OF_Q) != held.is_q]
    if wrong:
        able = "Q and Q_adjoint" if held.is_q else "pinv, pinv_adjoint, the four projections and leverage"
        raise BadData(
            f"`compute: {wrong[0]}` is asked for, and the operator {held.where} is of kind "
            f"{held.summary['kind']}, which can do {able}."
        )
    then = held.summary["job"]
    matrix = job.matrix if job.matrix is not None else _where_it_was(held, job)
    try:
        must_be_apart(job.output, "the matrix of the operator", matrix)
    except PydanticCustomError as error:
        raise PlanRefused(f"The job needs {error.message()}. Choose another output.") from None
    _same_columns(held, matrix)
    then = {"fingerprint": "stat"} | then
    changes = {
        name: then[name] for name in ("nan", "missing_chunks", "fingerprint") if getattr(job, name) == "as_factored"
    }
    if held.fingerprint is not None and job.fingerprint not in ("as_factored", then["fingerprint"]):
        raise PlanRefused(
            f"The operator {held.where} knows its matrix by `fingerprint: {then['fingerprint']}`, and the job asks for "
            f"`{job.fingerprint}`. Leave `fingerprint` out, or factor the matrix again with that."
        )
    return job.model_copy(update={"operator": held, "matrix": matrix, **changes})


def _same_columns(held: Operator, matrix: Any) -> None:
    """Raises BadData where other columns, or others first, are given than those that were factored."""
    then, now = held.summary["job"]["matrix"], as_source(matrix)
    if isinstance(now, FromSeed) and not isinstance(then, str) and "synthetic" in then:
        _same_seed(held, then["synthetic"], now.model_dump(mode="json")["synthetic"])
    stored = isinstance(then, str) or "url" in then
    if not stored or not isinstance(now, ArraySource):
        return
    before = None if isinstance(then, str) else then.get("columns")
    before = None if before is None else tuple(before)
    every = tuple(range(len(before or now.columns or ())))
    if (before or every) != (now.columns or every):
        raise BadData(
            f"The operator {held.where} was made from {'all columns' if before is None else 'some of the columns'} of "
            f"its matrix, and `matrix` gives {'others' if now.columns else 'all of them'}. Give the same `columns`, in "
            "the same order."
        )


def _same_seed(held: Operator, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises BadData for a synthetic matrix that is not the one that was factored: no chunk of it could tell."""
    other = [name for name in now if now[name] != then.get(name)]
    if other:
        what = ", ".join(f"{name} {then.get(name)} (now {now[name]})" for name in other)
        raise BadData(
            f"The operator {held.where} was made from a synthetic matrix of {what}. Give the same, or leave `matrix` "
            "out."
        )


def _where_it_was(held: Operator, job: Apply) -> Any:
    then = held.summary["job"]["matrix"]
    if isinstance(then, Mapping) and "synthetic" in then:
        return FromSeed.model_validate(then)
    url = then if isinstance(then, str) else then.get("url")
    if url is not None:
        check_allowed(url)
        path = local_path(url)
        if path is not None and not path.exists():
            raise BadData(
                f"The operator {held.where} was made from the matrix {url}, and nothing is there, seen from the "
                f"directory {Path.cwd()}. Give `matrix`, where it lies now, or run the job from where it was factored."
            )
        source = ArraySource(url=then) if isinstance(then, str) else ArraySource(**then)
        options = source.storage_options or job.storage_options or held.summary["job"].get("storage_options", {})
        return source.model_copy(update={"storage_options": options})
    raise PlanRefused(
        f"The operator was factored from an array in memory ({then.get('array')} of shape {then.get('shape')}), which "
        "no result can hold. Give `matrix`, the same array."
    )


def as_factored(job: Apply, inputs: Inputs) -> Layout:
    """The cut that A was factored with: Q is orthonormal only when its rows are made in the same slabs again."""
    _must_be_as_it_was(job, inputs.shape)
    options, (slab_rows, block_rows, span_rows) = Tsqr(), job.operator.cut
    layout = lay_out(
        replace(inputs.shape, k=0),
        block=None, products=options.products, slab_bytes=None, span_seconds=options.span_seconds, writes=True,
    )  # fmt: skip
    if span_rows % layout.out_rows and span_rows < inputs.shape.rows:
        raise BadData(
            f"The matrix has chunks of {layout.out_rows:,} rows, and the operator {job.operator.where} was made in "
            f"spans of {span_rows:,}, which those do not fill. Give the same matrix, or factor this one."
        )
    layout = replace(
        layout,
        shape=inputs.shape,
        slab_rows=slab_rows,
        block_rows=block_rows,
        span_rows=span_rows,
        given=inputs.given,
    )
    return layout


def writes(job: Apply, *, wide: bool) -> bool:
    """True when something has a row for each row of the system."""
    return any(role_of(one, wide=wide).spreads for one in job.compute)


def steps(job: Apply, layout: Layout) -> list[Step]:
    """At most two reads, whatever is asked for."""
    shape, r = layout.shape, job.operator.basis.rank
    roles = [role_of(one, wide=shape.wide) for one in job.compute]
    complex_ = 4 if shape.dtype.kind == "c" else 1
    rows_of_q = 1.5 * shape.rows * shape.columns * r * complex_
    each = 2.0 * shape.rows * r * max(1, shape.k) * complex_
    found = []
    if any(role.gathers for role in roles):
        found.append(Step("gather", rows_of_q + each))
    if any(role.spreads for role in roles):
        size = _large_bytes(job, layout)
        found.append(Step("write", rows_of_q + each * len(roles), writes=size))
    return found


def _must_be_as_it_was(job: Apply, shape: Shape) -> None:
    held = job.operator
    now = (shape.columns, shape.rows) if shape.wide else (shape.rows, shape.columns)
    if now != held.shape:
        raise BadData(
            f"The matrix is {now[0]:,} × {now[1]:,} now, and was {held.shape[0]:,} × {held.shape[1]:,} when the "
            f"operator {held.where} was made. Give the same matrix, or factor this one."
        )


def _large_bytes(job: Apply, layout: Layout) -> int:
    shape, itemsize = layout.shape, answer_dtype(job, layout).itemsize
    return sum(
        shape.rows * (1 if one == "leverage" else max(1, shape.k)) * itemsize
        for one in job.compute
        if role_of(one, wide=shape.wide).spreads
    )


def result_bytes(job: Apply, layout: Layout) -> int:
    """All that is computed."""
    small = layout.shape.columns * max(1, layout.shape.k) * len(job.compute) * answer_dtype(job, layout).itemsize
    return small + _large_bytes(job, layout)


def buffer_bytes(layout: Layout) -> int:
    """Rows of Q and of what is made of them; B and the outputs on their way to a chunk."""
    k = max(1, layout.shape.k)
    rows = 4 * layout.slab_rows * layout.shape.columns + 8 * (layout.out_rows + layout.block_rows) * k
    return rows * layout.shape.dtype.itemsize


def reason(job: Apply, layout: Layout) -> str:
    """Why this method."""
    many = len(steps(job, layout))
    reads = "no read of A: all of it follows from the factors" if not many else f"{many} read{'s' if many > 1 else ''}"
    return f"with the factors of {job.operator.where}, {reads}"


def solve(work: Work) -> Outcome:
    """Each of what is computed."""
    layout, held, vector = work.layout, work.job.operator, work.inputs.vector
    identity: tuple[int, int, int] = (held.fingerprint or 0, 0, 0)
    found = products(work)
    arrays, outputs = dict(found.small), found.outputs
    if found.tally is not None:
        identity = _unchanged(held, work.inputs, found.tally)
        _check(found.tally)
    if outputs:
        step = Spread(held.basis, outputs, layout.shape.dtype, work.dtype, layout.slab_rows)
        written, tally = work.passes(step, found.system, layout.spans)
        identity = _unchanged(held, work.inputs, tally)
        _check(tally)
        if work.staging is None:
            arrays |= {
                output.name: rows.together(output.C.shape[1], np.dtype(float) if output.quadratic else work.dtype)
                for output, rows in zip(outputs, written.rows, strict=True)
            }
    arrays = {name: as_stored(name, array, work, vector=vector) for name, array in arrays.items()}
    return Outcome(
        arrays=arrays,
        dimensions={name: _dimensions(name, array.ndim) for name, array in arrays.items()},
        certificate=certificate_of(held, work.warnings, read=bool(outputs) or found.tally is not None),
        shortfalls=(),
        identity=identity if found.B is None else (identity[0], found.aside, 0),
    )


@dataclass(frozen=True)
class Products:
    """What is computed, as far as a sum over the rows of the system takes it."""

    small: dict[str, np.ndarray]
    """What is ready, by name, (columns of S, k)."""
    outputs: tuple[Output, ...]
    """What has a row for each row of the system, which another read has to make."""
    system: System
    B: np.ndarray | None
    """The right-hand sides when they are small; else they are rows of the system."""
    aside: int
    """The identity of those."""
    gathered: np.ndarray | None
    """QᴴB (r, k), when something is made of it."""
    tally: Tally | None
    """Of the read that summed it."""


def products(work: Work) -> Products:
    """QᴴB by one read where it is needed, and what to make of it."""
    job, layout, held = work.job, work.layout, work.job.operator
    roles = {one: role_of(one, wide=layout.shape.wide) for one in job.compute}
    large = next((role.large for one, role in roles.items() if one != "leverage"), False)
    b, B, aside = work.inputs.b, None, 0
    if b is not None and not large:
        aside, B = b.identity(0, b.shape[0]), _whole(b, layout.shape.dtype)
    system = replace(work.system(b if large else None), b_decides=False)
    gathered, tally = None, None
    if any(role.gathers for role in roles.values()):
        step = Gather(held.basis, layout.shape.k, layout.shape.dtype, layout.slab_rows)
        gathered, tally = work.passes(step, system, layout.spans)
    outputs = tuple(_output(work, one, held, gathered, B) for one, role in roles.items() if role.spreads)
    small = {one: _ready(one, held, gathered, B) for one, role in roles.items() if not role.spreads}
    return Products(small, outputs, system, B, aside, gathered, tally)


def _ready(one: str, held: Operator, gathered: np.ndarray | None, B: np.ndarray | None) -> np.ndarray:
    """What is made of QᴴB alone, or of the factors alone."""
    if one not in ("pinv", "pinv_adjoint", "Q_adjoint"):
        return _small(one, held, B)
    assert gathered is not None
    if held.signs is not None:
        return np.asarray(held.signs.conj()[:, None] * gathered)
    return gathered if held.K is None else np.asarray(held.K @ gathered)


def _check(tally: Tally) -> None:
    if tally.bad:
        assert tally.first is not None
        row, column, name = tally.first
        if name == "matrix":
            check(tally)
        raise BadData(_not_finite(f"{tally.bad:,} entries of the rhs are", row, column))


def _not_finite(what: str, row: int, column: int) -> str:
    return (
        f"{what} NaN or infinite; the first is at row {row:,}, column {column:,} (counted from 0). Nothing can be made "
        "of them: give a B of finite numbers, or factor A without those rows."
    )


def _whole(source: Source, dtype: np.dtype[Any]) -> np.ndarray:
    """B with as many rows as the small side, which fits in memory as the factors do."""
    B = source.read(0, source.shape[0]).astype(dtype)
    if not np.isfinite(B).all():
        bad = np.argwhere(~np.isfinite(B))
        raise BadData(_not_finite(f"{len(bad):,} entries of the rhs are", *bad[0]))
    return B


def _output(work: Work, one: str, held: Operator, gathered: np.ndarray | None, B: np.ndarray | None) -> Output:
    """What goes out for each row of the system."""
    rest = one in ("project_left_null", "project_null")
    if one == "leverage":
        C = np.eye(held.basis.rank, dtype=work.layout.shape.dtype) if held.middle is None else held.middle
    elif gathered is not None and role_of(one, wide=work.layout.shape.wide).gathers:
        C = gathered if held.middle is None else held.middle @ gathered
    else:
        assert B is not None
        C = held.K.conj().T @ B if held.K is not None else cast(np.ndarray, held.signs)[:, None] * B
    width = 1 if one == "leverage" else C.shape[1]
    dtype = np.dtype(np.float64) if one == "leverage" else None
    vector = one == "leverage" or work.inputs.vector
    target = target_of(work, one, width, ("row", "rhs"), columns=False, vector=vector, dtype=dtype)
    return Output(one, C, target, rest=rest, quadratic=one == "leverage")


def _small(one: str, held: Operator, B: np.ndarray | None) -> np.ndarray:
    """What takes no read: it lies in the space of the small side."""
    if one == "leverage":
        columns = held.basis.by.shape[0]
        if held.small is not None:
            return np.asarray(held.small.diagonal().real.copy())
        return np.ones(columns) if held.V is None else (np.abs(held.V) ** 2).sum(axis=1)
    assert B is not None
    onto = held.onto_rows(B)
    return B - onto if one in ("project_left_null", "project_null") else onto


def as_stored(name: str, array: np.ndarray, work: Work, *, vector: bool) -> np.ndarray:
    """An array of the answer's type, and one-dimensional where the right-hand side was."""
    if name == "leverage":
        return array.reshape(-1)
    array = array.astype(work.dtype, copy=False)
    return array[:, 0] if vector and array.ndim == 2 else array


def _dimensions(name: str, ndim: int) -> tuple[str, ...]:
    first = {"pinv": "column", "project_row_space": "column", "project_null": "column", "Q_adjoint": "row_of_R"}
    return (first.get(name, "row"), "rhs")[:ndim]


def _unchanged(held: Operator, inputs: Inputs, tally: Tally) -> tuple[int, int, int]:
    """The identity of what was read, which has to be that of what was factored."""
    if held.fingerprint is not None and "matrix" in inputs.infos and tally.identity[0] != held.fingerprint:
        raise BadData(
            f"The matrix at {inputs.infos['matrix'].url} is not what the operator {held.where} was "
            "made from: its chunks were written again, or it was copied without their times. Factor it again."
        )
    return tally.identity


def certificate_of(held: Operator, warnings: tuple[str, ...], *, read: bool) -> FactorCertificate:
    """That of the operator, which is all that products are said to be worth."""
    c = held.certificate
    said = (
        "Products with the operator, not measured themselves; their error is that of the operator, which said of "
        f"itself: {c.statement}"
    )
    if not read:
        said = f"A was not read, so nobody has seen whether it is still what it was. {said}"
    return replace(c, statement=said, verified=False, warnings=warnings)
