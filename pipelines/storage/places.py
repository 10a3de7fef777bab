"""Where a result is prepared and appears whole: a hidden folder that is renamed, or objects, the root last."""

import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipelines.addresses import Address, store_of
from pipelines.errors import BadData, PlanRefused
from pipelines.roots import check_allowed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.objects import PatientStore

ROOT = "zarr.json"
"""The object that makes a group of what lies beside it (Zarr v3)."""
MARK = ".tallgrass-partial"
"""The object that says that what lies beside it is a result being written; it holds the time when that began."""
SWAP = 2
"""RENAME_EXCHANGE of Linux: two names change places in one step."""
HERE = -100
"""AT_FDCWD: relative paths start from the current directory."""
TRIES, PAUSE = 20, 0.05
"""Removals of a folder, and seconds between: what an interrupted thread still writes may bring it back for a moment."""


class Place(Protocol):
    """Where one run writes one result."""

    @property
    def where(self) -> Address:
        """Address under which arrays are written meanwhile."""

    def check(self, *, overwrite: bool) -> None:
        """Raises PlanRefused unless nothing is there, or a result that may be replaced."""

    def begin(self) -> None:
        """Make it ours; what a killed run has left here is removed."""

    def ready(self) -> None:
        """Called before the first array is written."""

    def commit(self, attributes: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the result appear, with these attributes."""

    def discard(self) -> None:
        """Remove what was written so far."""


def place_of(url: str, run: str) -> "Folder | Objects":
    """The place of a path or URL."""
    check_allowed(url)
    path = local_path(url)
    if store_of(url) == "web":
        raise PlanRefused(
            f"The output {url} cannot be written: {url.partition('://')[0]}:// is for reading only. Choose a path, or "
            "a URL that starts with s3://, gs:// or az://."
        )
    return Objects(Address(url)) if path is None else Folder(url, path, run)


def copy_result(url: str, folder: str) -> None:
    """A copy of a stored result in a local folder, which appears whole or not at all.

    Raises:
        PlanRefused: something is there already.
        BadData: the result cannot be read.
    """
    final = Path(folder)
    if final.exists():
        raise PlanRefused(f"{folder} exists already. Copy to another folder, or remove that one.")
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        _copy(url, partial)
        partial.rename(final)
    except OSError as error:
        raise BadData(f"{url} cannot be copied to {folder}: {first_line(error)}.") from error
    except StoreError as error:
        raise BadData(f"{url} cannot be copied to {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(url: str, folder: Path) -> None:
    store = open_store(url)
    if not isinstance(store, PatientStore):
        shutil.copytree(store.root, folder)
        return
    for name in store.names():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(name) or b"")


def sweep(url: str) -> None:
    """Remove what runs that are over have left beside a local result; never raises."""
    path = local_path(url)
    if path is not None:
        with suppress(OSError):
            Folder(url, path, "").sweep()


class Folder:
    """A hidden folder beside the result; a locked file beside it tells a run that goes on from one that was killed."""

    def __init__(self, url: str, path: Path, run: str) -> None:
        self.url, self.final = url, Path(os.path.realpath(path))
        self.folder = self.final.with_name(f".{self.final.name}.partial-{run}")
        self._lock: int | None = None

    @property
    def where(self) -> Address:
        return Address(str(self.folder))

    def check(self, *, overwrite: bool) -> None:
        if self.final.exists() and not (self.final.is_dir() and not any(self.final.iterdir())):
            _check(self.url, _is_result(_text_of(self.final / ROOT)), overwrite=overwrite)

    def begin(self) -> None:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self.sweep()
        self._lock = _locked(_beside(self.folder, "lock"))
        self.folder.mkdir()

    def ready(self) -> None:
        pass

    def commit(self, attributes: Mapping[str, Any], *, overwrite: bool) -> None:
        zarr.open_group(open_store(self.where), mode="a").attrs.update(dict(attributes))
        _flush(self.folder)
        self.check(overwrite=overwrite)
        _swap(self.folder, self.final)
        _flush_folder(self.final.parent)
        self._end()  # of the old result, which is in the hidden folder now

    def discard(self) -> None:
        if self._lock is None:
            return
        for _ in range(TRIES):
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(PAUSE)
            if not self.folder.exists():
                break
        self._end()

    def _end(self) -> None:
        assert self._lock is not None
        self._remove(self.folder)
        os.close(self._lock)
        self._lock = None

    def sweep(self) -> None:
        """Remove what killed runs have left beside this result: folders whose lock nobody holds, or that have none."""
        mine = f".{glob.escape(self.final.name)}.partial-*"
        folders = [folder for folder in self.final.parent.glob(mine) if folder.suffix not in (".lock", ".old")]
        for file in self.final.parent.glob(f"{mine}.lock"):
            with suppress(OSError), _opened(file, os.O_RDWR) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(file.with_suffix(""))
        for folder in folders:
            if not _beside(folder, "lock").exists():
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """The traces of one run; the old result goes back to its place if the run took it from there."""
        old = _beside(folder, "old")
        if old.exists() and not self.final.exists():
            os.rename(old, self.final)
        for rest in (old, folder):
            shutil.rmtree(rest, ignore_errors=True)
        _beside(folder, "lock").unlink(missing_ok=True)


def _check(url: str, ours: bool, *, overwrite: bool) -> None:
    if not ours:
        raise PlanRefused(
            f"The output {url} exists and is not a result of Tallgrass. Nothing was changed; choose another output."
        )
    if not overwrite:
        raise PlanRefused(
            f"The output {url} holds a result already. Nothing was changed; choose another output, or set "
            "`overwrite: true` in the job file."
        )


def _is_result(root: str | None) -> bool:
    """True for the metadata of a group that we wrote: not of one that merely holds such a group."""
    try:
        return str(json.loads(root or "")["attributes"]["tallgrass"]["schema"]).startswith("result/")
    except (ValueError, KeyError, TypeError):
        return False


def _text_of(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


@contextmanager
def _opened(path: Path, flags: int) -> Any:
    handle = os.open(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _locked(file: Path) -> int:
    """A new file with a lock that the system takes back when this process ends, however it ends."""
    while True:
        handle = os.open(file, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, where nobody will sweep either
            return handle
        if file.exists() and os.path.samestat(os.stat(file), os.fstat(handle)):
            return handle
        os.close(handle)  # swept between our two steps: once more


def _swap(new: Path, final: Path) -> None:
    """`new` appears at `final`, and what was there at `new`; in one step where the system can do that."""
    if not final.exists():
        os.rename(new, final)
    elif not _exchanged(new, final):
        old = _beside(new, "old")
        os.rename(final, old)
        os.rename(new, final)


def _exchanged(new: Path, final: Path) -> bool:
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if exchange(HERE, os.fsencode(new), HERE, os.fsencode(final), SWAP) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # not on this file system
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(final))


def _flush(folder: Path) -> None:
    """To the disk, files before the folders that name them: a power cut must not leave half a result either."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with _opened(Path(place, name), os.O_RDONLY) as handle:
                os.fsync(handle)
        _flush_folder(Path(place))


def _flush_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY) as handle:
        os.fsync(handle)


