"""A PostgreSQL server for tests; skipped with a reason where there is none."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import postgres as server


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, which forgets all when the machine does.

    Not among pytest's folders: each pytest that starts makes those unreadable for the account of the server.
    """
    if server.programs() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with (
        tempfile.TemporaryDirectory(prefix="tallgrass-postgres-", ignore_cleanup_errors=True) as folder,
        server.postgres(Path(folder), "-c fsync=off") as address,
    ):
        yield address
