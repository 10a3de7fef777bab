"""What a job reads, opened as far as metadata goes: shapes checked, orientation chosen, nothing read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.errors import BadData, PlanRefused
from pipelines.jobs import Apply, ArraySource, Job, LeastSquares, PCATransform
from pipelines.jobs.apply import OF_M_ROWS
from pipelines.jobs.base import address_of, as_source
from pipelines.jobs.synthetic import FromSeed, RhsFromSeed, SyntheticMatrix
from pipelines.layout import BLOCK_BYTES, Layout, Shape
from pipelines.matrix import InMemory, Source, Span, Stored
from pipelines.synthetic import Synthetic, SyntheticRhs

PART_BYTES = 64 * 2**20
"""Blocks of a dask array that are smaller are put together up to this size: one task each is too many."""


@dataclass(frozen=True)
class DaskRows:
    """A dask array (rows, columns), cut into rows only, whose blocks tasks take as they are made."""

    array: Any

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.array.dtype)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(self.array[start:stop].compute())

    def identity(self, start: int, stop: int) -> int:
        return 0

    touched = identity

    def cut(self, spans: Sequence[Span]) -> "DaskRows":
        """The same rows in blocks that are these spans."""
        sizes = tuple(span.stop - span.start for span in spans) or (0,)
        return DaskRows(self.array.rechunk({0: sizes, 1: -1}))

    def part(self, span: Span) -> Any:
        """The graph's key of a span's block."""
        return (self.array.name, span.number, 0)


@dataclass(frozen=True)
class Inputs:
    """The arrays of a job."""

    A: Source
    """Rows of the system: of A, or of Aᴴ when A is wide."""
    b: Source | None
    """The right-hand sides, for the kinds of job that have them."""
    weights: Source | None
    shape: Shape
    vector: bool
    """True when the right-hand side is (m,), so that x is (n,)."""
    infos: dict[str, storage.ArrayInfo]
    """Metadata of the stored ones, by name."""
    names: tuple[str, ...]
    """Names of A's columns, when its `columns` attribute gives them."""
    given: tuple[Span, ...]
    """Spans that the blocks of a dask array fix."""

    @property
    def sources(self) -> list[Source]:
        """All that the job reads."""
        return [source for source in (self.A, self.b, self.weights) if source is not None]

    @property
    def synthetic(self) -> bool:
        """True when the rows of A are made, and not read."""
        return isinstance(self.A, Synthetic)

    def cut(self, layout: Layout) -> "Inputs":
        """The same with the blocks of dask arrays beside A made to fit the spans of its rows."""
        if layout.shape.wide:
            return self
        b, weights = (
            source.cut(layout.spans) if isinstance(source, DaskRows) else source for source in (self.b, self.weights)
        )
        return replace(self, b=b, weights=weights)


def open_inputs(job: Job, run: str) -> Inputs:
    """What the job reads, from metadata alone.

    Raises:
        BadData: an array is missing, not 2-D, of a type that cannot be computed with, or shapes disagree.
    """
    infos: dict[str, storage.ArrayInfo] = {}
    A = _open(job, "matrix", run, infos, most=2)
    m, n = A.shape
    wide = m < n and not isinstance(job, PCATransform)  # which takes rows as they are, however long
    if m < n and not wide and isinstance(A, Synthetic):
        raise PlanRefused(
            f"A synthetic matrix of {m:,} rows and {n:,} columns is made column by column, and `kind: pca_transform` "
            "takes it row by row. Give at least as many rows as columns."
        )
    b, weights = _sides(job, run, infos, m) if isinstance(job, LeastSquares) else (None, None)
    if isinstance(job, Apply) and job.rhs is not None:
        b = _applied_to(job, run, infos, (m, n))
    kinds = [source.dtype.kind for source in (A, b) if source is not None]
    dtype = np.dtype(np.complex128 if "c" in kinds else np.float64)
    shape = replace(
        _shape(A, 0 if b is None else b.shape[1], dtype, wide=wide),
        side_chunk_bytes=_side_chunk_bytes(infos, wide=wide),
    )
    names = infos["matrix"].names if "matrix" in infos else ()
    if wide:
        A = _transposed(A)
    given = _given_spans(A)
    if isinstance(A, DaskRows):
        A = A.cut(given)
    rhs = getattr(job, "rhs", None)
    vector = rhs is not None and _is_vector(rhs, infos)
    return Inputs(A, b, weights, shape, vector, infos, _picked(names, job.matrix, n), given)


