"""Results being written: a Zarr group that appears whole or not at all.

On a disk, a hidden folder beside the result is filled, flushed, and renamed at the end.  In an object store, which
cannot rename, the group's own metadata is written last: until then nothing can be opened at its address.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipelines.addresses import Address
from pipelines.errors import PlanRefused, RunFailed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.folders import Folder
from pipelines.storage.places import place_of
from pipelines.storage.scratch import Scratch, bytes_below
from pipelines.storage.writers import ROOT, Writer, result_of
from pipelines.units import counted, format_bytes

COMPRESSORS: dict[str, list[Any]] = {
    "none": [],
    "zstd": [ZstdCodec()],
    "blosc": [BloscCodec(cname="lz4", shuffle="shuffle")],
    "gzip": [GzipCodec()],
}
"""What a job file may name; a checksum of the compressed bytes follows each."""

ADVICE = {
    errno.EROFS: "or make its file system writable again and run the job again",
    errno.EIO: "or look at what the kernel says of its disk (dmesg) and run the job again when that is mended",
}
"""What to do besides, by what the file system says."""
FEW_FILES = 100
"""Where a file system has room for fewer, it is of interest how many."""
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
        with told(self.url, needs=array.nbytes):
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
def told(url: str, kind: type[PlanRefused | RunFailed] = RunFailed, needs: int = 0) -> Iterator[None]:
    """What a file system or an object store says, as a letter; `needs` are the bytes that it was to take, if known."""
    try:
        yield
    except OSError as error:
        raise kind(_letter(url, error, needs)) from error
    except StoreError as error:
        raise kind(f"The output {result_of(url)} cannot be written: {error}") from None


def _letter(url: str, error: OSError, needs: int) -> str:
    output = result_of(url)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space is left for the output {output}: {_left(url, error, needs)}. Free some space there and run the "
            "job again, or choose another output."
        )
    if isinstance(error, PermissionError):
        why, advice = f"permission denied for {error.filename or url}", "or give this user the right to write there"
    elif isinstance(error, NotADirectoryError):
        why, advice = f"{error.filename} is a file", ""
    else:
        why = os.strerror(error.errno) if error.errno else first_line(error)
        advice = ADVICE.get(error.errno or 0, "")
    return f"The output {output} cannot be written: {why}. Choose another output{advice and ', '}{advice}."


def _left(url: str, error: OSError, needs: int) -> str:
    """How much room there is, of what there is none."""
    folder = local_path(url) or Path()
    while not folder.is_dir():
        folder = folder.parent
    found = os.statvfs(folder)
    if error.errno == errno.EDQUOT:
        return f"the quota of this user at {folder} is used up"
    files = f" and {counted(found.f_favail, 'more file')}" if found.f_files and found.f_favail < FEW_FILES else ""
    more = f", and up to {format_bytes(needs)} were to be written next" if needs else ""
    return f"{format_bytes(found.f_bavail * found.f_frsize)}{files} are free at {folder}{more}"
