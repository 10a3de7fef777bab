"""Shards: which chunks they hold, and where.

Zarr fills the missing inner chunks of a shard that is there, whatever it is told; its index tells which they are.
"""

from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pipelines.chunkfiles import CRC_BYTES, damaged_letter
from pipelines.errors import BadData
from pipelines.storage.arrays import ArrayInfo
from pipelines.storage.objects import Wanted

EMPTY = np.uint64(2**64 - 1)
"""Offset and length of an inner chunk that a shard does not hold (Zarr v3 sharding specification)."""
AT_MOST = 64
"""Shards whose indexes are kept, beyond those of a row of shards."""


class Shards:
    """The shards of an array, by their indexes."""

    def __init__(
        self,
        array: zarr.Array[Any],
        info: ArrayInfo,
        key: Callable[[int, int], str],
        missing: Callable[..., BadData],
        version: Callable[[str], Any],
    ) -> None:
        assert info.shards is not None
        self.array, self.info, self.key, self.missing, self.version = array, info, key, missing, version
        self.shape = info.shards[0], info.shards[1] if len(info.shards) > 1 else 1
        self.per = np.array(info.shards) // np.array(info.chunks)
        self.inner = int(self.per[0]), int(self.per[1]) if len(self.per) > 1 else 1
        """How many chunks a shard has, down and across."""
        self._indexes: dict[tuple[int, int], tuple[Any, np.ndarray]] = {}

    def holding(self, i: int, j: int) -> tuple[int, int]:
        """The place of the shard that chunk (i, j) is in."""
        return i // self.inner[0], j // self.inner[1]

    def where(self, i: int, j: int) -> Wanted | None:
        """The bytes of chunk (i, j), where its shard has been checked and holds it."""
        place = self.holding(i, j)
        version, index = self._indexes.get(place, (None, None))
        if index is None or version is None:  # of a shard that is written again nobody would know
            return None
        height, width = self.inner
        offset, size = index[i % height * width + j % width]
        return None if offset == EMPTY else Wanted(self.key(*place), int(offset), int(size), True, version)

    def forget(self) -> None:
        """All that is known of them."""
        self._indexes.clear()

    def check(self, rows: slice, columns: slice) -> None:
        """Look at the indexes of the shards of a region.

        Raises:
            BadData: a chunk is missing, or an index cannot be read.
        """
        across = range(columns.start // self.shape[1], -(-columns.stop // self.shape[1]))
        for i in range(rows.start // self.shape[0], -(-rows.stop // self.shape[0])):
            for j in across:
                if (i, j) not in self._indexes:
                    if len(self._indexes) >= AT_MOST + len(across):
                        self._indexes.clear()
                    self._indexes[i, j] = self._checked(i, j)

    def _checked(self, i: int, j: int) -> tuple[Any, np.ndarray]:
        """A version of a shard, and the index of that or of a later one: (inner chunks, 2)."""
        codec: Any = self._codec()
        location = codec.index_location.value if hasattr(codec.index_location, "value") else codec.index_location
        if location != "end" or [type(c) for c in codec.index_codecs] not in (
            [BytesCodec],
            [BytesCodec, Crc32cCodec],
        ):
            raise BadData(uncheckable_letter(self.info.url))
        key = self.key(i, j)
        version = self.version(key)
        order = ">" if getattr(codec.index_codecs[0].endian, "value", codec.index_codecs[0].endian) == "big" else "<"
        index = self._index(key, int(self.per.prod()), len(codec.index_codecs) == 2, f"{order}u8")
        if index is None:
            raise self.missing(key)
        place = np.array((i, j)[: len(self.per)])
        for number in np.flatnonzero((index == EMPTY).all(axis=1)):
            inner = np.array(np.unravel_index(number, self.per)) + place * self.per
            if np.all(inner * np.array(self.info.chunks) < np.array(self.info.shape)):
                raise self.missing(key, f" (its inner chunk {tuple(int(k) for k in inner)})")
        return version, index

    def _codec(self) -> Any:
        metadata: Any = self.array.metadata
        return metadata.codecs[0]

    def _index(self, key: str, count: int, crc: bool, dtype: str) -> np.ndarray | None:
        size = 16 * count + (CRC_BYTES if crc else 0)
        path = f"{self.array.path}/{key}".lstrip("/")
        raw = sync(self.array.store.get(path, default_buffer_prototype(), SuffixByteRequest(size)))
        if raw is None:
            return None
        if len(raw) < size:
            raise BadData(
                damaged_letter(
                    f"{self.info.url}/{key}", f"it holds {len(raw):,} bytes and its index alone has {size:,}"
                )
            )
        entries, stored = raw.to_bytes()[: 16 * count], int.from_bytes(raw.to_bytes()[16 * count :], "little")
        if crc and google_crc32c.value(entries) != stored:
            raise BadData(
                damaged_letter(f"{self.info.url}/{key}", "its index does not have the CRC-32C that it states")
            )
        return np.frombuffer(entries, dtype).astype(np.uint64).reshape(count, 2)


def uncheckable_letter(url: str) -> str:
    """What to tell of shards whose indexes cannot be looked at, or not those of all."""
    return (
        f"{url} keeps its shard index in a form that cannot be checked for missing inner chunks. "
        "Set `missing_chunks: fill` in the job file to accept that, or write it with the default index, and shards "
        "neither inside shards nor encoded once more."
    )
