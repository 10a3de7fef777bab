"""Blosc chunks that are torn: the library reads on behind their end, and takes for numbers what it finds there.

Codecs that look at the length first take the place of the usual ones in this process.
"""

from typing import Any, override

import numcodecs
import zarr
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

HEADER_BYTES = 16
"""Of each Blosc buffer; the last four of them are its length."""


class WholeBloscV2(numcodecs.Blosc):
    """Blosc of Zarr v2."""

    @override
    def decode(self, buf: Any, out: Any = None) -> Any:
        _check(buf)
        return super().decode(buf, out)


class WholeBlosc(BloscCodec):
    """Blosc of Zarr v3."""

    @override
    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check(chunk_bytes.as_numpy_array())
        return super()._decode_sync(chunk_bytes, chunk_spec)


def register_blosc() -> None:
    """Arrays are read with these from now on; what is written stays as it was."""
    numcodecs.register_codec(WholeBloscV2)
    register_codec("blosc", WholeBlosc)
    zarr.config.set({"codecs.blosc": f"{WholeBlosc.__module__}.{WholeBlosc.__qualname__}"})


def _check(buf: Any) -> None:
    """Raises ValueError unless a buffer is as long as it says."""
    raw = memoryview(buf).cast("B")
    expected = int.from_bytes(raw[HEADER_BYTES - 4 : HEADER_BYTES], "little")
    if len(raw) < HEADER_BYTES or len(raw) != expected:
        raise ValueError(f"it holds {len(raw):,} bytes and has to hold {max(expected, HEADER_BYTES):,}")
