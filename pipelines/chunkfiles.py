"""Chunks that are plain files of numbers, read without a detour: one system call into memory that is used again.

Most stores on a local disk that hold float matrices are like this: no compression, perhaps a CRC-32C.  Going
through the codec pipeline costs two more copies and a page fault per 4 KiB, up to four times the CPU time.
Everything else goes through Zarr itself (pipelines.storage).
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from pipelines.errors import BadData

CRC_BYTES = 4
AHEAD_BYTES = 8 * 2**20
"""What the kernel is asked to have ready beyond each read."""
PIECE_BYTES = 2**18
"""What is read at a time for a checksum: it stays in the cache."""


@dataclass(frozen=True)
class Piece:
    """The part of one chunk that a read wants."""

    i: int
    j: int
    """The chunk's place in the grid."""
    rows: slice
    columns: slice
    """Of the chunk."""
    target: np.ndarray
    """Where they go: (rows, columns)."""


def pieces(chunks: tuple[int, int], rows: slice, columns: slice, out: np.ndarray) -> Iterator[Piece]:
    """The parts of chunks of this shape that make up A[rows, columns], and their places in `out`, row by row."""
    for i, inner_rows, down in _along(chunks[0], rows):
        for j, inner_columns, across in _along(chunks[1], columns):
            yield Piece(i, j, inner_rows, inner_columns, out[down, across])


