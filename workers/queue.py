"""The durable queue of jobs: one table in SQLite or PostgreSQL, every change of state in one transaction.

Three rules make sure that nothing is lost and nothing runs twice:

- The database itself refuses a change of state that `lifecycle` does not know, by a trigger made from its table.
- A job is taken by one statement, which counts its attempt. Whoever works on it names that attempt in all that it
  writes; once another attempt has begun, or the job is over, such a write changes no row and raises `Fenced`.
- An agent holds its jobs by a lease. When it stops renewing it, they go back into the queue.

Reference: C. G. Gray, D. R. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency" (1989).
"""

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from pipelines.errors import JobFileError, PlanRefused, RunFailed
from workers.lifecycle import ACTIVE, AFTER, ON_CANCEL, ON_LOSS, OVER, State

SCHEMA = 1
"""The form of the tables; a database of another one is refused."""
LEASE_SECONDS = 20.0
"""An agent that has not been heard of for so long is taken for dead."""
MOST_LOSSES = 10
"""Agents or clusters that a job may lose before it waits for somebody to look."""
MOST_CRASHES = 3
"""Times that a job's own process may die before the job counts as the cause."""
BUSY_SECONDS = 30.0
"""Time to wait for another process's write to SQLite."""

metadata = sql.MetaData()

