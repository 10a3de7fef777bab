"""The durable queue of jobs: one table in SQLite or PostgreSQL, every change of state in one transaction.

Three rules make sure that nothing is lost and nothing runs twice:

- The database itself refuses a change of state that `lifecycle` does not know.
- A job is taken by one statement, which counts its attempt. Whoever works on it names that attempt in all that it
  writes; once another attempt has begun, or the job is over, such a write changes no row and raises `Fenced`.
- An agent holds its jobs by a lease. When it stops renewing it, they go back into the queue.

Reference: C. G. Gray, D. R. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency" (1989).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from pipelines.errors import JobFileError
from pipelines.jobs.base import canonical
from workers.database import DOCUMENTS, Database, agents, as_json, jobs, log_lines, new_id, one_at_a_time, readable
from workers.entries import Conflict, Entry, Fenced, Line, NoSuchJob, Selection, Submission, TooManyOpen
from workers.lifecycle import ACTIVE, AFTER, ON_CANCEL, ON_LOSS, OVER, State

LEASE_SECONDS = 20.0
"""An agent that has not been heard of for so long is taken for dead."""
MOST_LOSSES = 10
"""Agents or clusters that a job may lose before it waits for somebody to look."""
MOST_CRASHES = 3
"""Times that a job's own process may die before the job counts as the cause."""
ALL = Selection()
"""The newest jobs, whatever they are."""

_ENTRY = [jobs.c[name] for name in Entry.__dataclass_fields__]


