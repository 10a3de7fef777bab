"""The queue: nothing lost, nothing twice, and no state that the table does not know; in SQLite and in PostgreSQL."""

import itertools
import sqlite3
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import sqlalchemy as sql
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipelines.errors import JobFileError, RunFailed
from tests.postgres import postgres
from workers.database import jobs, metadata
from workers.entries import Conflict, Fenced, NoSuchJob, Selection, Submission, TooManyOpen
from workers.lifecycle import ACTIVE, OVER, TERMINAL, State, may_follow
from workers.queue import LEASE_SECONDS, MOST_CRASHES, MOST_LOSSES, Queue
from workers.tokens import Tokens

JOB = {"kind": "svd", "matrix": "/data/A", "output": "/data/s"}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        self.now += 0.001
        return self.now


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """A database of each kind, made when first asked for."""
    opened = {"sqlite": f"sqlite:///{tmp_path_factory.mktemp('queue') / 'queue.db'}"}
    contexts = []

    def address(kind):
        if kind not in opened:
            context = postgres()
            opened[kind] = context.__enter__()
            contexts.append(context)
        return opened[kind]

    yield address
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request, addresses):
    made = Queue(addresses(request.param), Clock())
    with made.database.transaction() as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name != "facts":
                connection.execute(sql.delete(table))
    yield made
    made.close()


def submitted(queue, **fields):
    job = JOB | {"output": f"/data/{fields.pop('output', id(fields))}"}
    return queue.submit(Submission(job, fields.pop("name", "one"), **fields))[0]


# Submitting


def test_jobs_are_taken_by_priority_and_then_in_their_order(queue):
    first, second, urgent = submitted(queue), submitted(queue), submitted(queue, priority=5)
    assert [queue.ahead(entry) for entry in (urgent, first, second)] == [0, 1, 2]
    assert [queue.claim("here").id for _ in range(3)] == [urgent.id, first.id, second.id]
    assert queue.claim("here") is None


def test_the_same_key_gives_the_same_job_and_another_request_is_a_conflict(queue):
    wanted = Submission(JOB, "one", idempotency_key="k")
    first, new = queue.submit(wanted)
    again, new_again = queue.submit(wanted)
    assert (new, new_again, again) == (True, False, first)
    with pytest.raises(
        Conflict, match=f'The idempotency key "k" was used for another request, which became job {first.id}'
    ):
        queue.submit(Submission(JOB, "two", idempotency_key="k"))
    assert queue.submit(Submission(JOB, "one", submitter="another", idempotency_key="k"))[1]


def test_the_same_key_from_many_at_once_makes_one_job(queue):
    wanted = Submission(JOB, "one", idempotency_key="k")
    others = Queue(queue.database.url)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: (queue, others)[i % 2].submit(wanted), range(16)))
    others.close()
    assert sum(new for _, new in found) == 1
    assert len({entry.id for entry, _ in found}) == 1


def test_a_submitter_has_only_so_many_open_jobs(queue):
    for _ in range(2):
        queue.submit(Submission(JOB, "one"), most_open=2)
    with pytest.raises(TooManyOpen, match="2 of your jobs are waiting or running, and this server takes at most 2"):
        queue.submit(Submission(JOB, "one"), most_open=2)
    queue.cancel(queue.select()[0].id)
    queue.submit(Submission(JOB, "one"), most_open=2)


def test_jobs_that_write_to_one_place_run_one_after_the_other(queue):
    first, second = submitted(queue, output="x"), submitted(queue, output="x")
    third = submitted(queue, output="y")
    assert [queue.claim("here").id for _ in range(2)] == [first.id, third.id]
    assert queue.claim("here") is None
    queue.update(queue.get(first.id), State.SUCCEEDED, exit_code=0)
    assert queue.claim("here").id == second.id


# Looking


def test_a_job_is_found_by_a_beginning_that_is_its_own(queue):
    entry = submitted(queue)
    assert queue.get(entry.id[:5]) == entry
    for wrong in ("", entry.id[:3], "nothing", "%", "a_b", entry.id + "x"):
        with pytest.raises(NoSuchJob, match="There is no job"):
            queue.get(wrong)


def test_jobs_are_listed_by_page_the_newest_first(queue):
    ids = [submitted(queue, name=f"job-{i % 2}").id for i in range(5)]
    first = queue.select(Selection(limit=2))
    rest = queue.select(Selection(limit=9, before=first[-1].seq))
    assert [entry.id for entry in (*first, *rest)] == ids[::-1]
    assert [entry.id for entry in queue.select(Selection(name="job-1"))] == [ids[3], ids[1]]
    queue.cancel(ids[0])
    assert [entry.id for entry in queue.select(Selection(states=[State.CANCELLED]))] == [ids[0]]
    assert queue.counts() == dict.fromkeys(State, 0) | {State.QUEUED: 4, State.CANCELLED: 1}