jobs = sql.Table(
    "jobs",
    metadata,
    sql.Column("seq", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("id", sql.String(16), nullable=False, unique=True),
    sql.Column("name", sql.String(200), nullable=False),
    sql.Column("kind", sql.String(40), nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("priority", sql.Integer, nullable=False),
    sql.Column("job", sql.Text, nullable=False),
    sql.Column("output", sql.Text),
    sql.Column("submitter", sql.String(40), nullable=False),
    sql.Column("idempotency_key", sql.String(200)),
    sql.Column("request", sql.String(64), nullable=False),
    sql.Column("retry_of", sql.String(16)),
    sql.Column("submitted_at", sql.Float, nullable=False),
    sql.Column("queued_at", sql.Float, nullable=False),
    sql.Column("started_at", sql.Float),
    sql.Column("finished_at", sql.Float),
    sql.Column("attempt", sql.Integer, nullable=False, default=0),
    sql.Column("losses", sql.Integer, nullable=False, default=0),
    sql.Column("crashes", sql.Integer, nullable=False, default=0),
    sql.Column("waited", sql.Float, nullable=False, default=0.0),
    sql.Column("passes", sql.Integer, nullable=False, default=0),
    sql.Column("bytes_read", sql.BigInteger, nullable=False, default=0),
    sql.Column("agent", sql.String(200)),
    sql.Column("lease_until", sql.Float),
    sql.Column("process", sql.Text),
    sql.Column("dashboard", sql.Text),
    sql.Column("progress", sql.Text),
    sql.Column("exit_code", sql.Integer),
    sql.Column("error", sql.Text),
    sql.Column("summary", sql.Text),
    sql.UniqueConstraint("submitter", "idempotency_key"),
    sql.Index("jobs_by_turn", "state", sql.desc("priority"), "seq"),
    sql.Index("jobs_by_state", "state", "seq"),
    sql.Index("jobs_by_output", "output", "state"),
    sql.Index("jobs_by_name", "name", "seq"),
    sql.Index("jobs_by_kind", "kind", "seq"),
    sqlite_autoincrement=True,
)

log_lines = sql.Table(
    "log_lines",
    metadata,
    sql.Column("seq", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("job", sql.String(16), nullable=False),
    sql.Column("attempt", sql.Integer, nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("text", sql.Text, nullable=False),
    sql.Index("lines_by_job", "job", "seq"),
    sqlite_autoincrement=True,
)

tokens = sql.Table(
    "tokens",
    metadata,
    sql.Column("id", sql.String(16), primary_key=True),
    sql.Column("name", sql.String(200), nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
    sql.Column("scope", sql.String(16), nullable=False),
    sql.Column("created_at", sql.Float, nullable=False),
    sql.Column("revoked_at", sql.Float),
)

agents = sql.Table(
    "agents",
    metadata,
    sql.Column("name", sql.String(200), primary_key=True),
    sql.Column("seen_at", sql.Float, nullable=False),
    sql.Column("cluster", sql.Text),
)

facts = sql.Table(
    "facts", metadata, sql.Column("name", sql.String(40), primary_key=True), sql.Column("value", sql.Text)
)

DOCUMENTS = ("job", "process", "progress", "error", "summary")
"""Columns that hold JSON."""


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


_ENTRY = [jobs.c[name] for name in Entry.__dataclass_fields__]


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


@dataclass
class Queue:
    """The table of jobs, for servers, agents and tools; safe to use from many threads and processes."""

    url: str
    """sqlite:///path or postgresql://user@host/database."""
    clock: Any = time.time
    _write: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._engine = _engine(self.url)
        try:
            with _told(self.url):
                self._prepare()
        except BaseException:
            self.close()
            raise

    # Submitting

    def submit(self, wanted: Submission, most_open: int | None = None) -> tuple[Entry, bool]:
        """The job, and whether it is new: the same key with the same request gives the job that is there.

        Raises:
            Conflict: the key was used for another request.
            TooManyOpen: this submitter has `most_open` jobs that are not over.
        """
        row = {
            "id": new_id(), "name": wanted.name, "kind": str(wanted.job["kind"]), "state": State.QUEUED,
            "priority": wanted.priority, "job": as_json(dict(wanted.job)), "output": place_of(wanted.job.get("output")),
            "submitter": wanted.submitter, "idempotency_key": wanted.idempotency_key, "request": wanted.request,
            "retry_of": wanted.retry_of, "submitted_at": self.clock(),
            "queued_at": self.clock(),
        }  # fmt: skip
        try:
            with self._transaction() as connection:
                if found := self._submitted(connection, wanted):
                    return found, False
                if most_open is not None:
                    self._refuse_more(connection, wanted.submitter, most_open)
                made = connection.execute(sql.insert(jobs).values(row).returning(*_ENTRY)).mappings().one()
                return _entry(made), True
        except IntegrityError:  # another process submitted with the same key in this very moment
            with self._reading() as connection:
                found = self._submitted(connection, wanted)
            if found is None:
                raise
            return found, False

    def _submitted(self, connection: sql.Connection, wanted: Submission) -> Entry | None:
        if wanted.idempotency_key is None:
            return None
        same = (jobs.c.submitter == wanted.submitter) & (jobs.c.idempotency_key == wanted.idempotency_key)
        row = connection.execute(sql.select(*_ENTRY, jobs.c.request).where(same)).mappings().one_or_none()
        if row is None:
            return None
        if row["request"] != wanted.request:
            raise Conflict(
                f'The idempotency key "{wanted.idempotency_key}" was used for another request, which became job '
                f"{row['id']}. Use a new key for a new job, or send the same request."
            )
        return _entry({name: value for name, value in row.items() if name != "request"})

    def _refuse_more(self, connection: sql.Connection, submitter: str, most: int) -> None:
        is_open = (jobs.c.submitter == submitter) & jobs.c.state.in_([s for s in State if s not in OVER])
        count = connection.execute(sql.select(sql.func.count()).select_from(jobs).where(is_open)).scalar_one()
        if count >= most:
            raise TooManyOpen(
                f"{count:,} of your jobs are waiting or running, and this server takes at most {most:,} of each "
                "submitter. Wait for some, or cancel some: tallgrass list --state queued"
            )

    # Looking

    def get(self, job: str) -> Entry:
        """The job of that id, or of the only one that begins so (four characters or more).

        Raises:
            NoSuchJob: there is none, or there are several.
        """
        with self._reading() as connection:
            rows = []
            if len(job) >= 4 and job.isascii() and job.isalnum():
                row = connection.execute(sql.select(*_ENTRY).where(jobs.c.id == job)).mappings().one_or_none()
                if row is not None:
                    return _entry(row)
                query = sql.select(*_ENTRY).where(jobs.c.id.startswith(job)).limit(2)
                rows = list(connection.execute(query).mappings())
        if len(rows) != 1:
            what = f"Several jobs begin with {job}. Give more of the id." if rows else f'There is no job "{job[:40]}".'
            raise NoSuchJob(f"{what} `tallgrass list` shows those that there are.")
        return _entry(rows[0])

    def select(self, selection: Selection = Selection()) -> list[Entry]:
        """Jobs, the newest first; their summaries are left out."""
        columns = [column for column in _ENTRY if column.name != "summary"]
        query = sql.select(*columns).order_by(jobs.c.seq.desc()).limit(selection.limit)
        if selection.states:
            query = query.where(jobs.c.state.in_(list(selection.states)))
        for name in ("name", "kind"):
            if (wanted := getattr(selection, name)) is not None:
                query = query.where(jobs.c[name] == wanted)
        if selection.before is not None:
            query = query.where(jobs.c.seq < selection.before)
        with self._reading() as connection:
            return [_entry({**row, "summary": None}) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        query = sql.select(jobs.c.state, sql.func.count()).group_by(jobs.c.state)
        with self._reading() as connection:
            found: dict[str, int] = dict(connection.execute(query).all())
        return {state: found.get(state, 0) for state in State}

    def totals(self) -> dict[str, float]:
        """Sums over all jobs, for metrics."""
        c, sums = jobs.c, sql.func
        query = sql.select(
            sums.count(c.seq).label("submitted"),
            sums.coalesce(sums.sum(c.attempt), 0).label("attempts"),
            sums.coalesce(sums.sum(c.waited), 0.0).label("waited"),
            sums.coalesce(sums.sum(c.passes), 0).label("passes"),
            sums.coalesce(sums.sum(c.bytes_read), 0).label("bytes"),
        )
        oldest = sql.select(sums.min(c.queued_at)).where(c.state == State.QUEUED)
        with self._reading() as connection:
            found = {name: float(value) for name, value in connection.execute(query).mappings().one().items()}
            since = connection.execute(oldest).scalar_one()
        return found | {"oldest_wait": 0.0 if since is None else max(0.0, self.clock() - since)}

    def ahead(self, entry: Entry) -> int:
        """Jobs that will be taken before this one, which is queued."""
        before = (jobs.c.priority > entry.priority) | ((jobs.c.priority == entry.priority) & (jobs.c.seq < entry.seq))
        query = sql.select(sql.func.count()).select_from(jobs).where((jobs.c.state == State.QUEUED) & before)
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def log(self, job: str, after: int = 0, limit: int = 1000) -> list[Line]:
        """Lines of a job's log whose numbers are above `after`, in order."""
        query = (
            sql.select(log_lines.c.seq, log_lines.c.attempt, log_lines.c.at, log_lines.c.text)
            .where((log_lines.c.job == job) & (log_lines.c.seq > after))
            .order_by(log_lines.c.seq)
            .limit(limit)
        )
        with self._reading() as connection:
            return [Line(*row) for row in connection.execute(query)]

    # Asking for something

    def cancel(self, job: str) -> Entry:
        """The job, on its way to its end; one that is over stays as it is.

        Raises:
            NoSuchJob: there is none of that id.
        """
        entry = self.get(job)
        ends = jobs.c.state.in_([before for before, after in ON_CANCEL.items() if after is State.CANCELLED])
        values = {
            "state": sql.case(*((jobs.c.state == before, after) for before, after in ON_CANCEL.items())),
            "finished_at": sql.case((ends, self.clock())),
            "exit_code": sql.case((ends, 7)),
        }
        with self._transaction() as connection:  # in one step, since its state may change in both directions
            here = (jobs.c.id == entry.id) & jobs.c.state.in_(list(ON_CANCEL))
            connection.execute(sql.update(jobs).where(here).values(values))
        return self.get(entry.id)

    def retry(self, job: str, submitter: str = "local", most_open: int | None = None) -> Entry:
        """The same job queued again when it was interrupted; a new one like it when it is over.

        Raises:
            JobFileError: it waits or runs.
            NoSuchJob: there is none of that id.
        """
        entry = self.get(job)
        if entry.state is State.INTERRUPTED:
            with self._transaction() as connection:
                here = (jobs.c.id == entry.id) & (jobs.c.state == State.INTERRUPTED)
                again = {"state": State.QUEUED, "losses": 0, "crashes": 0, "finished_at": None}
                again |= {"exit_code": None, "error": None, "queued_at": self.clock()}
                connection.execute(sql.update(jobs).where(here).values(again))
            return self.get(entry.id)
        if entry.state not in OVER:
            raise JobFileError(f"Job {entry.id} is {entry.state}: it cannot be tried again before it is over.")
        wanted = Submission(entry.job, entry.name, entry.priority, submitter, retry_of=entry.id)
        return self.submit(wanted, most_open)[0]

    # Working: every write names the attempt that it belongs to

    def claim(self, agent: str) -> Entry | None:
        """The next job, now held by this agent for LEASE_SECONDS, with a new attempt; None when none waits.

        Of jobs that write to the same place one is taken at a time.
        """
        other = jobs.alias()
        writes_there = sql.select(other.c.seq).where((other.c.output == jobs.c.output) & other.c.state.in_(ACTIVE))
        turn = (
            sql.select(jobs.c.seq)
            .where((jobs.c.state == State.QUEUED) & ~sql.exists(writes_there))
            .order_by(jobs.c.priority.desc(), jobs.c.seq)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        now = self.clock()
        values = {
            "state": State.STARTING, "attempt": jobs.c.attempt + 1, "agent": agent, "started_at": now,
            "lease_until": now + LEASE_SECONDS,
            "waited": jobs.c.waited + (now - jobs.c.queued_at), "progress": None, "process": None, "dashboard": None,
        }  # fmt: skip
        with self._transaction() as connection:
            _one_at_a_time(connection)  # or two could take jobs that write to one place
            statement = sql.update(jobs).where(jobs.c.seq == turn.scalar_subquery()).values(values)
            row = connection.execute(statement.returning(*_ENTRY)).mappings().one_or_none()
        return None if row is None else _entry(row)

    def update(
        self, entry: Entry, state: State | None = None, more: Mapping[str, int] | None = None, **values: Any
    ) -> None:
        """What this attempt has to say: its process, its progress, its next state; `more` is added to counts.

        Raises:
            Fenced: the job is not this attempt's any more.
        """
        values = {name: as_json(value) if name in DOCUMENTS else value for name, value in values.items()}
        values |= {name: jobs.c[name] + count for name, count in (more or {}).items()}
        if state is not None:
            values["state"] = state
            if state in OVER:
                values |= {"finished_at": self.clock(), "lease_until": None, "agent": None}
        before = [s for s in ACTIVE if state is None or s == state or state in AFTER[s]]
        ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt) & jobs.c.state.in_(before)
        with self._transaction() as connection:
            if not connection.execute(sql.update(jobs).where(ours).values(values)).rowcount:
                raise Fenced(entry.id)

    def may_commit(self, entry: Entry) -> bool:
        """Whether this attempt may let its result appear: it is the latest, and nobody asked for its end."""
        ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt) & (jobs.c.state == State.RUNNING)
        with self._transaction() as connection:
            held = sql.update(jobs).where(ours).values(lease_until=self.clock() + LEASE_SECONDS)
            return bool(connection.execute(held).rowcount)

    def lose(self, entry: Entry, why: str, *, crashed: bool = False) -> State:
        """What becomes of a job whose process, agent or cluster is gone: queued again, unless that happens too often.

        Raises:
            Fenced: the job is not this attempt's any more.
        """
        with self._transaction() as connection:
            return self._lose(connection, entry, why, crashed=crashed)

    def _lose(self, connection: sql.Connection, entry: Entry, why: str, *, crashed: bool) -> State:
        ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt)
        columns = (jobs.c.state, jobs.c.losses, jobs.c.crashes)
        row = connection.execute(sql.select(*columns).where(ours).with_for_update()).one_or_none()
        if row is None or State(row.state) not in ON_LOSS:
            raise Fenced(entry.id)
        losses, crashes = row.losses + (not crashed), row.crashes + crashed
        values: dict[str, Any] = {"losses": losses, "crashes": crashes, "agent": None, "lease_until": None}
        values["queued_at"] = self.clock()
        state = ON_LOSS[State(row.state)]
        if state is State.CANCELLED:
            values |= {"exit_code": 7, "finished_at": self.clock()}
        elif crashes >= MOST_CRASHES:
            state = State.FAILED
            letter = f"{why} This was the {crashes}rd time, so the job itself is taken for the cause."
            values |= _failed(letter.replace("1rd", "1st").replace("2rd", "2nd"), self.clock())
        elif losses >= MOST_LOSSES:
            state = State.INTERRUPTED
            values |= _failed(
                f"{why} That happened {losses} times. `tallgrass retry {entry.id}` goes on.", self.clock()
            )
        connection.execute(sql.update(jobs).where(ours).values(values | {"state": state}))
        note = f"{why} The job is {state}." if state is not State.QUEUED else f"{why} The job is queued again."
        self._add(connection, entry, [note])
        return state

    def release(self, entry: Entry) -> None:
        """Give a job back whose agent is being stopped in an orderly way: no loss, and its turn is kept.

        Raises:
            Fenced: the job is not this attempt's any more.
        """
        for before, after in ON_LOSS.items():
            ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt) & (jobs.c.state == before)
            values: dict[str, Any] = {"state": after, "agent": None, "lease_until": None, "queued_at": self.clock()}
            if after is State.CANCELLED:
                values |= {"exit_code": 7, "finished_at": self.clock()}
            with self._transaction() as connection:
                if connection.execute(sql.update(jobs).where(ours).values(values)).rowcount:
                    return
        raise Fenced(entry.id)

    def renew(self, agent: str) -> dict[str, State]:
        """The agent lives: its jobs stay its own. The state of each of them, by id."""
        held = (jobs.c.agent == agent) & jobs.c.state.in_(ACTIVE)
        statement = sql.update(jobs).where(held).values(lease_until=self.clock() + LEASE_SECONDS)
        with self._transaction() as connection:
            rows = connection.execute(statement.returning(jobs.c.id, jobs.c.state))
            return {job: State(state) for job, state in rows}

    def recover(self, agent: str | None = None) -> list[Entry]:
        """Jobs of agents that are dead, queued again: of this one, or of all whose lease has ended."""
        gone = jobs.c.agent == agent if agent is not None else jobs.c.lease_until < self.clock()
        query = sql.select(*_ENTRY).where(gone & jobs.c.state.in_(ACTIVE)).with_for_update(skip_locked=True)
        with self._transaction() as connection:
            found = [_entry(row) for row in connection.execute(query).mappings()]
            for entry in found:
                self._lose(connection, entry, "What ran the job was lost.", crashed=False)
        return found

    def add_lines(self, entry: Entry, texts: Sequence[str]) -> None:
        """Lines of the job's log, of this attempt."""
        with self._transaction() as connection:
            self._add(connection, entry, texts)

    def _add(self, connection: sql.Connection, entry: Entry, texts: Sequence[str]) -> None:
        if texts:
            row = {"job": entry.id, "attempt": entry.attempt, "at": self.clock()}
            connection.execute(sql.insert(log_lines), [row | {"text": readable(text)} for text in texts])

    # Agents

    def announce(self, agent: str, cluster: Mapping[str, Any]) -> None:
        """The agent is there, and this is its cluster: {"address", "dashboard"}, or {"error"}."""
        values = {"seen_at": self.clock(), "cluster": json.dumps(dict(cluster))}
        with self._transaction() as connection:
            if not connection.execute(sql.update(agents).where(agents.c.name == agent).values(values)).rowcount:
                connection.execute(sql.insert(agents).values(name=agent, **values))

    def agents(self) -> list[dict[str, Any]]:
        """Agents that were heard of lately, with their clusters."""
        query = sql.select(agents).where(agents.c.seen_at > self.clock() - LEASE_SECONDS).order_by(agents.c.name)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [{"name": row["name"], **json.loads(row["cluster"])} for row in rows]

    # Tokens

    def create_token(self, name: str, scope: str) -> str:
        """A new token, which is shown once: the database keeps its hash."""
        token_id, secret = new_id(), secrets.token_urlsafe(32)
        with self._transaction() as connection:
            row = {"id": token_id, "name": name, "hash": hashed(secret), "scope": scope, "created_at": self.clock()}
            connection.execute(sql.insert(tokens).values(row))
        return f"tg_{token_id}_{secret}"

    def revoke_token(self, token_id: str) -> bool:
        """Whether there was such a token; it opens nothing any more."""
        here = (tokens.c.id == token_id) & tokens.c.revoked_at.is_(None)
        with self._transaction() as connection:
            return bool(connection.execute(sql.update(tokens).where(here).values(revoked_at=self.clock())).rowcount)

    def tokens(self) -> list[dict[str, Any]]:
        """All tokens, without what would open anything."""
        columns = [column for column in tokens.c if column.name != "hash"]
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(sql.select(*columns).order_by("created_at")).mappings()]

    def scope_of(self, token: str) -> tuple[str, str] | None:
        """(id, scope) of a token that is valid, compared in constant time; None for any other text."""
        prefix, _, rest = token.partition("_")
        token_id, _, secret = rest.partition("_")
        with self._reading() as connection:
            query = sql.select(tokens).where((tokens.c.id == token_id) & tokens.c.revoked_at.is_(None))
            row = connection.execute(query).mappings().one_or_none()
        expected = row["hash"] if row is not None else hashed("")
        same = secrets.compare_digest(hashed(secret), expected)
        return (row["id"], row["scope"]) if row is not None and prefix == "tg" and same else None

    # The database

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sql.Connection]:
        with self._write, _told(self.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with _told(self.url), self._engine.connect().execution_options(reads=True) as connection:
            yield connection

    def _prepare(self) -> None:
        with self._write, self._engine.begin() as connection:
            _one_at_a_time(connection)
            metadata.create_all(connection)
            _make_trigger(connection)
            found = connection.execute(sql.select(facts.c.value).where(facts.c.name == "schema")).scalar_one_or_none()
            if found is None:
                connection.execute(sql.insert(facts).values(name="schema", value=str(SCHEMA)))
            elif found != str(SCHEMA):
                raise RunFailed(
                    f"The queue at {shown_url(self.url)} has tables of form {found}, and this version of Tallgrass "
                    f"needs form {SCHEMA}. Use the version that made it, or another database."
                )


def readable(text: str) -> str:
    """The text without what no database keeps and no JSON can say: NUL, and names of files that are not Unicode."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def as_json(value: Any) -> str:
    """A document as it is kept."""
    return readable(json.dumps(value, ensure_ascii=False))


def place_of(output: str | None) -> str | None:
    """Where a job writes, spelled in one way."""
    if output is None or "://" in output.removeprefix("file://"):
        return output
    return os.path.realpath(output.removeprefix("file://"))


def new_id() -> str:
    """Ten letters and digits that nobody mistakes for each other: 50 random bits."""
    return "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(10))


def hashed(secret: str) -> str:
    """What the database keeps of a token: secrets of 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shown_url(url: str) -> str:
    """A database's address without its password."""
    address = sql.make_url(url)
    return address.difference_update_query(["password"]).render_as_string(hide_password=True)


def _failed(letter: str, now: float) -> dict[str, Any]:
    error = {"kind": "RunFailed", "message": letter, "exit_code": 1}
    return {"error": as_json(error), "exit_code": 1, "finished_at": now}


def _entry(row: Mapping[Any, Any]) -> Entry:
    values = dict(row)
    for name in DOCUMENTS:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Entry(**values | {"state": State(values["state"])})


def _engine(url: str) -> sql.Engine:
    try:
        address = sql.make_url(url)
    except (SQLAlchemyError, ValueError):
        raise JobFileError(
            "The address of the database cannot be read; needed sqlite:///PATH or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
        return _sqlite(address)
    if address.get_backend_name() == "postgresql":
        return sql.create_engine(address.set(drivername="postgresql+psycopg"), pool_size=10, pool_pre_ping=True)
    what = (
        "in memory, which would forget"
        if address.get_backend_name() == "sqlite"
        else f"of kind {address.get_backend_name()}"
    )
    raise JobFileError(f"found a database {what}; needed sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE")


def _sqlite(address: sql.URL) -> sql.Engine:
    assert address.database is not None
    Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sql.create_engine(
        address, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=20, max_overflow=40
    )

    @sql.event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        # A transaction that will write takes its lock at once: one that reads first could not get it any more.
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _one_at_a_time(connection: sql.Connection) -> None:
    """Until the transaction ends, no other process is at this point; SQLite lets one write at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264551)")


def _make_trigger(connection: sql.Connection) -> None:
    """Let the database refuse what `lifecycle` does not know."""
    pairs = " OR ".join(
        f"(OLD.state = '{before}' AND NEW.state IN ({', '.join(repr(str(s)) for s in sorted(after))}))"
        for before, after in AFTER.items()
        if after
    )
    wrong = f"OLD.state <> NEW.state AND NOT ({pairs})"
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            f"CREATE TRIGGER IF NOT EXISTS lifecycle BEFORE UPDATE OF state ON jobs WHEN {wrong} "
            "BEGIN SELECT RAISE(ABORT, 'no such change of state'); END"
        )
        return
    connection.exec_driver_sql(
        "CREATE OR REPLACE FUNCTION tallgrass_lifecycle() RETURNS trigger AS $$ BEGIN "
        f"IF {wrong} THEN RAISE EXCEPTION 'no such change of state'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
    )
    connection.exec_driver_sql(
        "CREATE OR REPLACE TRIGGER lifecycle BEFORE UPDATE OF state ON jobs "
        "FOR EACH ROW EXECUTE FUNCTION tallgrass_lifecycle()"
    )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a database says, as a letter; broken rules of ours pass through."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, OSError) as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise RunFailed(
            f"The queue at {shown_url(url)} cannot be used: {cause}. Check that it runs, that there is space on its "
            "disk, and that this user may write there."
        ) from error
