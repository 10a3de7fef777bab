"""Results being written: a Zarr group that appears whole or not at all.

On a disk, a hidden folder beside the result is filled, flushed, and renamed at the end.  In an object store, which
cannot rename, the group's own metadata is written last: until then nothing can be opened at its address.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from pipelines.addresses import Address
from pipelines.errors import PlanRefused, RunFailed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import open_store
from pipelines.storage.places import Folder, place_of
from pipelines.units import format_bytes

COMPRESSORS: dict[str, list[Any]] = {
    "none": [],
    "zstd": [ZstdCodec()],
    "blosc": [BloscCodec(cname="lz4", shuffle="shuffle")],
    "gzip": [GzipCodec()],
}
"""What a job file may name; a checksum of the compressed bytes follows each."""


class Staging:
    """A result that is not there yet; `commit` makes it appear.

    Raises (on creation, before anything is read):
        PlanRefused: the place is taken, or cannot be written to.
    """

    def __init__(self, url: str, run: str, *, overwrite: bool, compressor: str = "none") -> None:
        self.url, self.overwrite = Address(url), overwrite
        self._compressors = [*COMPRESSORS[compressor], Crc32cCodec()]
        with _told(url, PlanRefused):
            self._place = place_of(url, run)
            self._place.check(overwrite=overwrite)
            self._place.begin()

    def need_space(self, size: int) -> None:
        """Refuse what will not fit on the disk, before anything is read."""
        if not isinstance(self._place, Folder):
            return
        free = shutil.disk_usage(self._place.folder).free
        if free < size:
            raise PlanRefused(
                f"The result needs {format_bytes(size)} and {format_bytes(free)} are free at "
                f"{self._place.final.parent}. Free some space there, or choose another output."
            )

    def create(
        self, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **described: Any
    ) -> Address:
        """An empty array, for tasks to fill by `write_rows`; returns its address."""
        url = self._place.where / name
        with _told(self.url):
            self._place.ready()
            zarr.create_array(
                open_store(url), shape=shape, dtype=dtype, chunks=tuple(max(1, c) for c in chunks),
                compressors=self._compressors, config={"write_empty_chunks": True}, fill_value=0, **described,
            )  # fmt: skip
        return url

    def put(
        self,
        name: str,
        array: np.ndarray,
        dimensions: tuple[str, ...],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """A whole array."""
        described = {"dimension_names": dimensions, "attributes": dict(attributes or {})}
        url = self.create(name, array.shape, array.dtype, array.shape, **described)
        with _told(self.url):
            zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})[...] = array

    def commit(self, attributes: Mapping[str, Any]) -> None:
        """Make the result appear, with these attributes."""
        with _told(self.url):
            self._place.commit(attributes, overwrite=self.overwrite)

    def discard(self) -> None:
        """Remove what was written so far; after `commit`, nothing."""
        self._place.discard()


def check_output(url: str, *, overwrite: bool) -> None:
    """Raises PlanRefused when a result cannot go there, because something else is there; changes nothing."""
    with _told(url, PlanRefused):
        place_of(url, "").check(overwrite=overwrite)


def write_rows(url: str, start: int, block: np.ndarray) -> None:
    """Rows start.. of a stored array: whole chunks only, since two tasks must never share one.

    Raises:
        RunFailed: the rows do not fall on chunks, or the store is full.
    """
    array, stop = _open_part(url, start, len(block), axis=0)
    with _told(url):
        block = block.astype(array.dtype, copy=False)
        array[start:stop] = block[:, 0] if array.ndim == 1 else block


def write_columns(url: str, start: int, block: np.ndarray) -> None:
    """Columns start.. of a stored array, from the rows of their adjoint; the rest is as in write_rows."""
    array, stop = _open_part(url, start, len(block), axis=1)
    with _told(url):
        array[:, start:stop] = np.ascontiguousarray(block.conj().T.astype(array.dtype, copy=False))


def _open_part(url: str, start: int, count: int, axis: int) -> tuple[zarr.Array[Any], int]:
    with _told(url):
        array = zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})
    stop, length = start + count, array.chunks[axis]
    if start % length or (stop % length and stop != array.shape[axis]):
        what = ("rows", "columns")[axis]
        raise RunFailed(
            f"{what.capitalize()} {start:,} to {stop:,} of {url} are not whole chunks of {length:,} {what}. This is a "
            "defect of Tallgrass: nothing was written. Please report it."
        )
    return array, stop


@contextmanager
def _told(url: str, kind: type[PlanRefused | RunFailed] = RunFailed) -> Iterator[None]:
    """What a file system or an object store says, as a letter."""
    try:
        yield
    except PermissionError as error:
        raise kind(
            f"The output {url} cannot be written: permission denied for {error.filename or url}. "
            "Choose another output, or give this user the right to write there."
        ) from error
    except NotADirectoryError as error:
        raise kind(f"The output {url} cannot be written: {error.filename} is a file. Choose another output.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise kind(
                f"No space is left for the output {url}. Nothing half-written was left behind; free some space there, "
                "or choose another output."
            ) from error
        why = os.strerror(error.errno) if error.errno else first_line(error)
        raise kind(f"The output {url} cannot be written: {why}. Choose another output.") from error
    except StoreError as error:
        raise kind(f"The output {url} cannot be written: {error}") from None
