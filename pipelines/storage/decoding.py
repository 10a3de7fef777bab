"""Chunks decoded straight into memory that is used again, where their codecs are simple.

Zarr's pipeline decodes each chunk into fresh memory, a page fault for every 4 KiB of it.  Numbers in C order that are
compressed once or not at all, perhaps with a CRC-32C, need none.  A chunk of which anything looks odd is left to Zarr,
which says what is wrong with it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numcodecs import blosc, lz4, zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from pipelines.chunkfiles import CRC_BYTES

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Decoding:
    """What turns the stored bytes of a chunk into its numbers."""

    compressor: str | None
    """zstd, blosc or lz4; None where the numbers are stored as they are."""
    crc32c: bool
    """True when the last four bytes are a checksum of those before them."""

    @property
    def plain(self) -> bool:
        """True when the stored bytes are those of the numbers, and nothing else."""
        return self.compressor is None and not self.crc32c

    def __call__(self, raw: memoryview, target: np.ndarray) -> bool:
        """Decode into `target`, contiguous and in C order; False when the chunk is not as it should be."""
        if self.crc32c:
            raw, stored = raw[: max(0, len(raw) - CRC_BYTES)], raw[-CRC_BYTES:]
            if google_crc32c.value(np.frombuffer(raw, np.uint8)) != int.from_bytes(stored, "little"):
                return False
        flat = target.reshape(-1).view(np.uint8)
        if self.compressor is None:
            if len(raw) != flat.nbytes:
                return False
            stored_at = np.frombuffer(raw, np.uint8)
            if stored_at.ctypes.data != flat.ctypes.data:
                flat[:] = stored_at
            return True
        size, decompress = COMPRESSORS[self.compressor]
        if size(raw) != flat.nbytes:  # what is shorter would leave old numbers behind
            return False
        try:
            decompress(raw, flat)
        except (RuntimeError, ValueError):
            return False
        return True


def decoding_of(array: zarr.Array[Any]) -> Decoding | None:
    """How to decode the chunks of an array, of a shard's the inner ones; None where only Zarr can."""
    dtype = np.dtype(array.dtype)
    if not (np.little_endian and dtype.isnative and array.ndim in (1, 2) and all(array.chunks)):
        return None
    metadata, codecs = array.metadata, list(codecs_of(array))
    if metadata.zarr_format == 2:
        known = metadata.order == "C" and not metadata.filters
    else:
        first, *codecs = codecs
        endian = str(getattr(getattr(first, "endian", None), "value", getattr(first, "endian", None)))
        regular = getattr(metadata.chunk_grid, "chunk_shape", None) is not None
        known = regular and isinstance(first, BytesCodec) and (dtype.itemsize == 1 or endian == "little")
    summed = bool(codecs) and isinstance(codecs[-1], Crc32cCodec)
    names = [_name(codec) for codec in codecs[: len(codecs) - summed]]
    if not known or len(names) > 1 or None in names:
        return None
    return Decoding(names[0] if names else None, summed)


def codecs_of(array: zarr.Array[Any]) -> tuple[Any, ...]:
    """The codecs that chunks pass through; where shards are all that is stored, those of their inner chunks."""
    if array.metadata.zarr_format == 2:
        return tuple(filter(None, [*(array.metadata.filters or ()), array.metadata.compressor]))
    codecs: tuple[Any, ...] = tuple(array.metadata.codecs)
    return tuple(codecs[0].codecs) if array.shards else codecs


def shards_within(codecs: Iterable[Any]) -> bool:
    """Whether there are shards among these codecs: inside other shards, or encoded once more."""
    return any(isinstance(codec, ShardingCodec) for codec in codecs)


def every_codec(codecs: Iterable[Any]) -> Iterator[Any]:
    """These codecs, and those inside shards among them."""
    for codec in codecs:
        yield codec
        if isinstance(codec, ShardingCodec):
            yield from every_codec(codec.codecs)


def _name(codec: Any) -> str | None:
    kinds = {
        "zstd": (ZstdCodec, numcodecs.Zstd),
        "blosc": (BloscCodec, numcodecs.Blosc),
        "lz4": (numcodecs.LZ4,),
    }
    return next((name for name, classes in kinds.items() if isinstance(codec, classes)), None)


def _zstd_size(raw: memoryview) -> int | None:
    """The content size that the frame's header states, if it does (RFC 8878, section 3.1.1.1)."""
    if len(raw) < 18 or raw[:4] != ZSTD_MAGIC:
        return None
    descriptor = raw[4]
    single, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single) + dictionary
    return int.from_bytes(raw[start : start + width], "little") + 256 * (width == 2) if width else None


def _blosc_size(raw: memoryview) -> int | None:
    """The size in the header, where that also knows how long the buffer is: the library reads on behind a torn one."""
    return _number(raw, 4) if len(raw) >= 16 and _number(raw, 12) == len(raw) else None


def _lz4_size(raw: memoryview) -> int | None:
    return _number(raw, 0) if len(raw) > 4 else None


def _number(raw: memoryview, start: int) -> int:
    return int.from_bytes(raw[start : start + 4], "little")


Size = Callable[[memoryview], int | None]
Decompress = Callable[[memoryview, np.ndarray], Any]

COMPRESSORS: dict[str, tuple[Size, Decompress]] = {
    "zstd": (_zstd_size, zstd.decompress),
    "blosc": (_blosc_size, blosc.decompress),
    "lz4": (_lz4_size, lz4.decompress),
}
"""By name: the bytes that a buffer says to hold, and what brings them out; both libraries release the GIL."""