def _sides(job: LeastSquares, run: str, infos: dict[str, storage.ArrayInfo], m: int) -> tuple[Source, Source | None]:
    """The right-hand sides and the weights."""
    b = _open(job, "rhs", run, infos, most=2)
    weights = None if job.weights is None else _open(job, "weights", run, infos, most=1)
    _must_agree(b.shape[0], m, "rhs", "rows")
    if weights is not None:
        _must_agree(weights.shape[0], m, "weights", "entries")
        if weights.dtype.kind == "c":
            raise BadData("The weights are complex; they have to be real and not negative. Write them as real numbers.")
    return b, weights


def _applied_to(job: Apply, run: str, infos: dict[str, storage.ArrayInfo], shape: tuple[int, int]) -> Source:
    """What an operator is applied to: m rows, or n."""
    b = _open(job, "rhs", run, infos, most=2)
    m, n = shape
    first = next(one for one in job.compute if one != "leverage")
    needed, side = (m, "rows") if first in OF_M_ROWS else (n, "columns")
    of = f"the matrix ({m:,} × {n:,})"
    if first == "Q":
        needed, of = job.operator.basis.rank, f"Q ({m:,} × {job.operator.basis.rank:,})"
    if b.shape[0] != needed:
        raise BadData(
            f"The rhs has {b.shape[0]:,} rows, and `compute: {first}` takes {needed:,}, one for each of the {side} of "
            f"{of}. Give a B of {needed:,} rows."
        )
    return b


def _open(job: Job, name: str, run: str, infos: dict[str, storage.ArrayInfo], most: int) -> Source:
    source, fill = as_source(getattr(job, name)), job.missing_chunks == "fill"
    if isinstance(source, FromSeed):
        return _made(source.synthetic)
    if isinstance(source, RhsFromSeed):
        return _made_beside(job, source)
    if not isinstance(source, ArraySource):
        return _in_python(source, name, most)
    info = infos[name] = storage.describe(address_of(source, job))
    _check_dimensions(info.shape, name, f" at {info.url}", most)
    rows = _window(source.rows, info.shape[0], name)
    width = info.shape[1] if len(info.shape) == 2 else 1
    content = job.fingerprint == "content"
    if source.columns is None:
        return Stored(info, rows, (0, width), False, fill, run, narrow=name != "matrix", content=content)
    outside = [column for column in source.columns if column >= width]
    if outside:
        raise BadData(f"Column {outside[0]} of the {name} at {info.url} is asked for, but it has {width:,} columns "
                      f"(0 to {width - 1:,}). Correct `{name}.columns`.")  # fmt: skip
    return Stored(info, rows, tuple(source.columns), True, fill, run, content=content)


def _made(asked: SyntheticMatrix) -> Synthetic:
    """The matrix of a seed; its transpose is what is made where that is the tall one."""
    small, large = sorted([asked.rows, asked.columns])
    return Synthetic(large, small, asked.condition, asked.seed, np.dtype(asked.dtype), asked.rows < asked.columns)


def _made_beside(job: Job, rhs: RhsFromSeed) -> SyntheticRhs:
    matrix = job.matrix
    if not isinstance(matrix, FromSeed):  # of an operator, which a job file only names
        raise BadData(
            "The rhs is synthetic, A·1 + noise of a synthetic matrix, and the operator was made from a matrix that is "
            "not. Give b itself."
        )
    return SyntheticRhs(_made(matrix.synthetic), rhs.synthetic.noise)


def _window(rows: tuple[int, int] | None, height: int, name: str) -> tuple[int, int]:
    if rows is not None and rows[1] > height:
        raise BadData(f"Rows {rows[0]:,} to {rows[1]:,} of the {name} are asked for, but it has {height:,} rows. "
                      f"Correct `{name}.rows`.")  # fmt: skip
    return rows or (0, height)


