"""What a pass works on, and how far it is."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pipelines.matrix import Span, System
from pipelines.passes.base import Pass
from pipelines.progress import Listener, PassFinished, PassProgress, PassStarted

Graph = dict[Any, Any]


@dataclass(frozen=True)
class Work:
    """A system of rows cut into spans."""

    system: System
    spans: tuple[Span, ...]
    row_bytes: int
    """Bytes of one row of A as stored, decoded."""
    extra: Graph = field(default_factory=dict)
    """The graph of the dask arrays that the system's parts come from."""

    @property
    def rows(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


class Meter:
    """How far a pass is, from what its tasks say; a span that runs twice counts once."""

    def __init__(self, step: Pass[Any], work: Work, number: int, listener: Listener) -> None:
        self.name, self.work, self.listener = step.name, work, listener
        self.began = self.moved = time.monotonic()
        self.workers, self.memory_bytes, self.fan_in = 0, 0, step.fan_in
        self._done: dict[int, int] = {}
        self._lock = threading.Lock()
        listener(PassStarted(step.name, number, work.rows, work.rows * work.row_bytes, len(work.spans)))

    def tell(self, span: int, rows: int) -> None:
        """Span number `span` has done `rows` rows."""
        with self._lock:
            self._done[span] = max(rows, self._done.get(span, 0))
            self.moved = time.monotonic()

    def show(self) -> None:
        """Tell the listener."""
        with self._lock:
            rows = sum(self._done.values())
        seconds = time.monotonic() - self.began
        self.listener(
            PassProgress(self.name, rows, rows * self.work.row_bytes, seconds, self.workers, self.memory_bytes)
        )

    def finish(self) -> None:
        """The last word."""
        rows = self.work.rows
        self.listener(PassFinished(self.name, rows, rows * self.work.row_bytes, time.monotonic() - self.began))
