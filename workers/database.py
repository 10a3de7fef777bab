"""The database of the service: its tables, its engine, and the one rule that it keeps itself.

SQLite and PostgreSQL are spoken through SQLAlchemy.  Every write is one transaction, and a change of a job's state that
`lifecycle` does not know is refused by a trigger which is made from its table.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from pipelines.errors import JobFileError, RunFailed
from workers.lifecycle import AFTER

SCHEMA = 1
"""The form of the tables; a database of another one is refused."""
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


class Database:
    """Transactions and reads; safe to use from many threads and processes.

    Args:
        url: sqlite:///path or postgresql://user@host/database.
        clock: seconds since 1970; by default the database server's, or this machine's for SQLite.
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.url = url
        self._write = threading.Lock()
        self._engine = _engine(url)
        self.clock = clock or (_ClockOf(self) if self.kind == "postgresql" else time.time)
        try:
            with _told(url):
                self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def kind(self) -> str:
        """Sqlite or postgresql."""
        return self._engine.dialect.name

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sql.Connection]:
        """A connection whose writes are all done at the end, or none of them."""
        with self._write, _told(self.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A connection that only reads."""
        with _told(self.url), self._engine.connect().execution_options(reads=True) as connection:
            yield connection

    def _prepare(self) -> None:
        with self._write, self._engine.begin() as connection:
            one_at_a_time(connection)
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


class _ClockOf:
    """A server's clock, which all agents share: leases taken by clocks of their own would end too early for some."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ahead, self._asked = 0.0, -ASK_AGAIN

    def __call__(self) -> float:
        if time.monotonic() - self._asked > ASK_AGAIN:
            with suppress(RunFailed), self._database.reading() as connection:
                before = time.time()
                now = connection.execute(sql.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
                self._ahead, self._asked = float(now) - (before + time.time()) / 2, time.monotonic()
        return time.time() + self._ahead


ASK_AGAIN = 60.0
"""Seconds after which a server is asked for its time again."""


def readable(text: str) -> str:
    """The text without what no database keeps and no JSON can say: NUL, and names of files that are not Unicode."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def as_json(value: Any) -> str:
    """A document as it is kept."""
    return readable(json.dumps(value, ensure_ascii=False))


def new_id() -> str:
    """Ten letters and digits that nobody mistakes for each other: 50 random bits."""
    return "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(10))


def shown_url(url: str) -> str:
    """A database's address without its password."""
    address = sql.make_url(url)
    return address.difference_update_query(["password"]).render_as_string(hide_password=True)


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
        return sql.create_engine(
            address.set(drivername="postgresql+psycopg"), pool_size=10, pool_pre_ping=True,
            connect_args={"client_encoding": "utf8"},  # a cluster made in the C locale would give bytes for text
        )  # fmt: skip
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
        try:
            _write_ahead(connection)
            for pragma in ("synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        # A transaction that will write takes its lock at once: one that reads first could not get it any more.
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let readers go on while one writes.

    SQLite does not wait for others when it changes the journal of a new file: it is "locked" at once for all but one
    of those who open it in the same moment.  Once it is changed it stays so.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)


def one_at_a_time(connection: sql.Connection) -> None:
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