def _in_python(array: Any, name: str, most: int) -> Source:
    _check_dimensions(tuple(array.shape), name, "", most)
    if np.dtype(array.dtype).kind not in "biufc" or np.dtype(array.dtype).char in "gG":
        raise BadData(f"The {name} has dtype {array.dtype}, which is not a number that can be computed with. "
                      "Convert it to float64 or complex128.")  # fmt: skip
    if array.ndim == 1:
        array = array[:, None]
    if not hasattr(array, "dask"):
        return InMemory(np.asarray(array))
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise PlanRefused(f"The {name} is a dask array whose chunk sizes are unknown, and the plan needs them. "
                          "Call its compute_chunk_sizes() first.")  # fmt: skip
    return DaskRows(array)


def _check_dimensions(shape: tuple[int, ...], name: str, where: str, most: int) -> None:
    least = 2 if name == "matrix" else 1
    if not least <= len(shape) <= most:
        needed = "2 dimensions (m, n)" if name == "matrix" else "shape (m,)" if most == 1 else "shape (m,) or (m, k)"
        advice = "Reshape it and write it again." if where else "Reshape it."
        raise BadData(f"The {name}{where} has {len(shape)} dimensions, shape {shape}; it needs {needed}. {advice}")


def _must_agree(found: int, m: int, name: str, what: str) -> None:
    if found != m:
        raise BadData(
            f"The {name} {'have' if name == 'weights' else 'has'} {found:,} {what} and the matrix has {m:,} rows; "
            "they have to be the same. "
            "Check that both were written from the same data, or choose a part with "
            f"`{name}: {{url: …, rows: [0, {min(found, m)}]}}`."
        )


def _shape(A: Source, k: int, dtype: np.dtype[Any], *, wide: bool) -> Shape:
    m, n = A.shape
    rows, columns = (n, m) if wide else (m, n)
    chunk, unit, partial = (max(rows, 1), columns), 1, True
    if isinstance(A, Stored):
        chunks, shards = _pair(A.info.chunks), _pair(A.info.shards or A.info.chunks)
        chunk = (chunks[1], chunks[0]) if wide else chunks
        unit = shards[1] if wide else shards[0]
        partial = A.info.partial
    if isinstance(A, Synthetic):  # as if it were stored as the README says that it reads fastest
        chunk = (min(chunk[0], max(1, BLOCK_BYTES // max(1, columns * A.dtype.itemsize))), columns)
    return Shape(rows, columns, k, wide, A.dtype.itemsize, dtype, chunk, max(1, unit), partial)


def _side_chunk_bytes(infos: dict[str, storage.ArrayInfo], *, wide: bool) -> int:
    sides = [info for name, info in infos.items() if name != "matrix" and not info.partial]
    return 0 if wide else max((math.prod(info.chunks) * info.dtype.itemsize for info in sides), default=0)


def _pair(chunks: tuple[int, ...]) -> tuple[int, int]:
    return chunks[0], chunks[1] if len(chunks) > 1 else 1


def _transposed(A: Source) -> Source:
    if isinstance(A, Stored):
        return replace(A, transposed=True)
    if isinstance(A, InMemory):
        return InMemory(A.array.conj().T)
    if isinstance(A, Synthetic):
        return A.transposed
    assert isinstance(A, DaskRows)
    return DaskRows(A.array.conj().T)


def _given_spans(A: Source) -> tuple[Span, ...]:
    """Neighbouring blocks of a dask array, put together up to PART_BYTES."""
    if not isinstance(A, DaskRows):
        return ()
    row_bytes, stops, size, stop = A.shape[1] * A.dtype.itemsize, [0], 0, 0
    for rows in A.array.chunks[0]:
        if size and (size + rows) * row_bytes > PART_BYTES:
            stops.append(stop)
            size = 0
        size, stop = size + rows, stop + rows
    if stop > stops[-1]:
        stops.append(stop)
    return tuple(Span(i, start, end) for i, (start, end) in enumerate(pairwise(stops)))


def _is_vector(rhs: Any, infos: dict[str, storage.ArrayInfo]) -> bool:
    if isinstance(rhs, RhsFromSeed):
        return True
    return len(infos["rhs"].shape if "rhs" in infos else rhs.shape) == 1


def _picked(names: tuple[str, ...], matrix: Any, n: int) -> tuple[str, ...]:
    """Names of the columns that are used, or none when they do not fit."""
    source = as_source(matrix)
    if isinstance(source, ArraySource) and source.columns is not None and names:
        names = tuple(names[column] for column in source.columns if column < len(names))
    return names if len(names) == n else ()
