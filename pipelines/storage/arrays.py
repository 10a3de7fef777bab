"""Stored arrays as their metadata describes them: opened, and looked at from outside."""

import errno
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

from pipelines.addresses import Address
from pipelines.chunkfiles import unreadable_letter
from pipelines.errors import BadData, TallgrassError
from pipelines.roots import check_allowed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.blosc import register_blosc
from pipelines.storage.connect import open_objects
from pipelines.storage.decoding import codecs_of, decoding_of, every_codec
from pipelines.storage.objects import PatientStore

# Zarr asks for several names at once and raises the first error. asyncio logs those of the others, now and then, and
# Python prints them with their tracebacks where nobody has said what to do with logs.
logging.getLogger("asyncio").addHandler(logging.NullHandler())

register_blosc()

SUMMED = ("adler32", "bz2", "crc32", "crc32c", "fletcher32", "gzip", "zlib")
"""Codecs that always carry a checksum of what they encode."""


@dataclass(frozen=True)
class ArrayInfo:
    """What is known of a stored array from its metadata alone."""

    url: Address
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    """The unit of decoding: inner chunks for a sharded array."""
    shards: tuple[int, ...] | None
    zarr_format: int
    checksums: bool
    """True when damage to a chunk's bytes cannot pass unnoticed: CRC-32C, gzip, or zstd with its checksum."""
    plain: bool
    """True when chunks are uncompressed files on a local disk, perhaps with a CRC-32C."""
    near: bool
    """True when chunks are files on a local disk that are decoded by the thread that wants them."""
    names: tuple[str, ...]
    """The array's `columns` attribute, when there is one."""
    metadata: str = ""
    """A digest of all that decides which numbers its chunks stand for: codecs, fill value, order, ..."""

    @property
    def partial(self) -> bool:
        """True when any rows of a chunk can be read alone; a checksum can only be checked on the whole chunk."""
        return self.plain and not self.checksums


def local_path(url: str) -> Path | None:
    """The folder that a path or file:// URL names, or None for an object store."""
    if "://" not in url:
        return Path(url)
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def open_store(url: str) -> LocalStore | PatientStore:
    """The store at a path or URL (s3://, gs://, az://, https://), with its options or the environment's.

    Raises:
        PlanRefused: a server's jobs may not go there, or not with these options.
        BadData: it is of no known kind, or what its options name is not there.
    """
    check_allowed(url)
    path = local_path(url)
    return open_objects(Address(url)) if path is None else LocalStore(path)


def open_array(url: str) -> zarr.Array[Any]:
    """The Zarr array (v2 or v3) at `url`, opened for reading.

    Raises:
        BadData: there is none, it is a group, or it cannot be read.
    """
    try:
        array = zarr.open_array(open_store(url), mode="r", config={"read_missing_chunks": False})
    except TallgrassError:
        raise
    except PermissionError as error:
        raise BadData(
            f"{url} cannot be read: permission denied for {error.filename}. Give this user the right to read it."
        ) from error
    except FileNotFoundError as error:
        raise BadData(f"There is no Zarr array at {url}: {_nothing_there(url)}") from error
    except StoreError as error:
        raise BadData(f"{url} cannot be read: {error}") from None
    except Exception as error:  # zarr, obstore and json each raise their own kinds for damaged or foreign metadata
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
            raise BadData(unreadable_letter(f"The metadata of {url}", error)) from error
        raise BadData(
            f"There is no Zarr array that can be opened at {url}: {first_line(error)}.{_members(url)}"
        ) from error
    return array


def _nothing_there(url: str) -> str:
    path = local_path(url)
    if path is None or path.is_absolute():
        return "nothing is there. Check the path in the job file."
    return f"nothing is there. Relative paths start from the current directory, {Path.cwd()}."


def _members(url: str) -> str:
    """When `url` is a group: which arrays it holds, since one of them is probably meant."""
    try:
        names = sorted(name for name, _ in zarr.open_group(open_store(url), mode="r").arrays())
    except Exception:  # noqa: BLE001  # whatever it is, it is no group either, so there is nothing to suggest
        return " Give the path of an array, not of a file or folder that holds something else."
    return f" It is a group; its arrays are: {', '.join(names) or 'none'}. Give the path of one of them."


def describe(url: str) -> ArrayInfo:
    """What the metadata at `url` says; no chunk is read."""
    array = open_array(url)
    if array.metadata.zarr_format == 3 and getattr(array.metadata.chunk_grid, "chunk_shape", None) is None:
        raise BadData(f"{url} has chunks of several sizes, which cannot be read yet. Write it in chunks of one size.")
    codecs = codecs_of(array)
    return ArrayInfo(
        url=Address(url), shape=tuple(array.shape), dtype=_native(array, url), chunks=tuple(array.chunks),
        shards=tuple(array.shards) if array.shards else None, zarr_format=array.metadata.zarr_format,
        checksums=any(map(_checks, every_codec(codecs))), plain=_is_plain(array, url),
        near=local_path(url) is not None and decoding_of(array) is not None,
        names=_names(array.attrs.get("columns")), metadata=_digest(array),
    )  # fmt: skip


def _digest(array: zarr.Array[Any]) -> str:
    found: dict[str, Any] = dict(array.metadata.to_dict())
    found.pop("attributes", None)
    return hashlib.blake2b(repr(sorted(found.items())).encode(), digest_size=16).hexdigest()


def _names(attribute: Any) -> tuple[str, ...]:
    """Names of columns, when that is what the attribute holds."""
    return tuple(str(name) for name in attribute) if isinstance(attribute, list | tuple) else ()


def _native(array: zarr.Array[Any], url: str) -> np.dtype[Any]:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "biufc" or dtype.itemsize > 16 or dtype.char in "gG":
        raise BadData(
            f"{url} holds {dtype}, which is not a number that can be computed with; needed is bool, an integer, "
            "or a real or complex float of at most 64 bits a part. Convert the array and run the job again."
        )
    return dtype.newbyteorder("=")


def _checks(codec: Any) -> bool:
    name = getattr(codec, "codec_id", None) or type(codec).__name__.lower().removesuffix("codec")
    return name in SUMMED or bool(getattr(codec, "checksum", False))


def _is_plain(array: zarr.Array[Any], url: str) -> bool:
    metadata = array.metadata
    if local_path(url) is None or array.shards or array.ndim not in (1, 2) or not all(array.chunks):
        return False
    dtype = np.dtype(array.dtype)
    if metadata.zarr_format == 2:
        return not codecs_of(array) and metadata.order == "C" and dtype.isnative
    regular = getattr(metadata.chunk_grid, "chunk_shape", None) is not None
    first, *rest = metadata.codecs
    little = isinstance(first, BytesCodec) and (
        dtype.itemsize == 1 or str(getattr(first.endian, "value", first.endian)) == "little"
    )
    return (
        regular
        and little
        and np.little_endian
        and all(isinstance(codec, Crc32cCodec) for codec in rest)
        and len(rest) <= 1
    )


def read_text(url: str, key: str) -> str:
    """A small object of a store.

    Raises:
        FileNotFoundError: it is not there.
        BadData: the store does not answer.
    """
    store = open_store(url)
    try:
        raw = store.read(key) if isinstance(store, PatientStore) else (store.root / key).read_bytes()
    except StoreError as error:
        raise BadData(f"{url} cannot be read: {error}") from None
    if raw is None:
        raise FileNotFoundError(f"{url}/{key}")
    return raw.decode()


def array_names(url: str) -> list[str]:
    """The arrays of a group."""
    return sorted(name for name, _ in zarr.open_group(open_store(url), mode="r").arrays())