# Attempts


def test_an_attempt_that_was_replaced_can_say_nothing_more(queue):
    submitted(queue)
    old = queue.claim("here")
    assert queue.lose(old, "The machine burnt down.") is State.QUEUED
    new = queue.claim("there")
    assert (new.attempt, new.agent) == (2, "there")
    for say in (
        lambda: queue.update(old, progress={"passes": []}),
        lambda: queue.update(old, State.SUCCEEDED, exit_code=0),
        lambda: queue.lose(old, "It burns still."),
        lambda: queue.release(old),
    ):
        with pytest.raises(Fenced):
            say()
    assert not queue.may_commit(old)
    queue.update(new, State.RUNNING)
    assert queue.may_commit(new)


def test_what_is_over_stays_as_it_is(queue):
    submitted(queue)
    entry = queue.claim("here")
    queue.update(entry, State.SUCCEEDED, exit_code=0, summary={"rank": 3})
    with pytest.raises(Fenced):
        queue.update(entry, State.FAILED)
    assert queue.cancel(entry.id).state is State.SUCCEEDED
    assert queue.get(entry.id).summary == {"rank": 3}


@pytest.mark.parametrize("terminal", sorted(TERMINAL))
def test_the_database_itself_refuses_to_change_a_terminal_state(queue, terminal):
    entry = submitted(queue)
    with queue.database._engine.begin() as connection:
        if terminal is not State.CANCELLED:
            connection.execute(sql.update(jobs).values(state=State.STARTING))
        connection.execute(sql.update(jobs).values(state=terminal))
    for state in State:
        if state is not terminal:
            with (
                pytest.raises(sql.exc.DBAPIError, match="no such change of state"),
                queue.database._engine.begin() as connection,
            ):
                connection.execute(sql.update(jobs).values(state=state))
    assert queue.get(entry.id).state is terminal


def test_a_job_that_kills_its_process_fails_after_some_attempts(queue):
    entry = submitted(queue)
    states = [queue.lose(queue.claim("here"), "It died.", crashed=True) for _ in range(MOST_CRASHES)]
    assert states == [State.QUEUED] * (MOST_CRASHES - 1) + [State.FAILED]
    found = queue.get(entry.id)
    assert (found.exit_code, found.crashes) == (1, 3)
    assert found.error["message"] == "It died. That happened 3 times, so the job itself is taken for the cause."


def test_a_job_whose_clusters_get_lost_is_interrupted_and_can_be_queued_again(queue):
    entry = submitted(queue)
    states = [queue.lose(queue.claim("here"), "Lost.") for _ in range(MOST_LOSSES)]
    assert states == [State.QUEUED] * (MOST_LOSSES - 1) + [State.INTERRUPTED]
    assert f"tallgrass retry {entry.id}" in queue.get(entry.id).error["message"]
    again = queue.retry(entry.id)
    assert (again.id, again.state, again.error, again.losses) == (entry.id, State.QUEUED, None, 0)


def test_a_retry_of_what_is_over_is_a_new_job_and_of_what_goes_on_an_error(queue):
    entry = submitted(queue)
    with pytest.raises(JobFileError, match=f"Job {entry.id} is queued: it cannot be tried again before it is over"):
        queue.retry(entry.id)
    queue.cancel(entry.id)
    again = queue.retry(entry.id)
    assert (again.retry_of, again.job, again.state) == (entry.id, entry.job, State.QUEUED)
    assert again.id != entry.id


@pytest.mark.parametrize(("before", "after"), [
    (State.QUEUED, State.CANCELLED), (State.STARTING, State.STOPPING), (State.RUNNING, State.STOPPING),
])  # fmt: skip
def test_a_request_to_cancel(queue, before, after):
    entry = submitted(queue)
    if before is not State.QUEUED:
        entry = queue.claim("here")
    if before is State.RUNNING:
        queue.update(entry, State.RUNNING)
    assert queue.cancel(entry.id).state is after
    assert not queue.may_commit(entry)
    if after is State.STOPPING:
        assert queue.lose(entry, "Killed.") is State.CANCELLED
    assert queue.get(entry.id).exit_code == 7


def test_jobs_of_an_agent_that_is_not_heard_of_go_back_into_the_queue(queue):
    entry, other = submitted(queue), submitted(queue)
    queue.claim("dead"), queue.claim("alive")
    queue.clock.now += LEASE_SECONDS / 2
    assert queue.renew("alive") == {other.id: State.STARTING}
    assert queue.recover() == []
    queue.clock.now += LEASE_SECONDS / 2
    assert [found.id for found in queue.recover()] == [entry.id]
    assert queue.get(entry.id).state is State.QUEUED
    assert queue.get(other.id).state is State.STARTING
    assert "What ran the job was lost. The job is queued again." in [line.text for line in queue.log(entry.id)]