class Objects:
    """Objects of a store that cannot rename: until the root is there, nobody can open what lies beside it."""

    def __init__(self, url: Address) -> None:
        self.url = url
        store = open_store(url)
        assert isinstance(store, PatientStore)
        self._store = store
        self._began = self._cleared = False

    @property
    def where(self) -> Address:
        return self.url

    def check(self, *, overwrite: bool) -> None:
        if (root := self._text(ROOT)) is not None:
            _check(self.url, _is_result(root), overwrite=overwrite)
        elif (since := self._text(MARK)) is not None:
            if not overwrite:
                raise PlanRefused(
                    f"The output {self.url} is what a run writes, or has left when it was killed, that began {since}. "
                    "Wait for its end, choose another output, or set `overwrite: true` to write in its place."
                )
        elif self._store.names():
            _check(self.url, ours=False, overwrite=overwrite)

    def begin(self) -> None:
        self._store.write(MARK, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC".encode())
        self._began = True

    def ready(self) -> None:
        if not self._cleared:
            self._clear()
            self._cleared = True

    def commit(self, attributes: Mapping[str, Any], *, overwrite: bool) -> None:
        self.ready()
        written: dict[str, Buffer] = {}
        zarr.open_group(MemoryStore(written), mode="w").attrs.update(dict(attributes))
        self._store.write(ROOT, written[ROOT].to_bytes())
        self._began = False
        self._store.remove(MARK)

    def discard(self) -> None:
        """Best effort: a store that does not answer keeps the mark, which tells the next run."""
        if self._began:
            self._began = False
            with suppress(StoreError, OSError):
                if self._cleared:
                    self._clear()
                self._store.remove(MARK)

    def _clear(self) -> None:
        """Remove everything but the mark, the root first: never is half of a result to be seen."""
        names = self._store.names()
        if ROOT in names:
            self._store.remove(ROOT)
        if rest := [name for name in names if name not in (ROOT, MARK)]:
            self._store.remove(*rest)

    def _text(self, name: str) -> str | None:
        data = self._store.read(name)
        return None if data is None else data.decode(errors="replace")
