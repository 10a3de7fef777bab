"""Results being written: a Zarr group that appears whole or not at all.

On a disk, a hidden folder beside the result is filled, flushed, and renamed at the end.  In an object store, which
cannot rename, the group's own metadata is written last: until then nothing can be opened at its address.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipelines.addresses import Address
from pipelines.errors import PlanRefused, RunFailed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import open_store
from pipelines.storage.folders import Folder
from pipelines.storage.places import place_of
from pipelines.storage.scratch import Scratch, bytes_below
from pipelines.storage.writers import ROOT, Writer
from pipelines.units import format_bytes

COMPRESSORS: dict[str, list[Any]] = {
    "none": [],
    "zstd": [ZstdCodec()],
    "blosc": [BloscCodec(cname="lz4", shuffle="shuffle")],
    "gzip": [GzipCodec()],
}
"""What a job file may name; a checksum of the compressed bytes follows each."""

NO_LIMIT = 2**62
"""Bytes that an object store takes."""


class Staging:
    """A result that is not there yet; `commit` makes it appear.

    Raises (on creation, before anything is read):
        PlanRefused: the place is taken, or cannot be written to.
    """

    def __init__(self, url: str, writer: Writer, *, overwrite: bool, compressor: str = "none") -> None:
        self.url, self.overwrite = Address(url), overwrite
        self._compressors = [*COMPRESSORS[compressor], Crc32cCodec()]
        self._names: set[str] = set()
        with told(url, PlanRefused):
            self._place = place_of(url, writer)
            self._place.check(overwrite=overwrite)
            self._place.begin()

    @property
    def where(self) -> Address:
        """Where arrays are written meanwhile."""
        return self._place.where

    @property
    def checkpoints(self) -> Scratch | None:
        """Where spans may leave what they made, if a later run will find what this one has written."""
        return self._place.checkpoints

    def need_space(self, size: int) -> int:
        """Refuse what will not fit on the disk, before anything is read; the bytes that will be left over."""
        if not isinstance(self._place, Folder):
            return NO_LIMIT
        written = bytes_below(self._place.folder)
        free = shutil.disk_usage(self._place.folder).free
        if free + written < size:
            raise PlanRefused(
                f"The result needs {format_bytes(size)} and {format_bytes(free)} are free at "
                f"{self._place.final.parent}. Free some space there, or choose another output."
            )
        return free + written - size

    def create(
        self, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **described: Any
    ) -> Address:
        """An array for tasks to fill by `write_rows`; returns its address.

        It is empty, or holds what an interrupted run has written to the very same array.
        """
        url = self._place.where / name
        self._names.add(name)
        metadata: dict[str, Buffer] = {}
        zarr.create_array(
            MemoryStore(metadata), shape=shape, dtype=dtype, chunks=tuple(max(1, c) for c in chunks),
            compressors=self._compressors, config={"write_empty_chunks": True}, fill_value=0, **described,
        )  # fmt: skip
        with told(self.url):
            self._place.array(name, metadata[ROOT].to_bytes())
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
        with told(self.url):
            zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})[...] = array

    def commit(self, attributes: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> None:
        """Make the result appear, with these attributes; `check` is called last, and forbids it by raising an error."""
        with told(self.url):
            self._place.commit(attributes, self._names, check, overwrite=self.overwrite)

    def discard(self, *, keep: bool = False) -> None:
        """Remove what was written so far, unless a later run is to find it; after `commit`, nothing."""
        self._place.discard(keep=keep)


def check_output(url: str, *, overwrite: bool) -> None:
    """Raises PlanRefused when a result cannot go there, because something else is there; changes nothing."""
    with told(url, PlanRefused):
        place_of(url, Writer("")).check(overwrite=overwrite)


@contextmanager
def told(url: str, kind: type[PlanRefused | RunFailed] = RunFailed) -> Iterator[None]:
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
                f"No space is left for the output {url}. Free some space there and run the job again, or choose "
                "another output."
            ) from error
        why = os.strerror(error.errno) if error.errno else first_line(error)
        raise kind(f"The output {url} cannot be written: {why}. Choose another output.") from error
    except StoreError as error:
        raise kind(f"The output {url} cannot be written: {error}") from None
