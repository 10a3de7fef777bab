"""Small files that a run leaves for the next one: beside its result, or wherever the job says."""

import os
import re
import uuid
from collections.abc import Buffer
from contextlib import suppress
from pathlib import Path

from pipelines.addresses import Address
from pipelines.storage.answers import StoreError
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.objects import PatientStore

APPEARED = "appeared"
"""The file that is left last: a digest of the result that all others have become."""
_OURS = re.compile(rf"\.?([0-9a-f]{{32}}|{APPEARED})(\.[0-9a-f]{{8}})?")


def bytes_below(folder: Path) -> int:
    """The size of all files in a folder; what goes away meanwhile has none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


class Scratch:
    """A folder, or what begins with an address in an object store; made by who runs a job, filled by its tasks."""

    def __init__(self, address: str) -> None:
        self.address = Address(address)
        self._path = local_path(address)

    def begin(self) -> None:
        """Make the folder; raises OSError when it cannot be made."""
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes | None:
        """A file, or None when it is not there; raises OSError or StoreError when it cannot be read."""
        if self._path is None:
            return self._store().read(name)
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, *data: Buffer) -> None:
        """A file of these parts, whole or not at all.

        A folder that is not there is not made, since nobody else would see it.

        Raises:
            OSError: it cannot be written.
            StoreError: the store does not take it.
        """
        if self._path is None:
            self._store().write(name, b"".join(data))
            return
        partial = self._path / f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            with partial.open("wb") as file:
                file.writelines(data)
            os.replace(partial, self._path / name)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def names(self) -> list[str]:
        """All complete files; none where there is no such folder.

        Raises:
            OSError: the folder cannot be read.
            StoreError: the store does not answer.
        """
        return [name for name in self._entries() if not name.startswith(".") and _OURS.fullmatch(name)]

    def is_there(self) -> bool:
        """True for a folder that holds files of ours, and nothing else."""
        entries = [] if self._path is None else self._entries()
        return bool(entries) and all(map(_OURS.fullmatch, entries))

    def _entries(self) -> list[str]:
        if self._path is None:
            return self._store().names()
        try:
            return sorted(os.listdir(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self) -> int:
        """Bytes of all files of a folder; 0 for objects, which would have to be asked for one by one."""
        return 0 if self._path is None else bytes_below(self._path)

    def remove(self) -> None:
        """Take all of it away, and nothing that is not ours; never raises, since it is only in the way."""
        if self._path is not None:
            with suppress(OSError):
                for file in self._path.iterdir():
                    if _OURS.fullmatch(file.name):
                        file.unlink()
                self._path.rmdir()
            return
        with suppress(StoreError, OSError):
            if names := self.names():
                self._store().remove(*names)

    def _store(self) -> PatientStore:
        store = open_store(self.address)
        assert isinstance(store, PatientStore)
        return store
