"""A matrix seen as slabs of rows: wide ones transposed, weighted, up-cast, their rows with NaN found or left out.

A System is the augmented matrix [A b] of a least-squares problem with its weights.  What a pass sees is a Slab:
a few rows of it.  Where the rows come from (a store, an array in memory, a block of a dask array, a seed) ends here.
"""

import operator
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, starmap
from typing import Any, Protocol

import numpy as np

from pipelines import storage
from pipelines.centring import Centring, RowCentring
from pipelines.errors import BadData
from pipelines.read_ahead import ahead, one_by_one
from pipelines.synthetic import Synthetic

COPY_BYTES, FEW_ROWS = 32 * 1024, 8
"""Bytes that are copied at a time from rows to columns: three times as fast as all at once; and rows at the least."""


NAMES = ("matrix", "rhs", "weights")
"""What A, b and the weights of a system are called, in the order in which their identities are told."""


@dataclass(frozen=True)
class Span:
    """A range of rows of the system: the unit of a task, of a retry and of progress."""

    number: int
    start: int
    stop: int


class Source(Protocol):
    """Rows of numbers, (rows, columns), that can be read again and again."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows start..stop as stored; into `out` (C order) where that can be done."""

    def identity(self, start: int, stop: int) -> int:
        """A number that changes when what is stored under these rows changes; those of neighbours add up."""

    def touched(self, start: int, stop: int) -> int:
        """The same of all that these rows are read from, also where neighbours are read from it too."""


@dataclass(frozen=True)
class Stored:
    """A Zarr array, or a window of it: rows [start, stop), and columns as a range or a list."""

    info: storage.ArrayInfo
    rows: tuple[int, int]
    columns: tuple[int, ...] | tuple[int, int]
    picked: bool
    """True when `columns` lists column numbers, False when it is a range."""
    fill_missing: bool
    run: str
    transposed: bool = False
    """True for a wide A: rows of this source are the conjugated columns of the array."""
    narrow: bool = False
    """True for a right-hand side and for weights: their chunks hold many reads' rows, and are kept."""
    content: bool = False
    """True when chunks are told apart by what they hold, False when by their sizes and times."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, int]:
        height = self.rows[1] - self.rows[0]
        width = len(self.columns) if self.picked else self.columns[1] - self.columns[0]
        return (width, height) if self.transposed else (height, width)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        reader = self._reader()
        if self.transposed:
            rows, columns = slice(*self.rows), self._columns(start, stop)
            first = int(columns.min())
            block = reader.read(rows, slice(first, int(columns.max()) + 1))
            return block[:, columns - first].conj().T if self.picked else block.conj().T
        rows = slice(self.rows[0] + start, self.rows[0] + stop)
        if not self.picked:
            every = slice(*self.columns)
            return reader.read_kept(rows, every) if self.narrow else reader.read(rows, every, out)
        columns = np.array(self.columns, dtype=int)
        first = int(columns.min(initial=0))
        return reader.read(rows, slice(first, int(columns.max(initial=-1)) + 1))[:, columns - first]

    def _reader(self) -> storage.Reader:
        """Who reads it here.

        Raises:
            BadData: it was written anew since the job was planned, in another form.
        """
        reader, then = storage.reader(self.info.url, self.fill_missing, self.run), self.info
        now = reader.info
        smaller = len(now.shape) != len(then.shape) or any(map(operator.lt, now.shape, then.shape))
        if now.dtype != then.dtype or smaller:
            raise BadData(
                f"{then.url} was written anew since the job was planned: it held {then.shape} numbers of {then.dtype} "
                f"and holds {now.shape} of {now.dtype} now. Run the job again when nothing else writes there."
            )
        return reader

    def _columns(self, start: int, stop: int) -> np.ndarray:
        if self.picked:
            return np.array(self.columns[start:stop], dtype=int)
        return np.arange(self.columns[0] + start, self.columns[0] + stop)

    def identity(self, start: int, stop: int) -> int:
        reader = self._reader()
        low, high = (min(self.columns, default=0), max(self.columns, default=-1) + 1) if self.picked else self.columns
        whole = slice(*self.rows), slice(low, high)
        rows, columns = whole
        if not self.transposed:
            rows = slice(self.rows[0] + start, self.rows[0] + stop)
        elif not self.picked:
            columns = slice(low + start, low + stop)
        elif start:  # the columns of a task may lie anywhere, so the first task answers for all
            return 0
        return reader.identity(rows, columns, within=whole, content=self.content)

    def touched(self, start: int, stop: int) -> int:
        reader = self._reader()
        rows, columns = self.rows, self.columns
        if self.transposed:
            columns = columns[start:stop] if self.picked else (columns[0] + start, columns[0] + stop)
        else:
            rows = (rows[0] + start, rows[0] + stop)
        if self.picked:
            columns = (min(columns, default=0), max(columns, default=-1) + 1)
        region = slice(*rows), slice(*columns)
        return reader.identity(*region, within=region, content=self.content)


@dataclass(frozen=True)
class InMemory:
    """An array of this process, or the part of one that a task was given."""

    array: np.ndarray
    first: int = 0
    """The row of the source that array[0] is."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        return self.array[start - self.first : stop - self.first]

    def identity(self, start: int, stop: int) -> int:
        return 0

    touched = identity

    def part(self, span: Span) -> np.ndarray:
        """What a task needs of it."""
        return self.read(span.start, span.stop)


