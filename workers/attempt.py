"""One attempt at one job, as the agent knows it."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from workers.entries import Entry


@dataclass
class Attempt:
    """A job's process, and what it said last."""

    entry: Entry
    process: Any
    pipe: connection.Connection
    output: Path
    heard: deque[tuple[Any, ...]] = field(default_factory=deque)
    """What it said that is not stored yet."""
    told_to_end: float | None = None
    committing: bool = False
    ended: bool = False
    """It has said how it ended."""
    passes: int = 0
    """Of those that it told of, how many have been counted."""
    bytes_read: int = 0

    def read_since(self, progress: dict[str, Any]) -> dict[str, int]:
        """What was read since it last told, to be added to the job's counts."""
        passes, size = len(progress["passes"]), sum(one["bytes"] for one in progress["passes"])
        more = {"passes": passes - self.passes, "bytes_read": size - self.bytes_read}
        self.passes, self.bytes_read = passes, size
        return more


def cleaned(address: Any, name: str) -> None:
    """Remove what a job left in a store; one that does not answer keeps it."""
    from pipelines.errors import TallgrassError
    from pipelines.storage import StoreError, clean

    with suppress(OSError, StoreError, TallgrassError):
        clean(address, name)
