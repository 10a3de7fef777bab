"""The life of a submitted job: a table of states, and which may follow which.

    queued ──▶ starting ──▶ running ──▶ succeeded
      │  ▲         │           │  └────▶ failed
      │  └─────────┴── lost ───┤
      │                        └──────▶ interrupted ──▶ queued (retry)
      ▼            ▼           ▼
    cancelled ◀── stopping ◀───┘

Nothing here knows a database, a process or a clock; the queue makes its triggers from this table.
"""

from enum import StrEnum


class State(StrEnum):
    """What a job is doing."""

    QUEUED = "queued"
    """Waits for its turn, for the first time or again."""
    STARTING = "starting"
    """An agent has taken it; its process and its cluster are being prepared."""
    RUNNING = "running"
    """Its passes run."""
    STOPPING = "stopping"
    """Somebody asked for its end while it ran, and it has not ended yet."""
    CANCELLED = "cancelled"
    """It was stopped, or taken out of the queue; nothing was written."""
    SUCCEEDED = "succeeded"
    """Its result is stored, and reaches what the job file requires."""
    FAILED = "failed"
    """It ended with an error, or its certificate falls short; its exit code says which."""
    INTERRUPTED = "interrupted"
    """What it ran on was lost too often, or nothing moved any more; `retry` queues it again, to go on."""


S = State

AFTER: dict[State, frozenset[State]] = {
    S.QUEUED: frozenset({S.STARTING, S.CANCELLED}),
    S.STARTING: frozenset({S.RUNNING, S.STOPPING, S.SUCCEEDED, S.FAILED, S.INTERRUPTED, S.QUEUED}),
    S.RUNNING: frozenset({S.STOPPING, S.SUCCEEDED, S.FAILED, S.INTERRUPTED, S.QUEUED}),
    # A job may be done before the request reaches it.
    S.STOPPING: frozenset({S.CANCELLED, S.SUCCEEDED, S.FAILED}),
    S.INTERRUPTED: frozenset({S.QUEUED, S.CANCELLED}),
    S.CANCELLED: frozenset(),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
}
"""The states that may follow each."""

TERMINAL = frozenset(state for state, after in AFTER.items() if not after)
"""States that never change."""
ACTIVE = frozenset({S.STARTING, S.RUNNING, S.STOPPING})
"""States in which an agent holds the job."""
OVER = TERMINAL | {S.INTERRUPTED}
"""States in which nothing happens unless somebody asks for it: what `wait` waits for."""

ON_CANCEL = {S.QUEUED: S.CANCELLED, S.INTERRUPTED: S.CANCELLED, S.STARTING: S.STOPPING, S.RUNNING: S.STOPPING}
"""What a request to cancel makes of each state; it changes no other."""
ON_LOSS = {S.STARTING: S.QUEUED, S.RUNNING: S.QUEUED, S.STOPPING: S.CANCELLED}
"""What the loss of its agent makes of each state."""


def may_follow(before: State, after: State) -> bool:
    """Whether a job may go from one state to the other."""
    return after in AFTER[before]
