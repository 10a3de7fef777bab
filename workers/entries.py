"""What the queue of jobs is asked, what it answers, and what it refuses."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import JobFileError, PlanRefused
from workers.lifecycle import State


class Fenced(Exception):
    """Another attempt has begun, or the job is over: what this one says counts no more."""


class Conflict(JobFileError):
    """The same idempotency key with another request."""


class NoSuchJob(JobFileError):
    """There is no job of that id."""


class TooManyOpen(PlanRefused):
    """This submitter has as many jobs waiting or running as a server allows."""


@dataclass(frozen=True)
class Entry:
    """A job as the queue knows it; times are seconds since 1970."""

    seq: int
    id: str
    name: str
    kind: str
    state: State
    priority: int
    job: dict[str, Any]
    output: str | None
    submitter: str
    retry_of: str | None
    submitted_at: float
    started_at: float | None
    """When its latest attempt began."""
    finished_at: float | None
    attempt: int
    losses: int
    crashes: int
    agent: str | None
    lease_until: float | None
    process: dict[str, Any] | None
    dashboard: str | None
    progress: dict[str, Any] | None
    exit_code: int | None
    error: dict[str, Any] | None
    summary: dict[str, Any] | None


@dataclass(frozen=True)
class Line:
    """One line of a job's log."""

    seq: int
    attempt: int
    at: float
    text: str


@dataclass(frozen=True)
class Submission:
    """What somebody wants to be done."""

    job: Mapping[str, Any]
    name: str
    priority: int = 0
    submitter: str = "local"
    idempotency_key: str | None = None
    retry_of: str | None = None

    @property
    def request(self) -> str:
        """What two submissions with the same key must have in common."""
        body = {"job": self.job, "name": self.name, "priority": self.priority, "retry_of": self.retry_of}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Selection:
    """Which jobs to list, the newest first."""

    states: Sequence[State] = ()
    name: str | None = None
    kind: str | None = None
    limit: int = 50
    before: int | None = None
    """Only jobs with a smaller sequence number: where the page before ended."""