def _along(size: int, wanted: slice) -> Iterator[tuple[int, slice, slice]]:
    """Each chunk's number, what of it is wanted, and where that lies in what is wanted."""
    for number in range(wanted.start // size, -(-wanted.stop // size)):
        first = number * size
        start, stop = max(wanted.start, first), min(wanted.stop, first + size)
        yield number, slice(start - first, stop - first), slice(start - wanted.start, stop - wanted.start)


@dataclass(frozen=True)
class ChunkFiles:
    """A (rows, columns) array whose chunks are C-order, little-endian files, edge chunks padded to full size."""

    root: str
    shape: tuple[int, int]
    chunks: tuple[int, int]
    dtype: np.dtype[Any]
    crc32c: bool
    fill: Any
    """What a missing chunk stands for, or None when a missing chunk is an error."""
    key: Callable[[int, int], str]
    """The chunk's file name, from its place in the grid."""
    missing: Callable[[str], BadData]
    """The letter about a chunk that is not there."""

    def read(self, rows: slice, columns: slice, out: np.ndarray) -> np.ndarray:
        """A[rows, columns] into `out`, which has that shape, in C order."""
        for piece in pieces(self.chunks, rows, columns, out):
            self._read_chunk(self.key(piece.i, piece.j), piece.rows, piece.columns, piece.target)
            if piece.rows.start == 0 and not self.crc32c:
                self._ask_for_file(piece.i + 1, piece.j)
        return out

    def _ask_for_file(self, i: int, j: int) -> None:
        if i * self.chunks[0] < self.shape[0]:
            with suppress(OSError):  # that it is not there is told when its turn comes
                handle = os.open(os.path.join(self.root, self.key(i, j)), os.O_RDONLY)
                ask_ahead(handle, 0)
                os.close(handle)

    def _read_chunk(self, key: str, rows: slice, columns: slice, target: np.ndarray) -> None:
        try:
            handle = os.open(os.path.join(self.root, key), os.O_RDONLY)
        except FileNotFoundError:
            if self.fill is None:
                raise self.missing(key) from None
            target[...] = self.fill
            return
        except OSError as error:
            raise self._unreadable(key, error) from error
        try:
            self._check_size(handle, key)
            whole = columns == slice(0, self.chunks[1]) and target.flags.c_contiguous
            if self.crc32c and whole and rows == slice(0, self.chunks[0]):
                self._verify(handle, key, target)
            elif self.crc32c:
                self._verify(handle, key, every := np.empty(self.chunks, self.dtype))
                target[...] = every[rows, columns]
            elif whole:
                self._fill(handle, key, target, rows.start * self.chunks[1])
                ask_ahead(handle, rows.stop * self.chunks[1] * self.dtype.itemsize)
            else:
                self._fill_by_rows(handle, key, rows, columns, target)
        except OSError as error:
            raise self._unreadable(key, error) from error
        finally:
            os.close(handle)

    def _check_size(self, handle: int, key: str) -> None:
        expected = self.chunks[0] * self.chunks[1] * self.dtype.itemsize + (CRC_BYTES if self.crc32c else 0)
        found = os.fstat(handle).st_size
        if found != expected:
            raise self.damaged(key, f"it holds {found:,} bytes and has to hold {expected:,}")

    def _verify(self, handle: int, key: str, chunk: np.ndarray) -> None:
        """The whole chunk, and its checksum: a part of it cannot be checked."""
        self._fill(handle, key, chunk, 0)
        stored = int.from_bytes(os.pread(handle, CRC_BYTES, chunk.nbytes), "little")
        computed = google_crc32c.value(chunk.reshape(-1).view(np.uint8))
        if stored != computed:
            raise self.damaged(key, f"its CRC-32C is {computed:08x} and was written as {stored:08x}")

    def _fill_by_rows(self, handle: int, key: str, rows: slice, columns: slice, target: np.ndarray) -> None:
        row = np.empty(columns.stop - columns.start, self.dtype)
        for number, i in enumerate(range(rows.start, rows.stop)):
            self._fill(handle, key, row, i * self.chunks[1] + columns.start)
            target[number] = row

    def _fill(self, handle: int, key: str, target: np.ndarray, first: int) -> None:
        """Fill a contiguous target from the file's element `first` on; the GIL is released meanwhile."""
        view, offset = memoryview(target.reshape(-1).view(np.uint8)), first * target.itemsize
        while view.nbytes:
            count = os.preadv(handle, [view], offset)
            if count == 0:
                raise self.damaged(key, f"it ends {len(view):,} bytes too early")
            view, offset = view[count:], offset + count

    def _unreadable(self, key: str, error: OSError) -> BadData:
        return BadData(unreadable_letter(f"The chunk {os.path.join(self.root, key)}", error))

    def damaged(self, key: str, why: str) -> BadData:
        """The letter about a chunk that cannot be what was written."""
        return BadData(damaged_letter(os.path.join(self.root, key), why))


def ask_ahead(handle: int, offset: int) -> None:
    """Let the kernel fetch what will be read next while we compute, at the cost of no thread and no copy."""
    if hasattr(os, "posix_fadvise") and not _at_hand(handle, offset):
        os.posix_fadvise(handle, offset, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def _at_hand(handle: int, offset: int) -> bool:
    """True when the last byte to be asked for could be read without waiting: then asking costs more than it saves."""
    last = min(offset + AHEAD_BYTES, os.fstat(handle).st_size) - 1
    try:
        return last < offset or os.preadv(handle, [bytearray(1)], last, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # it lies on the disk, or the system cannot tell
        return False


def damaged_letter(place: str, why: str) -> str:
    """What to tell about a damaged chunk, wherever it was noticed."""
    return (
        f"The chunk {place} is damaged: {why}. Nothing was computed from it. "
        "Write this chunk again from its source, or restore it from a copy, and run the job again."
    )


def unreadable_letter(what: str, error: OSError) -> str:
    """What to tell about a chunk, or an array, that is there and cannot be had."""
    advice = {
        errno.EACCES: "Give this user the right to read it",
        errno.EPERM: "Give this user the right to read it",
        errno.EIO: "Its disk fails there: look at what the kernel says (dmesg), restore it from a copy",
    }.get(error.errno or 0, "Wait until its file system answers again")
    return f"{what} cannot be read: {os.strerror(error.errno or 0)}. {advice}, and run the job again."


def content_of(file: Any, size: int) -> str:
    """What changes with any of the bytes of a file: its size and CRC-32C.

    The last four bytes stand by themselves: those that a CRC-32C codec writes there would make that of all constant.
    """
    checksum, left = 0, max(0, size - CRC_BYTES)
    while piece := file.read(min(left, PIECE_BYTES)):
        checksum, left = google_crc32c.extend(checksum, piece), left - len(piece)
    return f"{size} {checksum:08x} {file.read().hex()}"
