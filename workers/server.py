"""The HTTP API of the service: thin over the queue, and nothing but the queue.

Every error is a problem document (RFC 9457) that carries the letter which the command line shows.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from pipelines.document import MOST_DEPTH
from pipelines.errors import JobFileError, PlanRefused
from workers import api
from workers.commands import version
from workers.database import readable
from workers.entries import Entry, Line, Selection, Submission
from workers.guard import PROBLEM, Guard, answer_errors
from workers.lifecycle import OVER, State
from workers.places import check_places
from workers.queue import Queue
from workers.tokens import Tokens

MOST_LINES = 1000
"""Of a log in a report."""
MOST_WAIT = 60.0
"""Seconds that a request may wait for something to happen."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the queue while a request waits."""


@dataclass(frozen=True)
class Rules:
    """What this server lets people do."""

    roots: tuple[str, ...] | None = None
    """Where jobs may read and write; anywhere when None."""
    tokens: bool = False
    """Whether every request needs a token."""
    most_open: int = 1000
    """Jobs of one submitter that may wait or run."""
    hosts: tuple[str, ...] | None = None
    """Names under which it may be addressed; a page of another site that points its own name here gets nothing."""
    wake: Callable[[], None] = field(default=lambda: None)
    """Called when there is something to do."""
    plan: Callable[[Any], dict[str, Any]] | None = None
    """The plan of a job on this server's cluster."""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    id: str
    may_submit: bool


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    queue: Queue
    rules: Rules

    def caller(self, authorization: str | None) -> Caller:
        if not self.rules.tokens:
            return Caller("local", may_submit=True)
        scheme, _, token = (authorization or "").partition(" ")
        found = Tokens(self.queue.database).scope_of(token.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise api.Unauthorized(
                "This server needs a token, and the request carries none that is valid. Set TALLGRASS_TOKEN to one "
                "that `tallgrass token create` on the server's machine has made."
            )
        return Caller(found[0], may_submit=found[1] == "submit")

    def job_in(self, body: api.JobRequest) -> Any:
        """The job that a request holds, as a model; its places are ours to open."""
        from pipelines.document import parse_document
        from pipelines.load import job_of

        if (body.job is None) == (body.yaml is None):
            raise JobFileError("needed either `job` or `yaml`: one job, given once")
        if body.yaml is None:
            job = job_of(_plain(body.job))
        else:
            document = parse_document(body.yaml, "job.yaml")
            if document.faults:
                raise JobFileError("\n".join(document.faults))
            job = job_of(document.value, "job.yaml")
        check_places(job.model_dump(mode="json"), self.rules.roots)
        return job

    def submit(self, body: api.SubmitRequest, who: Caller, key: str | None) -> tuple[Entry, bool]:
        job = self.job_in(body).model_dump(mode="json")
        name = body.name or PurePosixPath(job["output"].rstrip("/")).stem[:100] or job["kind"]
        wanted = Submission(job, name, body.priority, who.id, key)
        entry, new = self.queue.submit(wanted, self.rules.most_open)
        if new:
            self.rules.wake()
        return entry, new


def _plain(job: Any, depth: int = 0) -> Any:
    """The job, which is nested no deeper than a job file may be, and holds text that is Unicode."""
    if depth > MOST_DEPTH:
        raise JobFileError(f"found more than {MOST_DEPTH} levels of nesting; a job has three or four")
    if isinstance(job, dict):
        return {_plain(name, depth): _plain(value, depth + 1) for name, value in job.items()}
    if isinstance(job, list):
        return [_plain(value, depth + 1) for value in job]
    if isinstance(job, str) and readable(job) != job:
        raise JobFileError(f"found the text {readable(job)[:60]!r} with NUL or half characters in it; needed Unicode")
    return job


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


Served = Annotated[Service, Depends(_service)]


def _caller(request: Request, service: Served) -> Caller:
    return service.caller(request.headers.get("authorization"))


def _submitter(who: Annotated[Caller, Depends(_caller)]) -> Caller:
    if not who.may_submit:
        raise api.Forbidden("This token may only read. Use one of scope `submit`: tallgrass token create")
    return who


Reader = Annotated[Caller, Depends(_caller)]
Submitter = Annotated[Caller, Depends(_submitter)]
Id = Annotated[str, Path(min_length=1, max_length=40)]
_PRINTED = r"^[^\x00-\x1f]*$"
Wait = Annotated[float, Query(ge=0, le=MOST_WAIT)]
routes = APIRouter()


@routes.get("/health", response_class=PlainTextResponse, tags=["server"])
def health(service: Served) -> str:
    """ok, as long as the queue answers."""
    service.queue.agents()
    return "ok"


@routes.get("/metrics", response_class=PlainTextResponse, tags=["server"])
def metrics(service: Served, _: Reader) -> str:
    """Figures for Prometheus."""
    from workers.metrics import exposition

    return exposition(service.queue)


@routes.get("/v1/server", tags=["server"])
def server(service: Served, _: Reader) -> api.ServerReport:
    """What this server is, and how its clusters are."""
    queue, roots = service.queue, service.rules.roots
    return api.ServerReport(
        version=version(), database=queue.database.kind, states=queue.counts(),
        roots=None if roots is None else list(roots), clusters=[api.ClusterReport(**agent) for agent in queue.agents()],
    )  # fmt: skip


@routes.post("/v1/jobs", status_code=201, responses={200: {"model": api.JobDetails}}, tags=["jobs"])
def submit(
    body: api.SubmitRequest,
    service: Served,
    who: Submitter,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> api.JobDetails:
    """Take a job.  The same `Idempotency-Key` with the same body gives the first job again, with status 200."""
    entry, new = service.submit(body, who, idempotency_key)
    response.status_code = 201 if new else 200
    return details(entry)


@routes.get("/v1/jobs", tags=["jobs"])
def jobs(
    service: Served,
    _: Reader,
    state: Annotated[list[State] | None, Query()] = None,
    name: Annotated[str | None, Query(max_length=200, pattern=_PRINTED)] = None,
    kind: Annotated[str | None, Query(max_length=200, pattern=_PRINTED)] = None,
    limit: Annotated[int, Query(ge=1, le=api.MOST_LISTED)] = 50,
    cursor: Annotated[str | None, Query(pattern="^[0-9]{1,15}$")] = None,
) -> api.Page:
    """Jobs, the newest first."""
    before = None if cursor is None else int(cursor)
    found = service.queue.select(Selection(state or (), name, kind, limit + 1, before))
    more = len(found) > limit
    return api.Page(items=[brief(e) for e in found[:limit]], next=str(found[limit - 1].seq) if more else None)


@routes.get("/v1/jobs/{job}", tags=["jobs"])
async def job(job: Id, service: Served, _: Reader, wait: Wait = 0) -> api.JobDetails:
    """One job; with `wait`, when it is over or so many seconds have passed."""
    end, queue = time.monotonic() + wait, service.queue
    entry = await run_in_threadpool(queue.get, job)
    while entry.state not in OVER and time.monotonic() < end:
        await asyncio.sleep(LOOK_EVERY)
        entry = await run_in_threadpool(queue.get, job)
    ahead = await run_in_threadpool(queue.ahead, entry) if entry.state is State.QUEUED else None
    return details(entry, ahead)


@routes.get("/v1/jobs/{job}/log", tags=["jobs"])
async def log(
    job: Id,
    service: Served,
    _: Reader,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    wait: Wait = 0,
) -> api.Log:
    """Lines of a job's log after number `after`; with `wait`, as soon as there is one."""
    end, queue = time.monotonic() + wait, service.queue
    while True:
        entry = await run_in_threadpool(queue.get, job)
        lines = await run_in_threadpool(queue.log, entry.id, after, limit)
        if lines or entry.state in OVER or time.monotonic() >= end:
            break
        await asyncio.sleep(LOOK_EVERY)
    return api.Log(lines=[_line(line) for line in lines], over=entry.state in OVER and len(lines) < limit)


@routes.get("/v1/jobs/{job}/report", response_class=HTMLResponse, tags=["jobs"])
def report(job: Id, service: Served, _: Reader) -> HTMLResponse:
    """A page about a job that needs no network: what it found, how far to trust it, what it took."""
    from workers.report import render_report

    entry = service.queue.get(job)
    lines = service.queue.log(entry.id, limit=MOST_LINES)
    page = render_report(details(entry), [_line(line) for line in lines])
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


@routes.post("/v1/jobs/{job}/cancel", tags=["jobs"])
def cancel(job: Id, service: Served, _: Submitter) -> api.JobDetails:
    """End a job: a queued one is cancelled at once, a running one is stopping; one that is over stays as it is."""
    entry = service.queue.cancel(job)
    service.rules.wake()
    return details(entry)


@routes.post("/v1/jobs/{job}/retry", tags=["jobs"])
def retry(job: Id, service: Served, who: Submitter) -> api.JobDetails:
    """Queue an interrupted job again; of one that is over, a new one like it."""
    entry = service.queue.retry(job, who.id, service.rules.most_open)
    service.rules.wake()
    return details(entry)


@routes.post("/v1/plans", tags=["jobs"])
def plan(body: api.JobRequest, service: Served, _: Submitter) -> dict[str, Any]:
    """What a job would cost on this server's cluster; nothing is read but metadata."""
    if service.rules.plan is None:
        raise PlanRefused("This server has no cluster of its own to plan for.")
    return service.rules.plan(service.job_in(body))


def create_app(queue: Queue, rules: Rules = Rules()) -> FastAPI:
    """The application; `queue` stays open as long as it."""
    app = FastAPI(
        title="Tallgrass", version=version(), docs_url=None, redoc_url=None,
        description="Submit, watch and stop jobs of linear algebra on matrices larger than memory.",
        responses={"4XX": PROBLEM, "5XX": PROBLEM},
    )  # fmt: skip
    app.state.service = Service(queue, rules)
    app.include_router(routes)
    app.add_middleware(Guard, hosts=rules.hosts)
    answer_errors(app)
    return app


def _line(line: Line) -> api.LogLine:
    return api.LogLine(seq=line.seq, attempt=line.attempt, at=api.time_of(line.at), text=line.text)


def brief(entry: Entry) -> api.Job:
    """A job as lists show it."""
    return api.Job(**_told(entry))


def details(entry: Entry, ahead: int | None = None) -> api.JobDetails:
    """A job with what its file said and what came out."""
    return api.JobDetails(**_told(entry), job=entry.job, summary=entry.summary, ahead=ahead)


def _told(entry: Entry) -> dict[str, Any]:
    same = ("id", "name", "kind", "state", "priority", "output", "attempt", "exit_code", "error", "progress")
    times = ("submitted_at", "started_at", "finished_at")
    return {
        **{name: getattr(entry, name) for name in (*same, "dashboard", "retry_of")},
        **{name: None if (at := getattr(entry, name)) is None else api.time_of(at) for name in times},
    }
