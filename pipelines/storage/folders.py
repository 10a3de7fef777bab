"""Results on a disk: a hidden folder is filled, flushed, and renamed, or exchanged with the result that it replaces."""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zarr

from pipelines.addresses import Address
from pipelines.storage.arrays import open_store
from pipelines.storage.scratch import APPEARED, Scratch, bytes_below
from pipelines.storage.writers import KEPT, ROOT, RUNS, Writer, check_replaceable, checkpoints_of, is_result

SWAP = 2
"""RENAME_EXCHANGE of Linux: two names change places in one step."""
HERE = -100
"""AT_FDCWD: relative paths start from the current directory."""
TRIES, PAUSE = 20, 0.05
"""Tries, and seconds between: what an interrupted thread still writes brings a folder back; a lock is looked at."""


class Folder:
    """A hidden folder beside the result; a locked file beside it tells a run that goes on from one that was killed.

    A run that resumes has a folder of a fixed name, in which it finds what an earlier one has written.  When another
    run has that just now, or nobody can say whether one has, it gets one of its own, and cannot be resumed.
    """

    def __init__(self, url: str, path: Path, writer: Writer) -> None:
        self.url, self.final = url, Path(os.path.realpath(path))
        self._kept, self._made = self._named(KEPT), Scratch(checkpoints_of(url))
        self.folder = self._kept if writer.resumes else self._named(writer.run)
        self._writer = writer
        self._lock: int | None = None

    def _named(self, run: str) -> Path:
        return self.final.with_name(f".{self.final.name}.partial-{run}")

    @property
    def where(self) -> Address:
        return Address(str(self.folder))

    @property
    def checkpoints(self) -> Scratch | None:
        return self._made if self.folder == self._kept else None

    def check(self, *, overwrite: bool) -> None:
        if self.final.exists() and not (self.final.is_dir() and not any(self.final.iterdir())):
            check_replaceable(self.url, is_result(_text_of(self.final / ROOT)), overwrite=overwrite)

    def begin(self) -> None:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        if self.checkpoints and not self._taken():
            self.folder = self._named(self._writer.run)
        if self._writer.restart or not self._writer.resumes:
            self._forget()
        self.sweep()
        if self._lock is None:
            self._lock = _locked(_beside(self.folder, "lock"))
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError:
            self._end()
            raise

    def _taken(self) -> bool:
        """Take the folder that is kept; who only looks whether it is held does so for a moment."""
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                self._lock = _locked(_beside(self._kept, "lock"), wait=False)
                return True
            time.sleep(PAUSE)
        return False

    def _forget(self) -> None:
        """Remove what an earlier run has done, unless another one goes on with it."""
        if self.folder == self._kept or not _is_locked(_beside(self._kept, "lock")):
            self._made.remove()
            shutil.rmtree(self._kept, ignore_errors=True)

    def array(self, name: str, metadata: bytes) -> None:
        root = self.folder / name / ROOT
        if not root.is_file() or root.read_bytes() != metadata:
            shutil.rmtree(root.parent, ignore_errors=True)
            root.parent.mkdir()
            root.write_bytes(metadata)

    def commit(
        self, attributes: Mapping[str, Any], names: Collection[str], check: Callable[[], None], *, overwrite: bool
    ) -> None:
        for other in self.folder.iterdir():
            if other.name not in names:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        for torn in self.folder.rglob("*.partial"):  # what Zarr had not renamed yet when it was killed
            torn.unlink()
        zarr.open_group(open_store(self.where), mode="a").attrs.update(dict(attributes))
        _flush(self.folder)
        self.check(overwrite=overwrite)
        if self.checkpoints:
            with suppress(OSError):  # where nothing was kept, nothing has to be told
                self._made.write(APPEARED, _digest(self.folder))
        check()
        try:
            _swap(self.folder, self.final, overwrite=overwrite)
        except FileExistsError:
            self.check(overwrite=overwrite)  # somebody was faster; it says so
            raise
        _flush_folder(self.final.parent)
        self._end()  # of the old result, which is in the hidden folder now

    def discard(self, *, keep: bool) -> None:
        if self._lock is None:
            return
        if keep and self.checkpoints:
            os.close(self._lock)
            self._lock = None
            return
        for _ in range(TRIES):
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(PAUSE)
            if not self.folder.exists():
                break
        self._end()

    def _end(self) -> None:
        assert self._lock is not None
        if self.checkpoints:
            self._made.remove()
        self._remove(self.folder)
        os.close(self._lock)
        self._lock = None

    def sweep(self) -> None:
        """Remove what killed runs have left beside this result: folders whose lock nobody holds, or that have none.

        The one that a run can go on from stays.
        """
        useful = self._kept.exists() and bool(self._made.names()) and self._made.read(APPEARED) != _digest(self.final)
        if not useful and not _is_locked(_beside(self._kept, "lock")):
            self._made.remove()  # of a run that came to its end, or to nothing
        self._sweep(self._kept if useful else None)

    def _sweep(self, kept: Path | None) -> None:
        for file in self._beside(".lock"):
            with suppress(OSError), _opened(file, os.O_RDWR) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(file.with_suffix(""), kept)
        for folder in self._beside():
            if not _beside(folder, "lock").exists():
                self._remove(folder, kept)

    def _beside(self, suffix: str = "") -> list[Path]:
        """What runs have made beside the result, by its names."""
        pattern = re.compile(rf"\.{re.escape(self.final.name)}\.partial-{RUNS}{re.escape(suffix)}")
        entries = self.final.parent.iterdir() if self.final.parent.is_dir() else ()
        return sorted(entry for entry in entries if pattern.fullmatch(entry.name))

    def leftovers(self) -> list[tuple[str, int]]:
        free = [folder for folder in self._beside() if not _is_locked(_beside(folder, "lock"))]
        checkpoints = Path(self._made.address)
        if self._made.is_there() and not _is_locked(_beside(self._kept, "lock")):
            free.append(checkpoints)
        return [(str(folder), bytes_below(folder)) for folder in sorted(free)]

    def clean(self) -> None:
        if self._made.is_there() and not _is_locked(_beside(self._kept, "lock")):
            self._made.remove()
        self._sweep(None)

    def _remove(self, folder: Path, kept: Path | None = None) -> None:
        """The traces of one run; the old result goes back to its place if the run took it from there."""
        old = _beside(folder, "old")
        if old.exists() and not self.final.exists():
            os.rename(old, self.final)
        for rest in (old, folder):
            if rest != kept:
                shutil.rmtree(rest, ignore_errors=True)
        _beside(folder, "lock").unlink(missing_ok=True)


