"""How the rows of a matrix are cut: spans for tasks, blocks for reads, slabs for the cache.

The cut follows from the shape, the chunks and the method alone, never from the machine or the number of workers:
it fixes every rounding error, so the same job gives the same bits wherever it runs.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.kernels import panels, sweep
from pipelines.matrix import Span

BLOCK_BYTES = 16 * 2**20
"""One read is about this large: far above the cost of a call, far below a worker's memory."""
SMALL_BLOCK_BYTES = 2 * 2**20
"""One read of plain files: what was read still lies in the cache when it is factored."""
MOST_BLOCK_BYTES = 256 * 2**20
"""Above this a row of chunks is not read at once, but decoded again for each part of it."""
PRODUCT_BYTES, FEW_PRODUCT_ROWS = 2 * 2**20, 128
"""A slab that is multiplied twice, by a basis and by its own product, stays in a cache; but products want rows."""
MOST_SPANS = 4096
"""Two passes and their merges stay under 10,000 tasks."""
FEW_SPANS = 32
"""Small jobs are cut this fine for the sake of several workers, if tasks stay above SHORT_SPAN."""
SHORT_SPAN = 0.05
"""Seconds below which a task is mostly overhead (Dask takes 1 to 2 ms for one)."""
NOMINAL_BYTES, NOMINAL_FLOPS = 2e9, 25e9
"""Bytes and flops a second of a core, for cutting only: fixed, because the cut must not depend on the machine."""


@dataclass(frozen=True)
class Shape:
    """What the metadata says about a matrix, as the system of rows that will be read."""

    rows: int
    """Rows of A, or its columns when it is wide."""
    columns: int
    """Columns of A, or its rows when it is wide: what R is as large as."""
    k: int
    """Right-hand sides."""
    wide: bool
    stored_itemsize: int
    dtype: np.dtype[Any]
    """What is computed in."""
    chunk: tuple[int, int]
    """Rows and columns of a chunk, in the directions of the system."""
    unit: int
    """Rows that are stored together: a chunk's, or a shard's."""
    partial: bool
    """True when some rows of a chunk can be read without decoding all of it."""
    side_chunk_bytes: int = 0
    """Bytes of the largest chunk of the rhs and the weights that is decoded whole and kept while its rows are used."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of A, decoded."""
        return self.columns * self.stored_itemsize

    @property
    def read_bytes(self) -> int:
        """Bytes of one row of the system: of A, and of b where it is read along."""
        return self.row_bytes + (0 if self.wide else self.k * self.dtype.itemsize)


