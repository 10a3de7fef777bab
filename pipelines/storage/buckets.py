"""Results in an object store, which cannot rename: the group's own metadata is written last."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipelines.addresses import Address
from pipelines.errors import PlanRefused
from pipelines.storage.answers import StoreError
from pipelines.storage.arrays import open_store
from pipelines.storage.objects import PatientStore
from pipelines.storage.owners import is_dead, this_process
from pipelines.storage.scratch import Scratch
from pipelines.storage.writers import CHECKPOINTS, ROOT, Writer, check_replaceable, checkpoints_of, is_result

MARK = ".tallgrass-partial"
"""The object that says that what lies beside it is a result being written, since when, and by whom."""
INTERRUPTED = " (interrupted)"
"""Stands in the mark of a run that has let go."""


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
            check_replaceable(self.url, is_result(root), overwrite=overwrite)
        elif (mark := self._text(MARK)) is not None:
            if not overwrite and not self._is_free(mark):
                raise PlanRefused(
                    f"The output {self.url} is what a run writes, or has left when it was killed, that began {mark}. "
                    "Wait for its end, choose another output, or set `overwrite: true` to write in its place."
                )
        elif self._names():
            check_replaceable(self.url, ours=False, overwrite=overwrite)

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

    def commit(
        self, attributes: Mapping[str, Any], names: Collection[str], check: Callable[[], None], *, overwrite: bool
    ) -> None:
        self._ready()
        self._clear(set(names))
        written: dict[str, Buffer] = {}
        zarr.open_group(MemoryStore(written), mode="w").attrs.update(dict(attributes))
        check()
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