class Queue:
    """The table of jobs, for servers, agents and tools; safe to use from many threads and processes."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.database = Database(url, clock)
        self.clock = self.database.clock

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    # Submitting

    def submit(self, wanted: Submission, most_open: int | None = None) -> tuple[Entry, bool]:
        """The job, and whether it is new: the same key with the same request gives the job that is there.

        Raises:
            Conflict: the key was used for another request.
            TooManyOpen: this submitter has `most_open` jobs that are not over.
        """
        row = {
            "id": new_id(), "name": wanted.name, "kind": str(wanted.job["kind"]), "state": State.QUEUED,
            "priority": wanted.priority, "job": as_json(dict(wanted.job)), "output": _place(wanted.job.get("output")),
            "submitter": wanted.submitter, "idempotency_key": wanted.idempotency_key, "request": wanted.request,
            "retry_of": wanted.retry_of, "submitted_at": self.clock(),
            "queued_at": self.clock(),
        }  # fmt: skip
        try:
            with self.database.transaction() as connection:
                if found := self._submitted(connection, wanted):
                    return found, False
                if most_open is not None:
                    self._refuse_more(connection, wanted.submitter, most_open)
                made = connection.execute(sql.insert(jobs).values(row).returning(*_ENTRY)).mappings().one()
                return _entry(made), True
        except IntegrityError:  # another process submitted with the same key in this very moment
            with self.database.reading() as connection:
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
        with self.database.reading() as connection:
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

    def select(self, selection: Selection = ALL) -> list[Entry]:
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
        with self.database.reading() as connection:
            return [_entry({**row, "summary": None}) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        query = sql.select(jobs.c.state, sql.func.count()).group_by(jobs.c.state)
        with self.database.reading() as connection:
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
        with self.database.reading() as connection:
            found = {name: float(value) for name, value in connection.execute(query).mappings().one().items()}
            since = connection.execute(oldest).scalar_one()
        return found | {"oldest_wait": 0.0 if since is None else max(0.0, self.clock() - since)}

    def ahead(self, entry: Entry) -> int:
        """Jobs that will be taken before this one, which is queued."""
        before = (jobs.c.priority > entry.priority) | ((jobs.c.priority == entry.priority) & (jobs.c.seq < entry.seq))
        query = sql.select(sql.func.count()).select_from(jobs).where((jobs.c.state == State.QUEUED) & before)
        with self.database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def log(self, job: str, after: int = 0, limit: int = 1000) -> list[Line]:
        """Lines of a job's log whose numbers are above `after`, in order."""
        query = (
            sql.select(log_lines.c.seq, log_lines.c.attempt, log_lines.c.at, log_lines.c.text)
            .where((log_lines.c.job == job) & (log_lines.c.seq > after))
            .order_by(log_lines.c.seq)
            .limit(limit)
        )
        with self.database.reading() as connection:
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
        with self.database.transaction() as connection:  # in one step, since its state may change in both directions
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
            with self.database.transaction() as connection:
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
        with self.database.transaction() as connection:
            one_at_a_time(connection)  # or two could take jobs that write to one place
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
        with self.database.transaction() as connection:
            if not connection.execute(sql.update(jobs).where(ours).values(values)).rowcount:
                raise Fenced(entry.id)

    def may_commit(self, entry: Entry) -> bool:
        """Whether this attempt may let its result appear: it is the latest, and nobody asked for its end."""
        ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt) & (jobs.c.state == State.RUNNING)
        with self.database.transaction() as connection:
            held = sql.update(jobs).where(ours).values(lease_until=self.clock() + LEASE_SECONDS)
            return bool(connection.execute(held).rowcount)

    def lose(self, entry: Entry, why: str, *, crashed: bool = False) -> State:
        """What becomes of a job whose process, agent or cluster is gone: queued again, unless that happens too often.

        Raises:
            Fenced: the job is not this attempt's any more.
        """
        with self.database.transaction() as connection:
            return self._lose(connection, entry, why, losses=not crashed, crashes=crashed)

    def release(self, entry: Entry) -> State:
        """Give a job back whose agent is being stopped in an orderly way: no loss, and its turn is kept.

        Raises:
            Fenced: the job is not this attempt's any more.
        """
        with self.database.transaction() as connection:
            return self._lose(connection, entry, "The server was stopped.")

    def _lose(
        self, connection: sql.Connection, entry: Entry, why: str, *, losses: bool = False, crashes: bool = False
    ) -> State:
        ours = (jobs.c.id == entry.id) & (jobs.c.attempt == entry.attempt)
        columns = (jobs.c.state, jobs.c.losses, jobs.c.crashes)
        row = connection.execute(sql.select(*columns).where(ours).with_for_update()).one_or_none()
        if row is None or State(row.state) not in ON_LOSS:
            raise Fenced(entry.id)
        state, now = ON_LOSS[State(row.state)], self.clock()
        values: dict[str, Any] = {"agent": None, "lease_until": None, "queued_at": now}
        values |= {"losses": row.losses + losses, "crashes": row.crashes + crashes}
        if state is State.CANCELLED:
            values |= {"exit_code": 7, "finished_at": now}
        elif values["crashes"] >= MOST_CRASHES:
            state = State.FAILED
            often = f"That happened {MOST_CRASHES} times, so the job itself is taken for the cause."
            values |= _failed(f"{why} {often}", now)
        elif values["losses"] >= MOST_LOSSES:
            state = State.INTERRUPTED
            values |= _failed(f"{why} That happened {MOST_LOSSES} times. `tallgrass retry {entry.id}` goes on.", now)
        connection.execute(sql.update(jobs).where(ours).values(values | {"state": state}))
        self._add(connection, entry, [f"{why} The job is {'queued again' if state is State.QUEUED else state}."])
        return state

    def renew(self, agent: str) -> dict[str, State]:
        """The agent lives: its jobs stay its own. The state of each of them, by id."""
        held = (jobs.c.agent == agent) & jobs.c.state.in_(ACTIVE)
        statement = sql.update(jobs).where(held).values(lease_until=self.clock() + LEASE_SECONDS)
        with self.database.transaction() as connection:
            rows = connection.execute(statement.returning(jobs.c.id, jobs.c.state))
            return {job: State(state) for job, state in rows}

    def recover(self, agent: str | None = None) -> list[Entry]:
        """Jobs of agents that are dead, queued again: of this one, or of all whose lease has ended."""
        gone = jobs.c.agent == agent if agent is not None else jobs.c.lease_until < self.clock()
        query = sql.select(*_ENTRY).where(gone & jobs.c.state.in_(ACTIVE)).with_for_update(skip_locked=True)
        with self.database.transaction() as connection:
            found = [_entry(row) for row in connection.execute(query).mappings()]
            for entry in found:
                self._lose(connection, entry, "What ran the job was lost.", losses=True)
        return found

    def add_lines(self, entry: Entry, texts: Sequence[str]) -> None:
        """Lines of the job's log, of this attempt."""
        with self.database.transaction() as connection:
            self._add(connection, entry, texts)

    def _add(self, connection: sql.Connection, entry: Entry, texts: Sequence[str]) -> None:
        if texts:
            row = {"job": entry.id, "attempt": entry.attempt, "at": self.clock()}
            connection.execute(sql.insert(log_lines), [row | {"text": readable(text)} for text in texts])

    # Agents

    def announce(self, agent: str, cluster: Mapping[str, Any]) -> None:
        """The agent is there, and this is its cluster: {"address", "dashboard"}, or {"error"}."""
        values = {"seen_at": self.clock(), "cluster": json.dumps(dict(cluster))}
        with self.database.transaction() as connection:
            if not connection.execute(sql.update(agents).where(agents.c.name == agent).values(values)).rowcount:
                connection.execute(sql.insert(agents).values(name=agent, **values))

    def agents(self) -> list[dict[str, Any]]:
        """Agents that were heard of lately, with their clusters."""
        query = sql.select(agents).where(agents.c.seen_at > self.clock() - LEASE_SECONDS).order_by(agents.c.name)
        with self.database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [{"name": row["name"], **json.loads(row["cluster"])} for row in rows]


def _place(output: str | None) -> str | None:
    return None if output is None else canonical(output)


def _failed(letter: str, now: float) -> dict[str, Any]:
    error = {"kind": "RunFailed", "message": letter, "exit_code": 1}
    return {"error": as_json(error), "exit_code": 1, "finished_at": now}


def _entry(row: Mapping[Any, Any]) -> Entry:
    values = dict(row)
    for name in DOCUMENTS:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Entry(**values | {"state": State(values["state"])})
