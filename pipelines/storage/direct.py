"""Chunks read and decoded where they are wanted: of files one after the other, of object stores many at a time.

The bytes of a chunk are the whole of a file or object, or, inside a shard, a part of one.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.chunkfiles import Piece, ask_ahead, pieces
from pipelines.storage.decoding import Decoding
from pipelines.storage.objects import PatientStore, Wanted, rooms_of, scratch

Where = Callable[[int, int], Wanted | None]
"""What holds the bytes of the chunk at a place of the grid; None where that cannot be told."""


@dataclass(frozen=True)
class Direct:
    """Rows of an array whose chunks need no more than one decoding."""

    source: "Files | PatientStore"
    decode: Decoding
    shape: tuple[int, int]
    chunks: tuple[int, int]
    dtype: np.dtype[Any]
    where: Where

    def read(self, rows: slice, columns: slice, out: np.ndarray) -> bool:
        """Fill `out` with A[rows, columns]; False when Zarr has to do that, or to say why it cannot be done."""
        found = list(pieces(self.chunks, rows, columns, out))
        if isinstance(self.source, Files):
            return all(self._read([piece]) and self._ask_for(piece, self.source) for piece in found)
        return self._read(found)

    def _read(self, group: list[Piece]) -> bool:
        wanted = [self._wanted(piece) for piece in group]
        raws = None if None in wanted else self.source.fetch([one for one in wanted if one])
        return raws is not None and all(self._put(piece, raw) for piece, raw in zip(group, raws, strict=True))

    def _wanted(self, piece: Piece) -> Wanted | None:
        wanted = self.where(piece.i, piece.j)
        if wanted and self.decode.plain and self._fits(piece):
            wanted.into = memoryview(piece.target.reshape(-1).view(np.uint8))
        return wanted

    def _put(self, piece: Piece, raw: memoryview) -> bool:
        if self._fits(piece):
            return self.decode(raw, piece.target)
        every = scratch("chunk", self.chunks[0] * self.chunks[1] * self.dtype.itemsize)
        chunk = every.view(self.dtype).reshape(self.chunks)
        if not self.decode(raw, chunk):
            return False
        piece.target[...] = chunk[piece.rows, piece.columns]
        return True

    def _fits(self, piece: Piece) -> bool:
        """Whether the whole chunk is wanted, in one piece of memory."""
        return piece.target.shape == self.chunks and piece.target.flags.c_contiguous

    def _ask_for(self, piece: Piece, files: "Files") -> bool:
        """Let the kernel fetch the file that will be read after this one."""
        if (piece.i + 1) * self.chunks[0] < self.shape[0]:
            following = self.where(piece.i + 1, piece.j)
            if following and not following.part:
                files.ask_for(following.key)
        return True


@dataclass(frozen=True)
class Files:
    """The files below a folder."""

    root: str

    def fetch(self, wanted: list[Wanted]) -> list[memoryview] | None:
        """The bytes of one chunk, there until this thread asks again; None when they cannot be had."""
        (one,) = wanted
        try:
            handle = os.open(os.path.join(self.root, one.key), os.O_RDONLY)
        except OSError:
            return None
        try:
            found = os.fstat(handle)
            if one.version not in (None, version_of(found)):
                return None
            one.size = found.st_size - one.first if one.size is None else one.size
            if not 0 <= one.size <= found.st_size - one.first:
                return None
            (room,) = rooms_of(wanted)
            return [room] if _filled(handle, room, one.first) else None
        except OSError:
            return None
        finally:
            os.close(handle)

    def ask_for(self, key: str) -> None:
        """What lies there will be wanted soon."""
        with suppress(OSError):  # that it is not there is told when its turn comes
            handle = os.open(os.path.join(self.root, key), os.O_RDONLY)
            ask_ahead(handle, 0)
            os.close(handle)


def version_of(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written again."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def _filled(handle: int, view: memoryview, offset: int) -> bool:
    while view.nbytes:
        count = os.preadv(handle, [view], offset)
        if count == 0:
            return False
        view, offset = view[count:], offset + count
    return True
