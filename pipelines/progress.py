"""What a run tells while it goes on: small frozen events, sent to whoever listens."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PassStarted:
    """A pass over the matrix begins."""

    name: str
    """The name that the dashboard shows too: factor, verify, ..."""
    number: int
    """1 for the first pass."""
    rows: int
    """Rows (columns of A, when A is wide) that this pass will read."""
    bytes: int
    """Decoded bytes that this pass will read."""
    spans: int
    """Tasks that read; merges come on top."""


@dataclass(frozen=True)
class PassProgress:
    """Some spans moved on."""

    name: str
    rows: int
    """Rows done so far, of PassStarted.rows."""
    bytes: int
    """Decoded bytes read so far."""
    seconds: float
    """Since the pass began."""
    workers: int
    """Workers that are connected now; 0 when the run happens in this process."""
    memory_bytes: int
    """The largest resident memory of one worker, as it last said; 0 when not known."""


@dataclass(frozen=True)
class PassFinished:
    """A pass is complete and its state merged."""

    name: str
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Note:
    """One line for a person: the dashboard's address, a warning, what happens next."""

    text: str


Event = PassStarted | PassProgress | PassFinished | Note
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
