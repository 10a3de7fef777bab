"""Where a result is prepared and appears whole: a hidden folder that is renamed, or objects, the root last."""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from pipelines.storage.owners import is_dead, this_process
from pipelines.storage.scratch import APPEARED, Scratch, bytes_below

ROOT = "zarr.json"
"""The object that makes a group of what lies beside it (Zarr v3)."""
MARK = ".tallgrass-partial"
"""The object that says that what lies beside it is a result being written; it holds the time when that began."""
SWAP = 2
"""RENAME_EXCHANGE of Linux: two names change places in one step."""
HERE = -100
"""AT_FDCWD: relative paths start from the current directory."""
KEPT, CHECKPOINTS = "kept", "checkpoints"
"""In the names of what an interrupted run leaves for the next one: what it has written, and what its spans made."""
INTERRUPTED = " (interrupted)"
"""Stands in the mark of a run that has let go."""
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
        """Make it ours; what a killed run has left here is removed, unless this run goes on from there."""

    @property
    def checkpoints(self) -> Scratch | None:
        """Where spans may leave what they made, if a later run will find what this one writes."""

    def array(self, name: str, metadata: bytes) -> None:
        """Make room for an array; what was written to one of the same metadata stays."""

    def commit(self, attributes: Mapping[str, Any], names: Collection[str], *, overwrite: bool) -> None:
        """Make the result appear, with these attributes and arrays; what else lies there is removed."""

    def discard(self, *, keep: bool) -> None:
        """Let go; remove what was written so far, unless it is kept for a later run."""


@dataclass(frozen=True)
class Writer:
    """Who writes a result."""

    run: str
    resumes: bool = False
    """True when it goes on where an earlier run was interrupted, and may be interrupted itself."""
    name: str = ""
    """A name that all attempts at one job share; without one, that of this process."""
    restart: bool = False
    """True when what an earlier run has done is to be forgotten."""


def place_of(url: str, writer: Writer) -> "Folder | Objects":
    """The place of a path or URL."""
    check_allowed(url)
    path = local_path(url)
    if store_of(url) == "web":
        raise PlanRefused(
            f"The output {url} cannot be written: {url.partition('://')[0]}:// is for reading only. Choose a path, or "
            "a URL that starts with s3://, gs:// or az://."
        )
    return Objects(Address(url), writer) if path is None else Folder(url, path, writer)


def checkpoints_of(url: str) -> Address:
    """Where the runs of a job leave what later ones may go on from: beside its result, or in a bucket that it fills."""
    path, options = local_path(url), getattr(url, "options", {})
    if path is not None:
        final = Path(os.path.realpath(path))
        return Address(str(final.with_name(f".{final.name}.{CHECKPOINTS}")), options)
    scheme, _, rest = url.rstrip("/").partition("://")
    folder, slash, name = rest.rpartition("/")
    return Address(f"{scheme}://{folder}/.{name}.{CHECKPOINTS}" if slash else f"{url}/.{CHECKPOINTS}", options)


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
    """Remove what runs that are over have left beside a local result, unless one can go on there; never raises."""
    path = local_path(url)
    if path is not None:
        with suppress(OSError):
            Folder(url, path, Writer("")).sweep()


def leftovers(url: str) -> list[tuple[str, int]]:
    """What runs that are over have left for the result at `url`: each place, with its bytes where they are known."""
    return place_of(url, Writer("")).leftovers()


def clean(url: str, name: str = "") -> list[tuple[str, int]]:
    """Remove the leftovers, and say which; what belongs to a run that goes on stays, unless it is the job `name`'s."""
    place = place_of(url, Writer("", name=name))
    found = place.leftovers()
    place.clean()
    left = {where for where, _ in place.leftovers()}
    return [one for one in found if one[0] not in left]


def outputs_at(place: str) -> list[str]:
    """The result at a place, or all results in a folder, of which runs may have left something."""
    path = local_path(place)
    if path is None or not path.is_dir() or (path / ROOT).exists():
        return [place]
    pattern = re.compile(rf"\.(.+)\.(?:partial-{_RUNS}|{CHECKPOINTS})", re.DOTALL)
    found = [pattern.fullmatch(entry.name) for entry in path.iterdir()]
    return [place, *sorted({str(path / match[1]) for match in found if match})]


_RUNS = f"(?:{KEPT}|[0-9a-f]{{12}})"


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
            _check(self.url, _is_result(_text_of(self.final / ROOT)), overwrite=overwrite)

    def begin(self) -> None:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        if self.checkpoints and not self._taken():
            self.folder = self._named(self._writer.run)
        if self._writer.restart or not self._writer.resumes:
            self._forget()
        self.sweep()
        if self._lock is None:
            self._lock = _locked(_beside(self.folder, "lock"))
        self.folder.mkdir(exist_ok=True)

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

    def commit(self, attributes: Mapping[str, Any], names: Collection[str], *, overwrite: bool) -> None:
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
        _swap(self.folder, self.final)
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
        pattern = re.compile(rf"\.{re.escape(self.final.name)}\.partial-{_RUNS}{re.escape(suffix)}")
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


