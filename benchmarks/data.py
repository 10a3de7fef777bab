"""Data sets: A and b of a tall least-squares problem, written chunk by chunk and deleted after use.

Each chunk has a random generator of its own, seeded by its number, so a data set is the same however it is written.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

CHUNK_NUMBERS = 2**21
"""Entries of a chunk: 16 MiB of float64."""
DIRECTIONS, FLOOR = 400, 1e-3
"""Of decaying data: how many directions stand out, and the noise around them."""
NOISE = 0.1
"""Standard deviation of b − A x."""


@dataclass(frozen=True)
class DataSet:
    """A (rows, columns) of standard normal numbers and b = A x + noise, in full-width chunks."""

    folder: Path
    rows: int
    columns: int
    chunk_rows: int
    dtype: str = "float64"
    decaying: bool = False
    """True for a matrix whose singular values fall as 1, 1/2, 1/3, ... down to noise, as those of real data do."""
    compressed: bool = False
    """True for Zarr's default compression (zstd), False for none."""

    @property
    def name(self) -> str:
        """A name that no other data set has."""
        stored = f"{self.dtype}{'-zstd' if self.compressed else ''}"
        return f"{self.rows}x{self.columns}-{self.chunk_rows}-{stored}{'-decaying' if self.decaying else ''}"

    @property
    def A(self) -> str:
        """The path of the matrix."""
        return str(self.folder / self.name / "A")

    @property
    def b(self) -> str:
        """The path of the right-hand side."""
        return str(self.folder / self.name / "b")

    @property
    def result(self) -> str:
        """A path for the result."""
        return str(self.folder / f"{self.name}-result.zarr")

    @property
    def bytes(self) -> int:
        """Bytes of A, decoded."""
        return self.rows * self.columns * np.dtype(self.dtype).itemsize

    @property
    def chunks(self) -> int:
        """Number of chunks of A."""
        return -(-self.rows // self.chunk_rows)

    def stored_bytes(self) -> int:
        """Bytes of A's files."""
        return sum(file.stat().st_size for file in Path(self.A).rglob("*") if file.is_file())

    def head(self, chunks: int) -> "DataSet":
        """A data set of the first few chunks, to warm up with."""
        return replace(self, rows=min(self.rows, chunks * self.chunk_rows))


def tall(folder: Path, size: int, columns: int, chunk_rows: int | None = None) -> DataSet:
    """A data set of about `size` bytes of float64, in chunks of 16 MiB unless told otherwise."""
    return DataSet(folder, size // 8 // columns, columns, chunk_rows or CHUNK_NUMBERS // columns)


@contextmanager
def stored(data: DataSet, *, filled: bool = True) -> Iterator[DataSet]:
    """The data set on disk, for as long as the context; its metadata only when it is not to be filled."""
    try:
        A, b = _create(data)
        if filled:
            _fill(data, A, b)
        yield data
    finally:
        shutil.rmtree(data.folder / data.name, ignore_errors=True)
        shutil.rmtree(data.result, ignore_errors=True)


def _create(data: DataSet) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    compressors: Literal["auto"] | None = "auto" if data.compressed else None
    create = partial(zarr.create_array, dtype=data.dtype, compressors=compressors, overwrite=True)
    A = create(data.A, shape=(data.rows, data.columns), chunks=(data.chunk_rows, data.columns))
    return A, create(data.b, shape=(data.rows,), chunks=(data.chunk_rows,))


def _fill(data: DataSet, A: zarr.Array[Any], b: zarr.Array[Any]) -> None:
    def write(number: int) -> None:
        rows = slice(number * data.chunk_rows, min((number + 1) * data.chunk_rows, data.rows))
        A[rows], b[rows] = chunk_of(data, number, rows.stop - rows.start)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(data.chunks)))
    os.sync()  # or the disk would be busy with it while we measure; it stays in the page cache


@cache
def directions(columns: int) -> np.ndarray:
    """Orthonormal rows, the same for every chunk."""
    drawn = np.random.default_rng(columns).standard_normal((columns, min(columns, DIRECTIONS)))
    return np.ascontiguousarray(np.linalg.qr(drawn)[0].T)


def chunk_of(data: DataSet, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of A and b: chunk `number` of the data set."""
    generator = np.random.default_rng([data.columns, number])
    A = generator.standard_normal((rows, data.columns))
    if data.decaying:
        A *= FLOOR
        V = directions(data.columns)
        A += (generator.standard_normal((rows, len(V))) / np.arange(1, len(V) + 1)) @ V
    x = np.linspace(-1, 1, data.columns)
    return A, A @ x + NOISE * generator.standard_normal(rows)
