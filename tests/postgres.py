"""A PostgreSQL server for tests; skipped with a reason where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import postgres as server


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of an empty database, which forgets all when the machine does."""
    if server.programs() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with server.postgres(folder, "-c fsync=off") as address:
        yield address
