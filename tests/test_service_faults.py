"""The service with its parts killed: every job that was accepted comes to its end, once, with the right answer."""

import os
import random
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import zarr

from pipelines import LeastSquares
from pipelines.errors import ClusterUnreachable, TallgrassError
from pipelines.result import read_summary
from tests.served import Served, store_problem, wait_for
from workers import Client
from workers.database import jobs
from workers.lifecycle import AFTER, TERMINAL, State
from workers.queue import Queue

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")
ROWS, COLUMNS = 40_000, 120


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    store_problem(folder, ROWS, COLUMNS)
    with Served(folder) as server:
        yield server


def submit(served, client, name, **fields):
    at = str(served.folder)
    job = LeastSquares(matrix=f"{at}/A", rhs=f"{at}/b", output=f"{at}/{name}.zarr", **fields)
    return client.submit(job, name=name).id


def is_right(served, job):
    """Whether a job succeeded, and its result is the answer."""
    assert job.state is State.SUCCEEDED, (job.state, job.error)
    with Client(served.url) as client:
        x = client.result(job.id).x
    np.testing.assert_allclose(x, np.load(served.folder / "x.npy"), rtol=1e-9)
    assert read_summary(job.output)["submitted"]["id"] == job.id
    return True


def running(served, client, name):
    """A job that has begun."""
    job = submit(served, client, name)
    wait_for(lambda: client.job(job).state in (State.STARTING, State.RUNNING))
    return job


