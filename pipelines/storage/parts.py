"""Parts of an array that is being written: rows go out chunk by chunk, and can be told apart from others later."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipelines.errors import RunFailed
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.objects import PatientStore
from pipelines.storage.reader import reader
from pipelines.storage.staging import told


def write_rows(url: str, start: int, block: np.ndarray) -> None:
    """Rows start.. of a stored array: whole chunks only, since two tasks must never share one.

    Raises:
        RunFailed: the rows do not fall on chunks, or the store is full.
    """
    array, stop = _open_part(url, start, len(block), axis=0)
    with told(url, needs=block.nbytes):
        block = block.astype(array.dtype, copy=False)
        array[start:stop] = block[:, 0] if array.ndim == 1 else block


def write_columns(url: str, start: int, block: np.ndarray) -> None:
    """Columns start.. of a stored array, from the rows of their adjoint; the rest is as in write_rows."""
    array, stop = _open_part(url, start, len(block), axis=1)
    with told(url, needs=block.nbytes):
        array[:, start:stop] = np.ascontiguousarray(block.conj().T.astype(array.dtype, copy=False))


def _open_part(url: str, start: int, count: int, axis: int) -> tuple[zarr.Array[Any], int]:
    with told(url):
        array = zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})
    stop, length = start + count, array.chunks[axis]
    if start % length or (stop % length and stop != array.shape[axis]):
        what = ("rows", "columns")[axis]
        raise RunFailed(
            f"{what.capitalize()} {start:,} to {stop:,} of {url} are not whole chunks of {length:,} {what}. This is a "
            "defect of Tallgrass: nothing was written. Please report it."
        )
    return array, stop


def flush_part(url: str, run: str, start: int, stop: int, *, columns: bool) -> int:
    """See that rows (or columns) start..stop of a stored array are on the disk, and not only in its cache.

    Returns their identity, a number that changes when one of their chunks is written again or removed.
    """
    path = local_path(url)
    if path is not None:
        source = reader(url, True, run)
        places = {path / key for key in source.keys(*_region(source.shape, start, stop, columns=columns))}
        for place in [*places, *{folder for file in places for folder in file.parents if path in folder.parents}]:
            with suppress(FileNotFoundError), told(url):
                _flush(place)
    return part_identity(url, run, start, stop, columns=columns)


def part_identity(url: str, run: str, start: int, stop: int, *, columns: bool) -> int:
    """The identity of rows (or columns) start..stop of a stored array; `run` is who asks."""
    source = reader(url, True, run)
    every = slice(0, source.shape[0]), slice(0, source.shape[1])
    return source.identity(*_region(source.shape, start, stop, columns=columns), within=every)


def whole_identity(url: str, run: str) -> int:
    """The identity of all of a stored array, from one listing where it lies in an object store."""
    source = reader(url, True, run)
    store = open_store(url)
    known = store.stamps() if isinstance(store, PatientStore) else None
    every = slice(0, source.shape[0]), slice(0, source.shape[1])
    return source.identity(*every, within=every, known=known)


def _region(shape: tuple[int, int], start: int, stop: int, *, columns: bool) -> tuple[slice, slice]:
    part = slice(start, stop)
    return (slice(0, shape[0]), part) if columns else (part, slice(0, shape[1]))


def _flush(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