def _digest(result: Path) -> bytes:
    """What tells one result from all others, since their summaries tell when they were made."""
    return hashlib.blake2b((_text_of(result / ROOT) or "").encode(), digest_size=16).hexdigest().encode()


def _is_locked(file: Path) -> bool:
    """True while the run that a lock file belongs to goes on, and where that cannot be known."""
    try:
        with _opened(file, os.O_RDWR) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
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


def _locked(file: Path, *, wait: bool = True) -> int:
    """A file with a lock that the system takes back when this process ends, however it ends.

    Raises:
        BlockingIOError: another process has the lock, or may have it, and it is not waited for.
    """
    while True:
        try:
            handle = os.open(file, os.O_CREAT | os.O_RDWR)
        except PermissionError as error:
            if wait:
                raise
            raise BlockingIOError from error  # another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if wait:  # a file system without locks, where nobody will sweep either
                return handle
            os.close(handle)
            raise BlockingIOError from error
        if file.exists() and os.path.samestat(os.stat(file), os.fstat(handle)):
            return handle
        os.close(handle)  # swept between our two steps: once more


def _swap(new: Path, final: Path, *, overwrite: bool) -> None:
    """`new` appears at `final`, and what was there at `new`; in one step where the system can do that.

    Raises:
        FileExistsError: something is there that may not be replaced.
    """
    if not overwrite or not final.exists():
        try:
            os.rename(new, final)  # onto nothing, or an empty folder
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(error.errno, os.strerror(error.errno), str(final)) from error
            raise
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