@pytest.mark.parametrize("delay", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
@pytest.mark.parametrize(
    "part",
    ["worker", "server", *(pytest.param(part, marks=pytest.mark.slow) for part in ("driver", "agent", "host"))],
)
def test_a_job_survives_the_death_of_any_part(served, client, part, delay):
    job = running(served, client, f"{part}-{delay}")
    time.sleep(delay)
    with suppress(psutil.NoSuchProcess, AssertionError):
        if part == "driver":
            served.driver(client, job).kill()
        elif part == "worker":
            served.workers[0].kill()
        elif part == "server":
            served.process.kill()
        else:
            getattr(served, part).kill()
    if part == "server":
        served.process.wait()
        served.start()
    found = client.wait(job)
    assert is_right(served, found)
    assert found.attempt <= 3


def test_a_driver_that_comes_back_from_the_dead_cannot_write(served, client):
    job = running(served, client, "zombie")
    driver = served.driver(client, job)
    driver.suspend()
    served.agent.kill()
    # The new agent waits for the frozen process, which holds the lock of its predecessor, and then kills it.
    found = client.wait(job)
    assert is_right(served, found)
    assert found.attempt == 2
    assert not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE


def test_a_result_that_appeared_before_its_driver_died_is_not_made_again(served, client):
    """The driver dies between the rename and its last word."""
    job = submit(served, client, "appeared")
    first = client.wait(job)
    queue = Queue(served.database)
    made = os.stat(first.output).st_ctime_ns
    with queue.database._engine.begin() as connection:  # as if the agent had died before it heard of it
        connection.exec_driver_sql("DROP TRIGGER lifecycle")
        connection.execute(jobs.update().where(jobs.c.id == job).values(state="queued", summary=None, exit_code=None))
    queue.close()
    Queue(served.database).close()  # puts the trigger back
    again = client.wait(job)
    assert (again.state, again.attempt, again.summary) == (State.SUCCEEDED, 2, first.summary)
    assert os.stat(first.output).st_ctime_ns == made


def test_a_job_that_kills_its_own_process_fails_with_the_signal(served, client):
    job = submit(served, client, "killed-again-and-again")
    while not client.job(job).over:
        with suppress(AssertionError, psutil.NoSuchProcess):
            served.driver(client, job).kill()
        time.sleep(0.02)
    found = client.wait(job)
    assert (found.state, found.exit_code) == (State.FAILED, 1)
    assert found.error.message.startswith("The job's process was killed by SIGKILL. The kernel does that when memory")
    assert found.error.message.endswith("That happened 3 times, so the job itself is taken for the cause.")


@pytest.mark.slow
def test_sigterm_gives_jobs_back_and_the_next_start_goes_on(served, client):
    ids = [submit(served, client, f"given-back-{number}") for number in range(6)]
    wait_for(lambda: client.job(ids[0]).state is State.RUNNING)
    served.process.terminate()
    assert served.process.wait(60) == 0
    assert served.said().endswith("stopping: jobs that run go on when the server is started again\n")
    served.start()
    assert all(is_right(served, client.wait(job)) for job in ids)


# Chaos


class Watcher(threading.Thread):
    """Looks at all jobs again and again: what the API shows is always a step that the table knows."""

    def __init__(self, served):
        super().__init__(daemon=True)
        self.served, self.over, self.seen, self.wrong = served, threading.Event(), {}, []

    def run(self):
        with Client(self.served.url) as client:
            while not self.over.is_set():
                with suppress(ClusterUnreachable):
                    for job in client.jobs(limit=500):
                        self.look_at(job)
                time.sleep(0.05)

    def look_at(self, job):
        before = self.seen.get(job.id, job.state)
        reached, edge = {before}, {before}
        while edge:  # between two looks a job may have taken several steps
            edge = {after for state in edge for after in AFTER[state]} - reached
            reached |= edge
        if job.state not in reached or (before in TERMINAL and job.state is not before):
            self.wrong.append((job.id, before, job.state))
        self.seen[job.id] = job.state


def chaos(served, seconds_between, count, seed):
    """Submit jobs while parts die; gives the jobs once all are over."""
    random_ = random.Random(seed)
    watcher = Watcher(served)
    watcher.start()
    ids, lock = [], threading.Lock()

    def work():
        with Client(served.url) as mine:
            for number in range(count):
                while True:
                    with suppress(ClusterUnreachable):
                        key = f"{seed}-{number}"
                        job = LeastSquares(
                            matrix=f"{served.folder}/A", rhs=f"{served.folder}/b", ridge=number * 1e-3,
                            output=f"{served.folder}/{key}.zarr",
                        )  # fmt: skip
                        found = mine.submit(job, name=f"chaos-{seed}", idempotency_key=key)
                        break
                with lock:
                    ids.append(found.id)

    submitter = threading.Thread(target=work)
    submitter.start()
    killed = []
    with Client(served.url) as client:
        while True:
            time.sleep(random_.uniform(*seconds_between))
            with suppress(ClusterUnreachable):
                if not submitter.is_alive() and all(client.job(job).over for job in ids):
                    break
            killed.append(kill_one(served, random_))
        submitter.join()
        for job in ids:  # one that lost what it ran on ten times waits for somebody to look
            if client.wait(job).state is State.INTERRUPTED:
                client.retry(job)
        found = [client.wait(job) for job in ids]
    watcher.over.set()
    watcher.join()
    assert watcher.wrong == []
    return found, killed


def kill_one(served, random_):
    """SIGKILL to a random part; the server is started again."""
    part = random_.choice(["server", "agent", "host", "worker", "worker", "driver", "driver"])
    found = {
        "server": lambda: [psutil.Process(served.process.pid)],
        "agent": lambda: served.parts("workers.agent"),
        "host": lambda: served.parts("workers.clusters.host"),
        "worker": lambda: served.workers,
        "driver": lambda: [fork for one in served.parts("pipelines.execute") for fork in one.children()],
    }
    with suppress(psutil.NoSuchProcess, IndexError, AssertionError):
        random_.choice(found[part]()).kill()
    if part == "server":
        served.process.wait()
        served.start()
    return part


def check(served, found):
    """Every answer against the truth, or the one failure that an accident may cause."""
    A, b = (zarr.open_array(f"{served.folder}/{name}", mode="r")[...] for name in "Ab")
    R, c = A.T @ A, A.T @ b
    for job in found:
        if job.state is State.FAILED:  # its process was killed three times: that is told, and nothing was written
            assert "That happened 3 times" in job.error.message
            with pytest.raises(TallgrassError):
                read_summary(job.output)
            continue
        assert job.state is State.SUCCEEDED, (job.id, job.state, job.error)
        assert read_summary(job.output)["submitted"]["id"] == job.id
        with Client(served.url) as client:
            x = client.result(job.id).x
        truth = np.linalg.solve(R + job.job["ridge"] * np.eye(COLUMNS), c)
        np.testing.assert_allclose(x, truth, rtol=1e-8)
    left = [path.name for path in served.folder.iterdir() if "partial" in path.name]
    assert left == []


@pytest.mark.slow
def test_jobs_come_to_their_end_while_parts_die_at_random(served):
    found, killed = chaos(served, (0.5, 3.0), 12, seed=int(time.time()))
    assert killed
    check(served, found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_jobs_come_to_their_end_while_parts_die_at_random(served):
    for round_ in range(3):
        found, killed = chaos(served, (0.3, 2.5), 50, seed=1000 + round_)
        assert len(killed) > 10
        check(served, found)
