"""Where a result is prepared and appears whole: a hidden folder that is renamed, or objects, the root last."""

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pipelines.addresses import Address, store_of
from pipelines.errors import BadData, PlanRefused
from pipelines.roots import check_allowed
from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import local_path, open_store
from pipelines.storage.buckets import Objects
from pipelines.storage.folders import Folder
from pipelines.storage.objects import PatientStore
from pipelines.storage.scratch import Scratch
from pipelines.storage.writers import CHECKPOINTS, ROOT, RUNS, Writer


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

    def commit(
        self, attributes: Mapping[str, Any], names: Collection[str], check: Callable[[], None], *, overwrite: bool
    ) -> None:
        """Make the result appear, with these attributes and arrays, unless `check` forbids it at the last moment."""

    def discard(self, *, keep: bool) -> None:
        """Let go; remove what was written so far, unless it is kept for a later run."""


def place_of(url: str, writer: Writer) -> Folder | Objects:
    """The place of a path or URL."""
    check_allowed(url)
    path = local_path(url)
    if store_of(url) == "web":
        raise PlanRefused(
            f"The output {url} cannot be written: {url.partition('://')[0]}:// is for reading only. Choose a path, or "
            "a URL that starts with s3://, gs:// or az://."
        )
    return Objects(Address(url), writer) if path is None else Folder(url, path, writer)


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
    pattern = re.compile(rf"\.(.+)\.(?:partial-{RUNS}|{CHECKPOINTS})", re.DOTALL)
    found = [pattern.fullmatch(entry.name) for entry in path.iterdir()]
    return [place, *sorted({str(path / match[1]) for match in found if match})]
