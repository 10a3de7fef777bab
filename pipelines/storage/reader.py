"""Rows of a stored array: read, checked for missing and damaged chunks, and told apart when they change.

Zarr reads a chunk that is not in the store as fill values, and says nothing.  Here that is an error unless the
job accepts it, also for the inner chunks of a shard, which Zarr's own setting does not cover.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from zarr.abc.store import SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ChunkNotFoundError

from pipelines.addresses import Address
from pipelines.chunkfiles import CRC_BYTES, ChunkFiles, content_of, damaged_letter, unreadable_letter
from pipelines.errors import BadData
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import codecs_of, describe, local_path, open_array
from pipelines.storage.objects import stamp_of

EMPTY_INNER_CHUNK = np.uint64(2**64 - 1)
"""Offset and length of an inner chunk that a shard does not hold (Zarr v3 sharding specification)."""
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
        self._sealed: set[tuple[int, int]] = set()
        self._files = self._chunk_files() if self.info.plain else None
        if fill_missing:
            self.array = self.array.with_config({"read_missing_chunks": True})

    def _chunk_files(self) -> ChunkFiles:
        crc = any(isinstance(codec, Crc32cCodec) for codec in codecs_of(self.array))
        fill = (self.array.fill_value if self.array.fill_value is not None else 0) if self.fill_missing else None
        return ChunkFiles(
            str(local_path(self.url)), self.shape, self.chunks, self.info.dtype, crc, fill, self.key, self._missing,
        )  # fmt: skip

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
            if self.info.shards and not self.fill_missing:
                self._check_shards(rows, columns)
            block = self.array[rows, columns] if self.array.ndim == 2 else self.array[rows]
        except BadData:
            raise
        except StoreError as error:
            raise BadData(f"The chunk {self.url}/{error.key} cannot be read: {error}") from None
        except Exception as error:  # codecs raise ValueError, RuntimeError, struct.error, zlib.error, ...
            raise self._explain(error, rows, columns) from error
        return np.asarray(block, self.info.dtype).reshape(shape)

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
                except ChunkNotFoundError:
                    return self._missing(self.key(*self._stored(i, j)))
                except Exception as cause:  # noqa: BLE001  # as above: any kind
                    inner = f" (inner chunk {place})" if self.info.shards else ""
                    chunk = f"{self.url}/{self.key(*self._stored(i, j))}{inner}"
                    if (
                        isinstance(cause, OSError) and cause.errno
                    ):  # said by a file system; what gzip says has no number
                        return BadData(unreadable_letter(f"The chunk {chunk}", cause))
                    return BadData(damaged_letter(chunk, first_line(cause)))
        return BadData(f"{self.url} cannot be read: {first_line(error)}. Reading it again chunk by chunk went well, "
                       "so the trouble may have passed: run the job again.")  # fmt: skip

    def _stored(self, i: int, j: int) -> tuple[int, int]:
        """The place of the stored object that holds chunk (i, j): the shard's, when there are shards."""
        if not self.info.shards:
            return i, j
        per = [s // c for s, c in zip(self.info.shards, self.info.chunks, strict=True)]
        return i // per[0], j // (per[1] if len(per) > 1 else 1)

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

    def _check_shards(self, rows: slice, columns: slice) -> None:
        """Zarr fills the missing inner chunks of a shard that is there; its index tells which they are."""
        assert self.info.shards is not None
        height, width = self.info.shards[0], self.info.shards[1] if len(self.info.shards) > 1 else 1
        for i in range(rows.start // height, -(-rows.stop // height)):
            for j in range(columns.start // width, -(-columns.stop // width)):
                if (i, j) not in self._sealed:
                    self._check_shard(i, j)
                    self._sealed.add((i, j))

    def _check_shard(self, i: int, j: int) -> None:
        codec: Any = self._sharding()
        simple = codec.index_location.value if hasattr(codec.index_location, "value") else codec.index_location
        if simple != "end" or [type(c) for c in codec.index_codecs] not in (
            [BytesCodec],
            [BytesCodec, Crc32cCodec],
        ):
            raise BadData(
                f"{self.url} keeps its shard index in a form that cannot be checked for missing inner chunks. "
                "Set `missing_chunks: fill` in the job file to accept that, or write it with the default index."
            )
        per = np.array(self.info.shards) // np.array(self.info.chunks)
        key = self.key(i, j)
        index = self._shard_index(key, int(per.prod()), len(codec.index_codecs) == 2)
        if index is None:
            raise self._missing(key)
        place = np.array((i, j)[: len(per)])
        for number in np.flatnonzero((index == EMPTY_INNER_CHUNK).all(axis=1)):
            inner = np.array(np.unravel_index(number, per)) + place * per
            if np.all(inner * np.array(self.info.chunks) < np.array(self.info.shape)):
                raise self._missing(key, f" (its inner chunk {tuple(int(k) for k in inner)})")

    def _sharding(self) -> Any:
        metadata: Any = self.array.metadata
        return metadata.codecs[0]

    def _shard_index(self, key: str, count: int, crc: bool) -> np.ndarray | None:
        size = 16 * count + (CRC_BYTES if crc else 0)
        path = f"{self.array.path}/{key}".lstrip("/")
        raw = sync(self.array.store.get(path, default_buffer_prototype(), SuffixByteRequest(size)))
        if raw is None:
            return None
        if len(raw) < size:
            raise BadData(
                damaged_letter(f"{self.url}/{key}", f"it holds {len(raw):,} bytes and its index alone has {size:,}")
            )
        return np.frombuffer(raw.to_bytes()[: 16 * count], "<u8").reshape(count, 2)

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
        stamps = (
            self._stamp(key, content=content) if known is None else f"{key} {known.get(key, 'missing')}"
            for key in self.keys(rows, columns, within)
        )
        return sum(map(_digest, stamps)) % 2**128

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
                return f"{key} {self._stamp_of_object(key, content=content)}"
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

    def _stamp_of_object(self, key: str, *, content: bool) -> str:
        store: Any = self.array.store
        if not content:
            return stamp_of(store.head(key))
        raw = store.read(key)
        return "missing" if raw is None else content_of(io.BytesIO(raw), len(raw))


def _beginning(part: slice, whole: slice, size: int) -> range:
    """The chunks of a size that begin in a part of a window, the first part taking what hangs over its start."""
    first = part.start // size if part.start == whole.start else -(-part.start // size)
    return range(first, -(-part.stop // size))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


@lru_cache(maxsize=16)
def reader(url: str, fill_missing: bool, run: str) -> Reader:  # noqa: ARG001  # `run` is part of the key
    """This process's reader of an array; `run` keeps a later job from seeing an earlier one's metadata."""
    return Reader(url, fill_missing=fill_missing)
