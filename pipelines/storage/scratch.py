"""Small files that a run leaves for the next one: beside its result, or wherever the job says."""

import os
import shutil
import uuid
from contextlib import suppress

from pipelines.addresses import Address
from pipelines.storage.answers import StoreError
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.objects import PatientStore


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

    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all; a folder that is not there is not made, since nobody else would see it.

        Raises:
            OSError: it cannot be written.
            StoreError: the store does not take it.
        """
        if self._path is None:
            self._store().write(name, data)
            return
        partial = self._path / f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            partial.write_bytes(data)
            os.replace(partial, self._path / name)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def names(self) -> list[str]:
        """All complete files; none where there is no such folder."""
        if self._path is None:
            return self._store().names()
        try:
            return sorted(name for name in os.listdir(self._path) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self) -> int:
        """Bytes of all files of a folder; 0 for objects, which would have to be asked for one by one."""
        if self._path is None or not self._path.is_dir():
            return 0
        return sum(file.stat().st_size for file in self._path.iterdir())

    def remove(self) -> None:
        """Take all of it away; never raises, since it is only in the way."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            return
        with suppress(StoreError, OSError):
            if names := self.names():
                self._store().remove(*names)

    def _store(self) -> PatientStore:
        store = open_store(self.address)
        assert isinstance(store, PatientStore)
        return store
