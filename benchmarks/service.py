"""The service: from its start to its first job, many clients at once, a long history, and what a job costs more."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import sqlalchemy as sql

from benchmarks.cluster import two_workers
from benchmarks.data import DataSet, stored
from benchmarks.postgres import postgres, programs
from benchmarks.settings import Settings, say
from pipelines import LeastSquares, run
from pipelines.errors import ClusterUnreachable
from workers import Client
from workers.database import jobs
from workers.entries import Selection
from workers.lifecycle import State
from workers.queue import Queue

JOBS, CLIENTS = 1000, 20
HISTORY = 100_000
"""Finished jobs in the queue while it is listed."""
LISTS = 200
"""Times that it is listed."""
SMALL = 20
"""Small jobs, one after the other, of which the cost is measured."""
PORT = 8799


def measure(settings: Settings) -> dict[str, Any]:
    """With the queue in SQLite and, where it is installed, in PostgreSQL."""
    count, history = (JOBS, HISTORY) if not settings.quick else (40, 2000)
    settings.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in ("sqlite", "postgresql"):
        if kind == "postgresql" and programs() is None:
            say("  PostgreSQL is not installed: left out")
            continue
        say(f"  {kind}")
        with _database(kind) as database, stored(DataSet(settings.folder, 100, 5, chunk_rows=100)) as data:
            found[kind] = _measured(database, data, count, history)
    return {"jobs": count, "clients": CLIENTS, "history": history, "found": found}


def _measured(database: str, data: DataSet, count: int, history: int) -> dict[str, Any]:
    began = time.perf_counter()
    with _served(database, data) as (url, process), Client(url) as client:
        first = client.submit(_job(data, "first"))
        accepted = time.perf_counter() - began
        client.wait(first.id)
        say(f"    first job accepted after {accepted:.2f} s")
        small = _small(client, data)
        load = _load(url, process, data, count)
    queue = Queue(database)
    _fill(queue, history)
    queue.close()
    with _served(database, data) as (url, _), Client(url) as client:
        lists = _lists(client)
    return {"seconds_to_first": accepted, "small": small, "load": load, "lists": lists}


def _job(data: DataSet, name: object) -> LeastSquares:
    return LeastSquares(matrix=data.A, rhs=data.b, output=f"{Path(data.A).parent}/out/{name}")


def _small(client: Client, data: DataSet) -> dict[str, float]:
    """Seconds of a small job through the service, and of the same job run by hand on such a cluster."""
    through = [_seconds(lambda i=i: client.wait(client.submit(_job(data, f"s{i}")).id)) for i in range(SMALL)]
    with two_workers() as cluster:
        by_hand = [_seconds(lambda i=i: run(_job(data, f"h{i}"), cluster)) for i in range(SMALL)]
    say(f"    a small job: {median(through):.2f} s through the service, {median(by_hand):.2f} s by hand")
    return {"service": median(through), "by_hand": median(by_hand)}


def _load(url: str, process: "subprocess.Popen[bytes]", data: DataSet, count: int) -> dict[str, Any]:
    """Many clients submit at once; every job has to end once, and well."""
    server = psutil.Process(process.pid)
    before = server.memory_info().rss
    began = time.perf_counter()

    def work(number: int) -> list[tuple[str, float]]:
        with Client(url) as mine:
            return [_submitted(mine, _job(data, f"l{number}-{i}")) for i in range(count // CLIENTS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = [one for each in pool.map(work, range(CLIENTS)) for one in each]
    submitted = time.perf_counter() - began
    with Client(url) as client:
        ends = [client.wait(job) for job, _ in found]
    assert len({job for job, _ in found}) == count, "a job was lost"
    assert all(job.state is State.SUCCEEDED and job.attempt == 1 for job in ends), "a job did not run once, and well"
    seconds = [taken for _, taken in found]
    record = {
        "submit_seconds": submitted, "done_seconds": time.perf_counter() - began, **_spread(seconds),
        "server_bytes": [before, server.memory_info().rss],
    }  # fmt: skip
    say(f"    {count} jobs: submit p99 {1000 * record['p99']:.0f} ms, done after {record['done_seconds']:.0f} s")
    return record


def _submitted(client: Client, job: LeastSquares) -> tuple[str, float]:
    began = time.perf_counter()
    made = client.submit(job).id
    return made, time.perf_counter() - began


def _fill(queue: Queue, count: int) -> None:
    """A history of finished jobs, written past the queue's own steps."""
    like = queue.select(Selection(states=[State.SUCCEEDED], limit=1))[0]
    with queue.database._engine.begin() as connection:  # noqa: SLF001
        row = dict(connection.execute(sql.select(jobs).where(jobs.c.id == like.id)).mappings().one())
        del row["seq"]
        ends = random.Random(0)
        for start in range(0, count, 1000):
            rows = [
                row | {"id": f"x{start + i:09}", "idempotency_key": None, "name": f"job-{i % 50}",
                       "state": ends.choice(["succeeded", "succeeded", "failed", "cancelled"])}
                for i in range(1000)
            ]  # fmt: skip
            connection.execute(sql.insert(jobs), rows)


def _lists(client: Client) -> dict[str, dict[str, float]]:
    """Seconds of each way to list jobs."""
    cursor = client.page(limit=1, cursor=str(10**9)).next
    ways: dict[str, Callable[[], Any]] = {
        "newest": client.page,
        "failed": lambda: client.page(["failed"]),
        "running": lambda: client.page(["running", "queued"]),
        "by name": lambda: client.page(name="job-7"),
        "a later page": lambda: client.page(cursor=cursor),
    }
    found = {name: _spread([_seconds(way) for _ in range(LISTS)]) for name, way in ways.items()}
    say("    lists, p99: " + ", ".join(f"{name} {1000 * one['p99']:.0f} ms" for name, one in found.items()))
    return found


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    parts = quantiles(seconds, n=100)
    return {"median": median(seconds), "p99": parts[98], "max": max(seconds)}


@contextmanager
def _database(kind: str) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="tallgrass-bench-"))
    try:
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'queue.db'}"
        else:
            with postgres(folder) as address:
                yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _served(database: str, data: DataSet) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The server, once it answers."""
    folder = Path(data.A).parent
    (folder / "cluster.yaml").write_text("kind: local\nprocesses: 2\nmemory: 1 GiB\ndashboard: false\n")
    command = [
        str(Path(sys.executable).with_name("tallgrass")), "serve", "-q", "--port", str(PORT), "--database", database,
        "--state", str(folder / "state"), "--root", str(folder), "--cluster", str(folder / "cluster.yaml"),
    ]  # fmt: skip
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{PORT}"
    try:
        while True:
            try:
                with Client(url) as client:
                    client.server()
                break
            except ClusterUnreachable:
                time.sleep(0.02)
        yield url, process
    finally:
        process.terminate()
        process.wait()
