"""Rows of a stored array: read, checked for missing and damaged chunks, and told apart when they change.

Zarr reads a chunk that is not in the store as fill values, and says nothing.  Here that is an error unless the
job accepts it, also for the inner chunks of a shard, which Zarr's own setting does not cover.
"""

import errno
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

import numpy as np
from zarr.codecs import Crc32cCodec
from zarr.errors import ChunkNotFoundError

from pipelines.addresses import Address
from pipelines.chunkfiles import ChunkFiles, content_of, damaged_letter, unreadable_letter
from pipelines.errors import BadData
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import describe, local_path, open_array
from pipelines.storage.decoding import codecs_of, decoding_of, shards_within
from pipelines.storage.direct import Direct, Files, version_of
from pipelines.storage.objects import HeadRefused, Wanted, stamp_of
from pipelines.storage.shards import Shards, uncheckable_letter

HEADS_AT_MOST = 4096
"""Objects whose sizes and versions a reader remembers."""
COUNT_AT_MOST = 1_000_000
"""Chunks of an array up to which a letter counts how many are missing; the web has no lists."""


class Reader:
    """One stored array, opened in this process: rows in, numbers out, damage noticed and named."""

    def __init__(self, url: str, *, fill_missing: bool) -> None:
        self.url, self.fill_missing = Address(url), fill_missing
        self.array = open_array(url)
        self.info = describe(url)
        self.shape = (self.info.shape[0], self.info.shape[1] if len(self.info.shape) > 1 else 1)
        self.chunks = (self.info.chunks[0], self.info.chunks[1] if len(self.info.chunks) > 1 else 1)
        self._kept: tuple[tuple[slice, slice], np.ndarray] | None = None
        self._heads: dict[str, Any] = {}
        self._files = self._chunk_files() if self.info.plain else None
        self._shards = (
            Shards(self.array, self.info, self.key, self._missing, self._version) if self.info.shards else None
        )
        self._hidden_shards = shards_within(codecs_of(self.array))
        self._direct = None if self.info.plain else self._direct_reads()
        if fill_missing:
            self.array = self.array.with_config({"read_missing_chunks": True})

    def _chunk_files(self) -> ChunkFiles:
        crc = any(isinstance(codec, Crc32cCodec) for codec in codecs_of(self.array))
        fill = (self.array.fill_value if self.array.fill_value is not None else 0) if self.fill_missing else None
        return ChunkFiles(
            str(local_path(self.url)), self.shape, self.chunks, self.info.dtype, crc, fill, self.key, self._missing,
        )  # fmt: skip

    def _direct_reads(self) -> Direct | None:
        decoding, path = decoding_of(self.array), local_path(self.url)
        if decoding is None:
            return None
        source: Any = self.array.store if path is None else Files(str(path))
        return Direct(source, decoding, self.shape, self.chunks, self.info.dtype, self._where)

    def _where(self, i: int, j: int) -> Wanted | None:
        """Where the bytes of chunk (i, j) are, as far as is known."""
        if self._shards is not None:
            return self._shards.where(i, j)
        key = self.key(i, j)
        head = self._heads.get(key)
        return Wanted(key) if head is None else Wanted(key, size=head["size"], version=head["e_tag"])

    def _version(self, key: str) -> Any:
        """What the stored bytes are told apart by while they are read in parts; None where that is not known."""
        path, store = local_path(self.url), self.array.store
        with suppress(OSError, HeadRefused):  # reading it will say
            if path is not None:
                return version_of(os.stat(path / key))
            return (self._heads.get(key) or cast(Any, store).head(key))["e_tag"]
        return None

    def key(self, i: int, j: int) -> str:
        """The store's name of the chunk (or shard) at place (i, j) of the grid."""
        place = (i, j) if self.array.ndim == 2 else (i,)
        return str(self.array.metadata.encode_chunk_key(place))

    def read(self, rows: slice, columns: slice, out: np.ndarray | None = None) -> np.ndarray:
        """A[rows, columns] as stored, (rows, columns), in C order; into `out` where that can be done.

        Raises:
            BadData: a chunk is missing or damaged; the letter names it.
        """
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if 0 in shape:
            return np.empty(shape, self.info.dtype)
        if self._files is not None:
            return self._files.read(rows, columns, np.empty(shape, self.info.dtype) if out is None else out)
        try:
            if not self.fill_missing:
                self._check_shards(rows, columns)
            filled = None if self._direct is None else np.empty(shape, self.info.dtype) if out is None else out
            if self._direct is not None and filled is not None:
                if self._direct.read(rows, columns, filled):
                    return filled
                if self._shards:  # they may be others by now
                    self._shards.forget()
            block = self.array[rows, columns] if self.array.ndim == 2 else self.array[rows]
        except BadData:
            raise
        except Exception as error:  # codecs raise ValueError, RuntimeError, struct.error, zlib.error, ...
            cause = _alone(error)
            if isinstance(cause, StoreError):
                raise BadData(f"The chunk {self.url}/{cause.key} cannot be read: {cause}") from None
            raise self._explain(cause, rows, columns) from error
        return np.asarray(block, self.info.dtype).reshape(shape)

    def _check_shards(self, rows: slice, columns: slice) -> None:
        """Raises BadData where a shard of this region lacks a chunk, or might do so unseen."""
        if self._hidden_shards:
            raise BadData(uncheckable_letter(self.url))
        if self._shards is not None:
            self._shards.check(rows, columns)

    def read_kept(self, rows: slice, columns: slice) -> np.ndarray:
        """As read, but the chunks that these rows are in are kept: those of narrow arrays last for many reads."""
        height = self.chunks[0]
        if self.info.partial or (rows.start % height == 0 and rows.stop % height == 0):
            return self.read(rows, columns)
        whole = slice(rows.start // height * height, min(-(-rows.stop // height) * height, self.shape[0]))
        kept = self._kept
        if kept is None or kept[0] != (whole, columns):
            kept = self._kept = ((whole, columns), self.read(whole, columns))
        return kept[1][rows.start - whole.start : rows.stop - whole.start]

    def _explain(self, error: Exception, rows: slice, columns: slice) -> Exception:
        """The letter about the first chunk of this region that cannot be read."""
        for i in range(rows.start // self.chunks[0], -(-rows.stop // self.chunks[0])):
            for j in range(columns.start // self.chunks[1], -(-columns.stop // self.chunks[1])):
                place = (i, j) if self.array.ndim == 2 else (i,)
                part = tuple(slice(p * c, p * c + c) for p, c in zip(place, self.info.chunks, strict=True))
                try:
                    self.array[part]
                except Exception as found:  # noqa: BLE001  # as above: any kind
                    cause = _alone(found)
                    if isinstance(cause, ChunkNotFoundError):
                        return self._missing(self.key(*self._stored(i, j)))
                    inner = f" (inner chunk {place})" if self.info.shards else ""
                    chunk = f"{self.url}/{self.key(*self._stored(i, j))}{inner}"
                    # Said by a file system: what gzip says has no number, and a place that no file has is damage.
                    if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
                        return BadData(unreadable_letter(f"The chunk {chunk}", cause))
                    return BadData(damaged_letter(chunk, first_line(cause)))
        return BadData(f"{self.url} cannot be read: {first_line(error)}. Reading it again chunk by chunk went well, "
                       "so the trouble may have passed: run the job again.")  # fmt: skip

    def _stored(self, i: int, j: int) -> tuple[int, int]:
        """The place of the stored object that holds chunk (i, j): the shard's, when there are shards."""
        return (i, j) if self._shards is None else self._shards.holding(i, j)

    def _missing(self, key: str, inner: str = "") -> BadData:
        fill = self.array.fill_value
        return BadData(
            f"The chunk {key}{inner} of {self.url} is not in the store{self._how_many(inner)}. Zarr would read it as "
            f"{fill} without a word. Write the missing chunks, or set `missing_chunks: fill` in the job file if "
            f"they are meant to be {fill} (Zarr leaves out chunks that hold nothing else)."
        )

    def _how_many(self, inner: str) -> str:
        stored = self.array.nchunks
        if inner or self.info.shards or stored > COUNT_AT_MOST or self.url.startswith("http"):
            return ""
        try:
            return f" ({stored - self.array.nchunks_initialized:,} of its {stored:,} chunks are missing)"
        except Exception:  # noqa: BLE001  # a store that may not be listed
            return ""

    def identity(
        self,
        rows: slice,
        columns: slice,
        within: tuple[slice, slice],
        known: Mapping[str, str] | None = None,
        *,
        content: bool = False,
    ) -> int:
        """A number that changes when a stored chunk that begins in this region is written again.

        A chunk that begins before the window `within` that is read at all counts for the region it enters first.

        The sum, modulo 2¹²⁸, of a hash of each chunk's name, size and modification time (or ETag), or of its name
        and `content`: sums of neighbouring regions add up, whatever the order.
        """
        keys = list(self.keys(rows, columns, within))
        if known is not None:
            stamps = [f"{key} {known.get(key, 'missing')}" for key in keys]
        elif local_path(self.url) is None and not content:
            stamps = [f"{key} {'missing' if head is None else stamp_of(head)}" for key, head in self._asked(keys)]
        else:
            stamps = [self._stamp(key, content=content) for key in keys]
        return sum(map(_digest, stamps)) % 2**128

    def _asked(self, keys: list[str]) -> Iterable[tuple[str, Any]]:
        """What the store says of each object, for what is read next, too."""
        store: Any = self.array.store
        try:
            heads = store.heads(keys)
        except StoreError as error:
            raise BadData(f"The chunk {self.url}/{error.key} cannot be read: {error}") from None
        if len(self._heads) > HEADS_AT_MOST:
            self._heads.clear()
        self._heads.update((key, head) for key, head in heads.items() if head is not None)
        return heads.items()

    def keys(self, rows: slice, columns: slice, within: tuple[slice, slice] | None = None) -> Iterator[str]:
        """The store's names of the chunks (or shards) that begin in a region, of all of the array or of a window."""
        unit = self.info.shards or self.info.chunks
        height, width = unit[0], unit[1] if len(unit) > 1 else 1
        whole = within or (slice(0, self.shape[0]), slice(0, self.shape[1]))
        for i in _beginning(rows, whole[0], height):
            for j in _beginning(columns, whole[1], width):
                yield self.key(i, j)

    def _stamp(self, key: str, *, content: bool) -> str:
        path = local_path(self.url)
        try:
            if path is None:
                return f"{key} {self._content_of_object(key)}"
            if content:
                with open(path / key, "rb", buffering=0) as file:
                    return f"{key} {content_of(file, os.fstat(file.fileno()).st_size)}"
            found = os.stat(path / key)
            return f"{key} {found.st_size} {found.st_mtime_ns}"
        except StoreError as error:
            raise BadData(f"The chunk {self.url}/{key} cannot be read: {error}") from None
        except FileNotFoundError:
            return f"{key} missing"
        except OSError as error:
            raise BadData(unreadable_letter(f"The chunk {self.url}/{key}", error)) from error

    def _content_of_object(self, key: str) -> str:
        store: Any = self.array.store
        raw = store.read(key)
        return "missing" if raw is None else content_of(io.BytesIO(raw), len(raw))


def _beginning(part: slice, whole: slice, size: int) -> range:
    """The chunks of a size that begin in a part of a window, the first part taking what hangs over its start."""
    first = part.start // size if part.start == whole.start else -(-part.start // size)
    return range(first, -(-part.stop // size))


def _alone(error: Exception) -> Exception:
    """The error; of several that Zarr raises together, which say nothing as a group, the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


@lru_cache(maxsize=16)
def reader(url: str, fill_missing: bool, run: str) -> Reader:  # noqa: ARG001  # `run` is part of the key
    """This process's reader of an array; `run` keeps a later job from seeing an earlier one's metadata."""
    return Reader(url, fill_missing=fill_missing)
