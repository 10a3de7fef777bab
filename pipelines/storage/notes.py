"""Whether several processes write to the same place: each leaves a note there, and one looks which have come."""

import os
import shutil
import uuid
from contextlib import suppress

from pipelines.addresses import Address
from pipelines.errors import BadData
from pipelines.storage.answers import StoreError
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.objects import PatientStore


class Notes:
    """Small files beside a result that may come to be, or objects; never in its place."""

    def __init__(self, output: str) -> None:
        options = output.options if isinstance(output, Address) else {}
        path = local_path(output)
        name = f".tallgrass-notes-{uuid.uuid4().hex[:8]}"
        self.address = Address(f"{output}{name}" if path is None else str(path.parent / name), options)
        folders = [] if path is None else [path.parent, *path.parent.parents]
        self._new = [folder for folder in folders if not folder.exists()]

    def leave(self, name: str) -> None:
        """A note of this name.

        Raises:
            BadData: it cannot be written.
        """
        store = open_store(self.address)
        try:
            if isinstance(store, PatientStore):
                store.write(name, b"")
            else:
                store.root.mkdir(parents=True, exist_ok=True)
                (store.root / name).touch()
        except (StoreError, OSError) as error:
            said = getattr(error, "strerror", None) or error
            raise BadData(f"{self.address} cannot be written: {said}.") from None

    def found(self) -> list[str]:
        """The names of all notes."""
        store = open_store(self.address)
        return store.names() if isinstance(store, PatientStore) else sorted(os.listdir(store.root))

    def remove(self) -> None:
        """Take them away."""
        store = open_store(self.address)
        if not isinstance(store, PatientStore):
            shutil.rmtree(store.root, ignore_errors=True)
            for folder in self._new:
                with suppress(OSError):
                    folder.rmdir()
        elif names := store.names():
            store.remove(*names)