def _locked(file: Path, *, wait: bool = True) -> int:
    """A file with a lock that the system takes back when this process ends, however it ends.

    Raises:
        BlockingIOError: another process has the lock, or may have it, and it is not waited for.
    """
    while True:
        handle = os.open(file, os.O_CREAT | os.O_RDWR)
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

    def __init__(self, url: Address, writer: Writer) -> None:
        self.url, self._writer = url, writer
        store = open_store(url)
        assert isinstance(store, PatientStore)
        self._store = store
        self._began = self._cleared = self._found = False
        self._made = Scratch(checkpoints_of(url))

    @property
    def where(self) -> Address:
        return self.url

    @property
    def checkpoints(self) -> Scratch | None:
        return self._made if self._writer.resumes else None

    @property
    def _name(self) -> str:
        return self._writer.name or this_process()

    def check(self, *, overwrite: bool) -> None:
        if (root := self._text(ROOT)) is not None:
            _check(self.url, _is_result(root), overwrite=overwrite)
        elif (mark := self._text(MARK)) is not None:
            if not overwrite and not self._is_free(mark):
                raise PlanRefused(
                    f"The output {self.url} is what a run writes, or has left when it was killed, that began {mark}. "
                    "Wait for its end, choose another output, or set `overwrite: true` to write in its place."
                )
        elif self._names():
            _check(self.url, ours=False, overwrite=overwrite)

    def _is_free(self, mark: str) -> bool:
        """True when the writer of a mark is surely over: it said so, or is we, or a process of this machine, dead."""
        writer = mark.partition(" by ")[2]
        return INTERRUPTED in mark or writer == self._name or is_dead(writer)

    def begin(self) -> None:
        forget = self._writer.restart or not self._writer.resumes
        self._found = not forget and self._text(ROOT) is None and self._text(MARK) is not None
        self._mark("")
        self._began = True
        if forget:
            self._made.remove()

    def _mark(self, more: str) -> None:
        self._store.write(MARK, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC{more} by {self._name}".encode())

    def _ready(self) -> None:
        if not self._cleared:
            if not self._found:
                self._clear(set())
            self._cleared = True

    def array(self, name: str, metadata: bytes) -> None:
        self._ready()
        root = f"{name}/{ROOT}"
        if self._store.read(root) != metadata:
            if rest := [key for key in self._store.names() if key.startswith(f"{name}/")]:
                self._store.remove(*rest)
            self._store.write(root, metadata)

    def commit(self, attributes: Mapping[str, Any], names: Collection[str], *, overwrite: bool) -> None:
        self._ready()
        self._clear(set(names))
        written: dict[str, Buffer] = {}
        zarr.open_group(MemoryStore(written), mode="w").attrs.update(dict(attributes))
        self._store.write(ROOT, written[ROOT].to_bytes())
        self._began = False
        self._made.remove()
        self._store.remove(MARK)

    def discard(self, *, keep: bool) -> None:
        """Best effort: a store that does not answer keeps the mark, which tells the next run."""
        if not self._began:
            return
        self._began = False
        with suppress(StoreError, OSError):
            if keep and self.checkpoints:
                self._mark(INTERRUPTED)
                return
            if self._cleared:
                self._clear(set())
            self._made.remove()
            self._store.remove(MARK)

    def leftovers(self) -> list[tuple[str, int]]:
        """Those of a run that is surely over."""
        mark = self._text(MARK)
        if mark is not None and not self._is_free(mark):
            return []
        found = [self._made.address] if self._made.names() else []
        if mark is not None:
            found.append(self.url)
        return [(str(place), 0) for place in found]

    def clean(self) -> None:
        for place, _ in self.leftovers():
            if place != self.url:
                self._made.remove()
                continue
            if self._text(ROOT) is None:
                self._clear(set())
            self._store.remove(MARK)

    def _names(self) -> list[str]:
        """What lies there, but for checkpoints in a bucket that the result fills."""
        return [name for name in self._store.names() if not name.startswith(f".{CHECKPOINTS}/")]

    def _clear(self, names: Collection[str]) -> None:
        """Remove everything but the mark and these arrays, the root first: never is half of a result to be seen."""
        there = self._names()
        if ROOT in there:
            self._store.remove(ROOT)
        if rest := [name for name in there if name not in (ROOT, MARK) and name.partition("/")[0] not in names]:
            self._store.remove(*rest)

    def _text(self, name: str) -> str | None:
        data = self._store.read(name)
        return None if data is None else data.decode(errors="replace")