@dataclass(frozen=True)
class Together:
    """Sources of as many rows each, as one whose columns are those of all of them."""

    sources: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.sources[0].shape[0], sum(source.shape[1] for source in self.sources)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(source.dtype for source in self.sources))

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        return np.hstack([source.read(start, stop) for source in self.sources])

    def identity(self, start: int, stop: int) -> int:
        return sum(source.identity(start, stop) for source in self.sources) % 2**128

    def touched(self, start: int, stop: int) -> int:
        return sum(source.touched(start, stop) for source in self.sources) % 2**128


@dataclass(frozen=True)
class Slab:
    """A few rows: a (rows, n) as stored, b (rows, k) or None, w (rows,) square roots of weights or None."""

    a: np.ndarray
    b: np.ndarray | None
    w: np.ndarray | None
    start: int
    """The system's row that a[0] is; with rows left out, the later ones follow closer than they are."""

    def fill(self, S: np.ndarray) -> None:
        """Copy [A b], weighted and up-cast, into S (rows, n + k): the only copy that the sweep makes."""
        n = self.a.shape[1]
        self._copy(self.a, S[:, :n])
        if self.b is not None:
            self._copy(self.b, S[:, n:])

    def _copy(self, source: np.ndarray, target: np.ndarray) -> None:
        # Rows become columns here: a few rows at a time, so that both sides stay in the first-level cache.
        rows = max(FEW_ROWS, COPY_BYTES // max(1, source.shape[1] * target.itemsize))
        for low in range(0, source.shape[0], rows):
            part = slice(low, low + rows)
            if self.w is None:
                target[part] = source[part]
            else:
                np.multiply(source[part], self.w[part, None], out=target[part])

    def values(self, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """(A, b) weighted and up-cast; A itself, without a copy, where nothing has to be done."""
        return self._as(self.a, dtype), None if self.b is None else self._as(self.b, dtype)

    def _as(self, part: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        part = part.astype(dtype, copy=False)
        # What a codec or the network leaves at an odd address NumPy multiplies by itself, and rounds otherwise.
        part = part if part.flags.aligned else part.copy()
        return part if self.w is None else part * self.w[:, None]


@dataclass(frozen=True)
class Tally:
    """What was seen on the way, besides the numbers: it merges like a state."""

    rows: int = 0
    omitted: int = 0
    bad: int = 0
    """Entries that are NaN or infinite."""
    first: tuple[int, int, str] | None = None
    """Row, column and array (matrix, rhs) of the first of them."""
    identity: tuple[int, int, int] = (0, 0, 0)
    """Of matrix, rhs and weights: see Source.identity."""
    loaded: int = 0
    """Spans that an earlier run had done."""
    unsaved: str = ""
    """Why a span could not be kept for a later run."""
    wrote: int = 0
    """The identity of the chunks that were written: see Source.identity."""

    def __add__(self, other: "Tally") -> "Tally":
        identity = tuple((a + b) % 2**128 for a, b in zip(self.identity, other.identity, strict=True))
        return Tally(
            self.rows + other.rows, self.omitted + other.omitted, self.bad + other.bad, self.first or other.first,
            (identity[0], identity[1], identity[2]), self.loaded + other.loaded, self.unsaved or other.unsaved,
            (self.wrote + other.wrote) % 2**128,
        )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """The rows of one read, before they are cut into slabs."""

    slab: Slab
    tally: Tally

    def slabs(self, rows: int) -> Iterator[Slab]:
        """Slabs of at most `rows` rows, as equal as can be."""
        height = self.slab.a.shape[0]
        count = max(1, -(-height // rows))
        bounds = [height * i // count for i in range(count + 1)]
        for low, high in pairwise(bounds):
            if low < high:
                yield self._cut(low, high)

    def _cut(self, low: int, high: int) -> Slab:
        whole = self.slab
        b = None if whole.b is None else whole.b[low:high]
        return Slab(whole.a[low:high], b, None if whole.w is None else whole.w[low:high], whole.start + low)


@dataclass(frozen=True)
class System:
    """[A b] with its weights, seen as rows; for a wide problem A is transposed and b stays outside."""

    A: Source
    b: Source | None
    weights: Source | None
    dtype: np.dtype[Any]
    """What is computed in: float64 or complex128."""
    omit_rows: bool
    block_rows: int
    """Rows of one read."""
    columns_by: np.ndarray | None = None
    """Wide problems: the square root of each equation's weight, 0 for one left out; scales columns here."""
    centring: Centring | RowCentring | None = None
    """What is done to the rows of A before anybody sees them."""
    keep_places: bool = False
    """True when rows that are left out become zeros, so that what is written for the others stays in its place."""
    b_decides: bool = True
    """False when only A tells which rows are left out: NaN in b beside a good row of A is a fault then."""
    b_as_it_is: bool = False
    """True when rows of b beside those of A that are left out are not."""
    b_along: int = 0
    """Of how many of the first columns of such a b rows are left out all the same."""

    def blocks(self, span: Span) -> Iterator[Block]:
        """The span's rows, the next block being read while the present one is worked on."""
        starts = range(span.start, span.stop, self.block_rows)
        pieces = [(start, min(start + self.block_rows, span.stop)) for start in starts]
        buffers = _two_buffers(self.A, self.block_rows)
        reads = ahead if self.reads_ahead else one_by_one
        yield from starmap(self._prepare, reads(self._read, pieces, buffers))  # which holds none of them

    @property
    def reads_ahead(self) -> bool:
        """False where a thread of ours gains nothing: of files, the kernel reads ahead, and decoding needs a core."""
        return isinstance(self.A, Stored) and (self.A.transposed or not self.A.info.near)

    def _read(self, start: int, stop: int, out: np.ndarray | None) -> tuple[Slab, Tally]:
        # Taken before the rows: a chunk written in between makes a later pass see another identity, not the same.
        identity = self._identity(start, stop)
        b = None if self.b is None else self.b.read(start, stop)
        w = (
            None
            if self.weights is None
            else square_roots(self.weights.read(start, stop), start, may_be_nan=self.omit_rows)
        )
        slab = Slab(self.A.read(start, stop, out), b, w, start)
        return slab, Tally(stop - start, identity=identity)

    def touched(self, start: int, stop: int) -> list[int]:
        """A number for each of A, b and the weights: see Source.touched."""
        return [source.touched(start, stop) if source else 0 for source in (self.A, self.b, self.weights)]

    def _identity(self, start: int, stop: int) -> tuple[int, int, int]:
        parts = [source.identity(start, stop) if source else 0 for source in (self.A, self.b, self.weights)]
        return parts[0], parts[1], parts[2]

    def _prepare(self, slab: Slab, tally: Tally) -> Block:
        if self.columns_by is not None:
            keep = self.columns_by != 0
            a = slab.a if keep.all() else np.where(keep, slab.a, 0)
            slab = replace(slab, a=a * self.columns_by)
        good = finite_rows(slab if self.b_decides else replace(slab, b=None)) if self.omit_rows else None
        if self.centring is not None:
            slab = replace(slab, a=self.centring(slab.a))
        if good is None:
            return Block(slab, tally)
        kept = Slab(
            slab.a[good],
            None if slab.b is None else slab.b[good],
            None if slab.w is None else slab.w[good],
            slab.start,
        )
        omitted = int(len(good) - good.sum())
        if self.keep_places:
            kept = replace(slab, a=_zero_but(good, slab.a), b=self._kept_in_place(good, slab.b))
        return Block(kept, replace(tally, rows=tally.rows - omitted, omitted=omitted))

    def _kept_in_place(self, good: np.ndarray, b: np.ndarray | None) -> np.ndarray | None:
        if b is None or not self.b_as_it_is:
            return None if b is None else _zero_but(good, b)
        along, rest = b[:, : self.b_along], b[:, self.b_along :]
        return np.hstack([_zero_but(good, along), rest]) if self.b_along else b

    def scan(self, block: Block) -> Tally:
        """How many entries are not finite, and the first: only called once there is one."""
        slab, tally = block.slab, block.tally
        for array, name in ((slab.a, "matrix"), (slab.b, "rhs")):
            if array is None:
                continue
            missing = self.centring is not None and self.centring.missing
            rows, columns = np.nonzero(np.isinf(array) if missing else ~np.isfinite(array))
            if len(rows):
                before = int(self.centring is not None and self.centring.ones)
                here = (slab.start + int(rows[0]), int(columns[0]) - before, name)
                first = min(filter(None, [tally.first, here]), key=lambda place: place[0])
                tally = replace(tally, bad=tally.bad + len(rows), first=first)
        return tally


def _zero_but(good: np.ndarray, part: np.ndarray) -> np.ndarray:
    return np.where(good[:, None], part, part.dtype.type(0))


def finite_rows(slab: Slab) -> np.ndarray | None:
    """Which rows are finite in A, b and the weights, or None when all are: a sum tells that at the speed of memory."""
    parts = [part for part in (slab.a, slab.b) if part is not None and part.dtype.kind in "fc"]
    if slab.w is not None:
        parts.append(slab.w[:, None])
    with np.errstate(over="ignore", invalid="ignore"):
        if all(np.isfinite(part.sum(dtype=np.result_type(part.dtype, np.float64))) for part in parts):
            return None
    good = np.ones(slab.a.shape[0], bool)
    for part in parts:
        good &= np.isfinite(part).all(axis=1)
    return good


def square_roots(w: np.ndarray, start: int, *, may_be_nan: bool) -> np.ndarray:
    """Square roots of observation weights (rows, 1) → (rows,)."""
    w = w[:, 0].astype(np.float64)
    wrong = np.flatnonzero(~((np.isfinite(w) & (w >= 0)) | ((np.isnan(w) | (w == np.inf)) & may_be_nan)))
    if len(wrong):
        raise BadData(
            f"The weight of row {start + int(wrong[0])} is {w[wrong[0]]}; weights have to be finite and not negative. "
            "Give the row the weight 0 to leave it out."
        )
    return np.sqrt(w)


_buffers = threading.local()


def _two_buffers(source: Source, rows: int) -> list[np.ndarray | None]:
    """Memory for two blocks, kept by the thread: fresh memory would cost a page fault per 4 KiB."""
    fills = not (source.transposed or source.picked) if isinstance(source, Stored) else isinstance(source, Synthetic)
    if not fills:
        return [None, None]
    shape, dtype = (rows, source.shape[1]), source.dtype
    if getattr(_buffers, "key", None) != (shape, dtype):
        _buffers.key, _buffers.pair = (shape, dtype), [np.empty(shape, dtype), np.empty(shape, dtype)]
    pair: list[np.ndarray | None] = _buffers.pair
    return pair