@dataclass(frozen=True)
class Layout:
    """The cut, and the sizes of the pass that factors."""

    shape: Shape
    p: int
    """Pivot columns of the factor: n, or n + k when the right-hand sides are factored along; or those of a basis."""
    t: int
    """Trailing columns that reflectors are only applied to."""
    block: int
    products: bool
    slab_rows: int
    group: int
    fan_in: int
    block_rows: int
    span_rows: int
    sample: int = 0
    """Rows that a triangle is made of first, by which all others are divided; 0 for none."""
    asked: bool = False
    """True when the job file names the method."""
    refined: bool = False
    """True where AᴴA is summed without a division, since x will be refined."""
    out_rows: int = 0
    """Rows of a chunk of what the job writes row by row; 0 when it writes nothing of that size."""
    given: tuple[Span, ...] = ()
    """Spans that the blocks of a dask array fix."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans, in order."""
        if self.given:
            return self.given
        starts = range(0, self.shape.rows, self.span_rows)
        return tuple(Span(i, start, min(start + self.span_rows, self.shape.rows)) for i, start in enumerate(starts))

    @property
    def alone(self) -> bool:
        """True when states are so large that a process holds one at a time, and all of its threads work on that."""
        return self.sample > 0 and self.p >= panels.FROM_COLUMNS and self.shape.dtype.kind == "f"

    @property
    def span_count(self) -> int:
        """How many spans there are."""
        return len(self.given) or -(-self.shape.rows // self.span_rows)

    @property
    def amplification(self) -> int:
        """How often each chunk is decoded in a pass: 1, unless a row of chunks is too large for one read."""
        chunk = min(self.shape.chunk[0], self.shape.rows)  # a chunk may be larger than the whole array
        return 1 if self.shape.partial else max(1, -(-chunk // self.block_rows))

    @property
    def block_bytes(self) -> int:
        """Bytes of one read of A."""
        return self.block_rows * self.shape.row_bytes


def lay_out(
    shape: Shape,
    *,
    block: int | None,
    products: bool,
    slab_bytes: int | None,
    span_seconds: float,
    writes: bool = False,
    basis: int | None = None,
    sample: int = 0,
    refined: bool = False,
) -> Layout:
    """The cut of a matrix; None lets measurement decide.  When rows are written, spans hold whole chunks of them.

    With a basis of so many columns, rows are multiplied by it and factored afterwards; with a sample, it has so many
    rows for each column.
    """
    p, t = split_columns(shape) if basis is None else (basis, 0)
    if sample and t:  # which sums know nothing of
        p, t = p + t, 0
    width = block or sweep.block_width(p)
    slab = sweep.slab_rows(p, t, shape.dtype.itemsize, slab_bytes or sweep.CACHE_BYTES)
    flops = factor_flops(shape.rows, p, t)
    if basis is not None:
        slab = min(slab, max(FEW_PRODUCT_ROWS, PRODUCT_BYTES // max(1, shape.columns * shape.dtype.itemsize)))
        flops = 2.0 * shape.rows * shape.columns * basis
    group = max(64, 64 * p // slab)
    block_rows = _block_rows(shape, slab)
    out_rows = _out_rows(shape) if writes else 0
    # A chunk that is decoded whole belongs to one span; of plain files any rows will do.
    unit = max(out_rows, block_rows) if shape.partial else max(shape.unit, 1)
    if out_rows:
        unit = -(-unit // out_rows) * out_rows
    # The states of a sample's method are sums, but as large as others: a span has to be worth sending one.
    span_rows = _span_rows(shape, max(unit, -(-p // (2 * unit)) * unit) if sample else unit, flops, span_seconds)
    fan_in = 8 if p <= 512 else 2
    return Layout(
        shape, p, t, width, products, slab, group, fan_in, block_rows, span_rows,
        sample=sample * p, refined=refined, out_rows=out_rows,
    )  # fmt: skip


def split_columns(shape: Shape) -> tuple[int, int]:
    """Pivot and trailing columns: few right-hand sides are factored along, many are only carried."""
    if shape.wide:
        return shape.columns, 0
    few = shape.k <= max(4, shape.columns // 4)
    return (shape.columns + shape.k, 0) if few else (shape.columns, shape.k)


def factor_flops(rows: int, p: int, t: int) -> float:
    """Flops of the sweep over `rows` rows: 2 m p² + 4 m p t."""
    return 2.0 * rows * p * p + 4.0 * rows * p * t


def tree_depth(spans: int, fan_in: int) -> int:
    """Levels of merges above `spans` leaves."""
    return len(tree_levels(spans, fan_in))


def tree_levels(spans: int, fan_in: int) -> list[int]:
    """Merges of each level of the tree, from the leaves up."""
    levels = []
    while spans > 1:
        spans = -(-spans // fan_in)
        levels.append(spans)
    return levels


def _block_rows(shape: Shape, slab_rows: int) -> int:
    row, chunk = max(1, shape.read_bytes), max(1, min(shape.chunk[0], shape.rows))
    wanted = max(slab_rows, SMALL_BLOCK_BYTES // row) if shape.partial else max(1, BLOCK_BYTES // row)
    most = max(1, MOST_BLOCK_BYTES // row)
    if shape.partial and chunk > 2 * wanted:
        return -(-chunk // -(-chunk // wanted))
    if chunk > most:
        return -(-chunk // -(-chunk // most))
    return min(chunk * max(1, wanted // chunk), max(1, shape.rows))


def _out_rows(shape: Shape) -> int:
    """As many rows as a chunk of the input has, so that each makes one chunk of the output; fewer of huge ones."""
    row, chunk = max(1, shape.row_bytes), max(1, min(shape.chunk[0], shape.rows))
    if chunk * row <= MOST_BLOCK_BYTES:
        return chunk
    wanted = max(1, BLOCK_BYTES // row)
    # A divisor of what is decoded together, if there is one near; else spans of several of them come out even.
    return next((d for d in range(wanted, wanted // 2, -1) if shape.unit % d == 0), wanted)


def _span_rows(shape: Shape, unit: int, flops: float, span_seconds: float) -> int:
    seconds = flops / NOMINAL_FLOPS + shape.rows * shape.row_bytes / NOMINAL_BYTES
    wanted = min(max(seconds / span_seconds, min(FEW_SPANS, seconds / SHORT_SPAN), 1), MOST_SPANS)
    units = max(1, -(-shape.rows // unit))
    return unit * max(1, math.ceil(units / wanted))
