"""Results being written: a Zarr group that appears whole or not at all.

On a disk, a hidden folder beside the result is filled, flushed, and renamed at the end.  In an object store, which
cannot rename, the group's own metadata is written last: until then nothing can be opened at its address.
"""

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, ObjectStore

from pipelines.errors import PlanRefused, RunFailed
from pipelines.storage.arrays import local_path, open_store
from pipelines.units import format_bytes

LOCK = "lock"
"""The file by which a run that is still going on can be told from one that was killed."""
ROOT = "zarr.json"
"""The object that makes a group of what lies beside it (Zarr v3)."""


class Staging:
    """A result that is not there yet; `commit` makes it appear.

    Raises (on creation, before anything is read):
        PlanRefused: the place is taken, or cannot be written to.
    """

    def __init__(self, url: str, run: str, *, overwrite: bool) -> None:
        self.url, self.overwrite = url, overwrite
        self.final = local_path(url)
        with _told(url):
            self.folder = None if self.final is None else self._hidden_folder(self.final, run)
            self._check_place()
            if self.folder is not None:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                _sweep(self.folder)
                self.folder.mkdir()
                self._lock = _locked(self.folder)

    def need_space(self, size: int) -> None:
        """Refuse what will not fit on the disk, before anything is read."""
        if self.folder is None:
            return
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise PlanRefused(
                f"The result needs {format_bytes(size)} and {format_bytes(free)} are free at {self.folder.parent}. "
                "Free some space there, or choose another output."
            )

    @staticmethod
    def _hidden_folder(final: Path, run: str) -> Path:
        final = Path(os.path.abspath(final))
        return final.with_name(f".{final.name}.partial-{run}")

    def _check_place(self) -> None:
        """Only a result of ours, or nothing, may be at the place."""
        if self.final is None:
            taken, ours = self._remote_state()
        else:
            taken = self.final.exists() and not (self.final.is_dir() and not any(self.final.iterdir()))
            ours = taken and _is_result(self.final)
        if taken and not ours:
            raise PlanRefused(
                f"The output {self.url} exists and is not a result of Tallgrass. Nothing was changed; choose another "
                "output."
            )
        if taken and not self.overwrite:
            raise PlanRefused(
                f"The output {self.url} holds a result already. Nothing was changed; choose another output, or set "
                "`overwrite: true` in the job file."
            )

    def _remote_state(self) -> tuple[bool, bool]:
        store = self._object_store()
        first = next(iter(obstore.list(store, chunk_size=1)), [])
        try:
            root = bytes(obstore.get(store, ROOT).bytes())
        except FileNotFoundError:
            # Objects without a root are what an interrupted run left behind: nobody can open them.
            return False, False
        return bool(first), b'"tallgrass"' in root

    def _object_store(self) -> Any:
        store = open_store(self.url)
        assert isinstance(store, ObjectStore)
        return store.store

    @property
    def place(self) -> str:
        """Where arrays are written meanwhile."""
        return self.url if self.folder is None else str(self.folder)

    def create(self, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **described: Any) -> str:
        """An empty array, for tasks to fill by `write_rows`; returns its address."""
        with _told(self.url):
            zarr.create_array(
                open_store(f"{self.place}/{name}"), shape=shape, dtype=dtype, chunks=tuple(max(1, c) for c in chunks),
                compressors=[Crc32cCodec()], config={"write_empty_chunks": True}, fill_value=0, **described,
            )  # fmt: skip
        return f"{self.place}/{name}"

    def put(
        self,
        name: str,
        array: np.ndarray,
        dimensions: tuple[str, ...],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """A whole array."""
        url = self.create(
            name,
            array.shape,
            array.dtype,
            array.shape,
            dimension_names=dimensions,
            attributes=dict(attributes or {}),
        )
        with _told(self.url):
            zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})[...] = array

    def commit(self, attributes: Mapping[str, Any]) -> None:
        """Make the result appear, with these attributes."""
        with _told(self.url):
            if self.folder is None:
                self._commit_remote(attributes)
            else:
                self._commit_local(attributes, self.folder)

    def _commit_local(self, attributes: Mapping[str, Any], folder: Path) -> None:
        assert self.final is not None
        (folder / LOCK).unlink()
        zarr.open_group(open_store(str(folder)), mode="a").attrs.update(dict(attributes))
        _flush(folder)
        final, old = (
            Path(os.path.abspath(self.final)),
            folder.with_name(folder.name.replace(".partial-", ".old-")),
        )
        if final.exists():
            self._check_place()
            os.rename(final, old)
        os.rename(folder, final)
        _flush_folder(final.parent)
        for replaced in final.parent.glob(f"{glob.escape(old.name.rpartition('-')[0])}-*"):
            shutil.rmtree(replaced, ignore_errors=True)

    def _commit_remote(self, attributes: Mapping[str, Any]) -> None:
        written: dict[str, Buffer] = {}
        zarr.open_group(MemoryStore(written), mode="w").attrs.update(dict(attributes))
        obstore.put(self._object_store(), ROOT, written[ROOT].to_bytes())

    def discard(self) -> None:
        """Remove what was written so far."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)


def _locked(folder: Path) -> int:
    """A lock that the system takes back when this process ends, however it ends."""
    handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed have left beside this result: folders that nobody holds the lock of."""
    mine = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{glob.escape(mine)}-*"):
        try:
            os.close(_locked(other))
        except OSError:
            continue
        shutil.rmtree(other, ignore_errors=True)


def write_rows(url: str, start: int, block: np.ndarray) -> None:
    """Rows start.. of a stored array: whole chunks only, since two tasks must never share one.

    Raises:
        RunFailed: the rows do not fall on chunks, or the store is full.
    """
    with _told(url):
        array = zarr.open_array(open_store(url), mode="r+", config={"write_empty_chunks": True})
        stop, height = start + len(block), array.chunks[0]
        if start % height or (stop % height and stop != array.shape[0]):
            raise RunFailed(
                f"Rows {start:,} to {stop:,} of {url} are not whole chunks of {height:,} rows. This is a defect of "
                "Tallgrass: nothing was written. Please report it."
            )
        block = block.astype(array.dtype, copy=False)
        array[start:stop] = block[:, 0] if array.ndim == 1 else block


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a file system says, as a letter."""
    try:
        yield
    except PermissionError as error:
        raise PlanRefused(
            f"The output {url} cannot be written: permission denied for {error.filename or url}. "
            "Choose another output, or give this user the right to write there."
        ) from error
    except NotADirectoryError as error:
        raise PlanRefused(
            f"The output {url} cannot be written: {error.filename} is a file. Choose another output."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunFailed(
            f"No space is left for the output {url}. Nothing half-written was left behind; free some space there, or "
            "choose another output."
        ) from error


def _is_result(folder: Path) -> bool:
    try:
        return '"tallgrass"' in (folder / ROOT).read_text()
    except OSError:
        return False


def _flush(folder: Path) -> None:
    """To the disk, files before the folders that name them: a power cut must not leave half a result either."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _flush_folder(Path(place))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