def test_many_agents_take_each_job_once(queue):
    ids = {submitted(queue, output=number).id for number in range(60)}
    queues = [Queue(queue.database.url) for _ in range(4)]
    taken, lock = [], threading.Lock()

    def work(number):
        while (entry := queues[number].claim(f"agent-{number}")) is not None:
            with lock:
                taken.append(entry.id)
            queues[number].update(entry, State.RUNNING)
            queues[number].update(entry, State.SUCCEEDED, exit_code=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for other in queues:
        other.close()
    assert len(taken) == 60
    assert set(taken) == ids
    assert queue.counts()[State.SUCCEEDED] == 60


def test_an_orderly_end_counts_as_no_loss(queue):
    submitted(queue)
    queue.release(queue.claim("here"))
    found = queue.claim("here")
    assert (found.attempt, found.losses) == (2, 0)


def test_sums_for_metrics(queue):
    submitted(queue)
    queue.clock.now += 5
    assert 5 <= queue.totals()["oldest_wait"] < 6
    entry = queue.claim("here")
    queue.update(entry, more={"passes": 1, "bytes_read": 2**40})
    queue.update(entry, more={"passes": 1, "bytes_read": 2**40})
    found = queue.totals()
    assert 5 <= found.pop("waited") < 6
    assert found == {"submitted": 1, "attempts": 1, "passes": 2, "bytes": 2.0**41, "oldest_wait": 0}


# Tokens


def test_a_token_opens_until_it_is_revoked_and_is_not_kept(queue):
    tokens = Tokens(queue.database)
    token = tokens.create("ci", "read")
    token_id = token.split("_")[1]
    assert tokens.scope_of(token) == (token_id, "read")
    for wrong in ("", "tg", token[:-1], token + "x", token.replace("tg_", "xx_"), f"tg_{token_id}_", "tg_nobody_x"):
        assert tokens.scope_of(wrong) is None
    with queue.database.reading() as connection:
        stored = str(connection.execute(sql.text("SELECT * FROM tokens")).one())
    assert token.split("_", 2)[2] not in stored
    assert tokens.revoke(token_id)
    assert not tokens.revoke(token_id)
    assert tokens.scope_of(token) is None


# Databases


def test_what_is_no_database_gets_a_letter(tmp_path):
    for url, letter in (
        ("nothing", "The address of the database cannot be read; needed sqlite:///PATH or postgresql://"),
        ("postgresql://me:secret@here:x/y", "The address of the database cannot be read; needed"),
        ("sqlite://", "found a database in memory, which would forget; needed sqlite:///PATH"),
        ("mysql://root@here/x", "found a database of kind mysql; needed sqlite:///PATH or postgresql://"),
    ):
        with pytest.raises(JobFileError, match=letter):
            Queue(url)
    (tmp_path / "text.db").write_text("this is not a database, and it is long enough to be told from one" * 20)
    with pytest.raises(RunFailed, match="cannot be used: file is not a database"):
        Queue(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(RunFailed, match=r"postgresql://me:\*\*\*@127.0.0.1:1/x cannot be used"):
        Queue("postgresql://me:secret@127.0.0.1:1/x")


def test_a_queue_of_another_form_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    queue = Queue(url)
    with queue.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE facts SET value = '99' WHERE name = 'schema'")
    queue.close()
    with pytest.raises(RunFailed, match="has tables of form 99, and this version of Tallgrass needs form 1"):
        Queue(url)


def test_text_that_is_no_unicode_is_kept_as_far_as_it_is(queue):
    submitted(queue)
    entry = queue.claim("here")
    odd = "x\udcff\0y"
    queue.add_lines(entry, [odd])
    queue.update(entry, State.FAILED, exit_code=1, error={"kind": "BadData", "message": odd, "exit_code": 4})
    assert [line.text for line in queue.log(entry.id)] == ["x?y"]
    assert queue.get(entry.id).error["message"].replace("\0", "") == "x?y"
    assert queue.select()[0].error["message"].encode()


def test_a_cancel_is_not_lost_between_two_states(queue):
    entry = submitted(queue)
    claimed = queue.claim("here")
    get = queue.get

    def lose_after(job):  # the job goes back into the queue just after it was looked at
        found = get(job)
        queue.get = get
        queue.lose(claimed, "Lost.")
        return found

    queue.get = lose_after
    assert queue.cancel(entry.id).state is State.CANCELLED


def test_one_place_is_written_by_one_job_however_many_agents_look(queue):
    for _ in range(10):
        ids = [submitted(queue, output="x").id, queue.submit(Submission(JOB | {"output": "/data//x/"}, "one"))[0].id]
        queues = [Queue(queue.database.url) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            claimed = [entry for entry in pool.map(lambda one: one.claim("here"), queues) if entry]
        for other in queues:
            other.close()
        assert len(claimed) == 1
        queue.update(claimed[0], State.FAILED, exit_code=1)
        last = queue.claim("here")
        assert {claimed[0].id, last.id} == set(ids)
        queue.update(last, State.FAILED, exit_code=1)


def test_many_may_open_a_new_database_at_once_and_all_see_the_same_queue(queue, tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    if queue.database.kind == "postgresql":
        with queue.database._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("CREATE DATABASE new")
        url = queue.database.url.replace("/postgres?", "/new?")
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: Queue(url), range(12)))
    entry = submitted(made[0])
    assert [one.get(entry.id) for one in made] == [entry] * 12
    assert made[-1].claim("here").id == entry.id
    for one in made:
        one.close()


def test_a_new_file_of_sqlite_in_which_another_process_begins_to_write_is_waited_for(tmp_path):
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.5, other.commit)
    done.start()
    queue = Queue(f"sqlite:///{tmp_path / 'new.db'}")
    assert submitted(queue).state is State.QUEUED
    done.join()
    for one in (queue, other):
        one.close()


def test_leases_go_by_the_clock_of_the_database_where_several_machines_share_it(addresses, monkeypatch):
    queue = Queue(addresses("postgresql"))
    submitted(queue, output="by the clock")
    held = queue.claim("here")
    monkeypatch.setattr("workers.database.time", Ahead)
    other = Queue(addresses("postgresql"))
    assert abs(other.clock() - time.time()) < 5
    assert other.recover() == []
    assert queue.get(held.id).agent == "here"
    for one in (queue, other):
        one.close()


class Ahead:
    """A machine whose clock is an hour ahead."""

    monotonic = time.monotonic

    @staticmethod
    def time():
        return time.time() + 3600


# Any sequence of events


class Events(RuleBasedStateMachine):
    """Whatever agents, people and accidents do to some jobs, in any order."""

    def __init__(self):
        super().__init__()
        ids = (f"job{number:03}" for number in itertools.count())
        self.patch = mock.patch("workers.queue.new_id", ids.__next__)  # the same order whenever Hypothesis tries again
        self.patch.start()
        self.folder = tempfile.TemporaryDirectory()
        self.queue = Queue(f"sqlite:///{self.folder.name}/queue.db", Clock())
        self.held, self.states = [], {}

    def teardown(self):
        self.patch.stop()
        self.queue.close()
        self.folder.cleanup()

    @rule(number=st.integers(0, 3))
    def submit(self, number):
        self.queue.submit(Submission(JOB | {"output": f"/{number}"}, "x"))

    @rule()
    def claim(self):
        if (entry := self.queue.claim("here")) is not None:
            self.held.append(entry)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50), state=st.sampled_from([State.RUNNING, State.SUCCEEDED, State.FAILED]))
    def say(self, which, state):
        self.fenced(lambda entry: self.queue.update(entry, state), which)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50), crashed=st.booleans())
    def lose(self, which, crashed):
        self.fenced(lambda entry: self.queue.lose(entry, "It died.", crashed=crashed), which)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50))
    def release(self, which):
        self.fenced(self.queue.release, which)

    @precondition(lambda self: self.states)
    @rule(which=st.integers(0, 50))
    def cancel(self, which):
        self.queue.cancel(sorted(self.states)[which % len(self.states)])

    @precondition(lambda self: self.states)
    @rule(which=st.integers(0, 50))
    def retry(self, which):
        job = sorted(self.states)[which % len(self.states)]
        if self.states[job] in OVER:
            self.queue.retry(job)

    def fenced(self, act, which):
        """An attempt acts: in vain when it is not the latest, or its job does not run."""
        entry = self.held[which % len(self.held)]
        now = self.queue.get(entry.id)
        try:
            act(entry)
        except Fenced:
            assert now.attempt > entry.attempt or now.state not in (State.STARTING, State.RUNNING)
        else:
            assert now.attempt == entry.attempt
            assert now.state in ACTIVE

    @invariant()
    def no_job_is_lost_and_no_step_is_wrong(self):
        now = {entry.id: entry.state for entry in self.queue.select(Selection(limit=500))}
        assert set(self.states) <= set(now)
        for job, state in self.states.items():
            assert now[job] is state or may_follow(state, now[job])
        self.states = now

    @invariant()
    def one_job_writes_to_a_place(self):
        writing = [entry.output for entry in self.queue.select(Selection(states=list(ACTIVE), limit=500))]
        assert len(writing) == len(set(writing))


TestAnySequenceOfEvents = Events.TestCase
TestAnySequenceOfEvents.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
