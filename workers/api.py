"""What server and client say to each other: one model for each thing, in JSON, with times as RFC 3339."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines import errors
from pipelines.errors import ClusterUnreachable, TallgrassError
from workers.lifecycle import OVER, State

MOST_LISTED = 500
"""Jobs of one page."""


class Unauthorized(ClusterUnreachable):
    """The server needs a token, and the request carries none that is valid."""


class Forbidden(ClusterUnreachable):
    """The token does not allow this."""


class Reply(BaseModel):
    """What a server answers; a newer server may say more than an older client knows."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Request(BaseModel):
    """What a client asks; a word that the server does not know is an error."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class Problem(Reply):
    """An error in the form of RFC 9457, with the letter that the command line shows."""

    type: str = Field(examples=["urn:tallgrass:BadData"])
    """urn:tallgrass: and the kind of error."""
    title: str
    """The kind of error in words."""
    status: int
    """The HTTP status."""
    detail: str
    """The letter: what was found, what was needed, what to do next."""
    exit_code: int
    """The exit code that the command line ends with."""


class Error(Reply):
    """How a job failed."""

    kind: str
    """The class of the error: BadData, RunFailed, CertificateFallsShort, ..."""
    message: str
    """The letter."""
    exit_code: int
    """What `tallgrass wait` exits with."""


class PassReport(Reply):
    """How far one read of the matrix is."""

    name: str
    """factor, verify, ..."""
    rows: int
    """Rows done."""
    of_rows: int
    """Rows that this pass reads."""
    bytes: int
    """Decoded bytes read."""
    of_bytes: int
    """Decoded bytes that this pass reads."""
    tasks: int
    """Tasks that read."""
    seconds: float
    """Since the pass began."""
    done: bool
    """Whether it is complete."""


class Progress(Reply):
    """What a running job does."""

    passes: list[PassReport] = []
    """Passes so far, the last one going on."""
    workers: int = 0
    """Workers that are connected."""
    memory_bytes: int = 0
    """The most that one worker held."""
    spectrum: list[float] = []
    """Some of the singular values that were found, from the largest to the smallest."""


class Job(Reply):
    """A submitted job."""

    id: str
    """Ten letters and digits; four that are unique are enough to name it."""
    name: str
    """What its submitter calls it."""
    kind: str
    """The kind of job."""
    state: State
    """queued, starting, running, stopping, cancelled, succeeded, failed, or interrupted."""
    priority: int
    """Higher ones are taken first."""
    output: str | None
    """Where the result appears."""
    submitted_at: datetime
    """When it was accepted."""
    started_at: datetime | None
    """When its latest attempt began."""
    finished_at: datetime | None
    """When it was over."""
    attempt: int
    """How often it was begun."""
    exit_code: int | None
    """Once it is over: what `tallgrass run` would have exited with, or 7 when it was cancelled."""
    error: Error | None
    """Why it failed."""
    progress: Progress | None
    """The passes of its latest attempt."""
    dashboard: str | None
    """Dask's dashboard of the cluster that it runs on."""
    retry_of: str | None
    """The job that it repeats."""
    ahead: int | None = None
    """Of a queued job that is asked for by itself: how many will be taken before it."""

    @property
    def over(self) -> bool:
        """Whether nothing happens to it unless somebody asks for it."""
        return self.state in OVER


class JobDetails(Job):
    """A submitted job with what its file said and what came out."""

    job: dict[str, Any]
    """The job file, every field given."""
    summary: dict[str, Any] | None
    """What `tallgrass show --json` prints of the result."""


class Page(Reply):
    """Jobs, the newest first."""

    items: list[Job]
    """At most `limit` of them."""
    next: str | None
    """What to give as `cursor` for the page after this one; null when there is none."""


class LogLine(Reply):
    """One line of a job's log."""

    seq: int
    """Its number: ask for lines after it."""
    attempt: int
    """Which attempt said it."""
    at: datetime
    """When."""
    text: str
    """What."""


class Log(Reply):
    """Lines of a job's log."""

    lines: list[LogLine]
    """In order."""
    over: bool
    """Whether no more will come."""


class JobRequest(Request):
    """One job, to be planned."""

    job: dict[str, Any] | None = Field(None, examples=[{"kind": "svd", "matrix": "/data/A.zarr", "output": "/data/s"}])
    """What a job file says, as JSON."""
    yaml: Annotated[str, Field(max_length=2**20)] | None = None
    """The text of a job file, instead of `job`."""


class SubmitRequest(JobRequest):
    """One job, to be run."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    """What to call it; the last part of its output when left out."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher ones are taken first."""


class ClusterReport(Reply):
    """An agent and its cluster."""

    name: str
    """The agent's place."""
    kind: str
    """The kind of cluster."""
    address: str | None
    """The scheduler, once it runs."""
    dashboard: str | None
    """Its dashboard."""
    error: str | None
    """Why it does not run."""


class ServerReport(Reply):
    """The server."""

    version: str
    """Of Tallgrass."""
    database: str
    """sqlite or postgresql."""
    roots: list[str] | None
    """Where jobs may read and write; anywhere when null."""
    states: dict[State, int]
    """How many jobs are in each state."""
    clusters: list[ClusterReport]
    """Agents that were heard of lately."""


def time_of(seconds: float) -> datetime:
    """A time of the queue as one of the API."""
    return datetime.fromtimestamp(seconds, UTC)


STATUS = {
    "BadData": 422,
    "ClusterUnreachable": 503,
    "Conflict": 409,
    "Forbidden": 403,
    "JobFileError": 422,
    "NoSuchJob": 404,
    "PlanRefused": 422,
    "RunFailed": 503,
    "TooManyOpen": 429,
    "Unauthorized": 401,
}
"""The HTTP status of each error that a request can end with."""


def problem_of(error: TallgrassError, status: int | None = None) -> Problem:
    """The error as it travels."""
    kind = type(error).__name__
    title = (type(error).__doc__ or kind).splitlines()[0]
    code = status or STATUS.get(kind, 500)
    return Problem(type=f"urn:tallgrass:{kind}", title=title, status=code, detail=str(error), exit_code=error.exit_code)


def error_of(problem: Problem) -> TallgrassError:
    """The error that travelled, to be raised on this side: of a class that this version knows."""
    from workers import queue

    kind = problem.type.rpartition(":")[2]
    found = getattr(errors, kind, None) or getattr(queue, kind, None) or globals().get(kind)
    if isinstance(found, type) and issubclass(found, TallgrassError):
        return found(problem.detail)
    error = TallgrassError(problem.detail)
    error.exit_code = problem.exit_code
    return error
