"""A real Dask scheduler with the real graph of a job, whose spans only sleep: what is left is what Dask costs.

    python -m benchmarks.sleepers '{"rows": 1000000000, "columns": 16, "workers": 100, "seconds": 0.1}'

starts a scheduler and so many workers, a few processes for all of them, gives the scheduler the graph of the pass that
factors, and prints as JSON when spans started and ended, and what that took of the scheduler's process.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import dask
import numpy as np
import psutil
from dask.task_spec import Task

from benchmarks.settings import ROOT
from pipelines.engine import build, do_span
from pipelines.inputs import open_inputs
from pipelines.kernels.sweep import Triangle
from pipelines.load import job_of
from pipelines.matrix import Span, System, Tally
from pipelines.meter import Graph, Work
from pipelines.methods.problem import factor_pass
from pipelines.plan import layout_of
from workers.clusters.local import SETTINGS

HOSTS = 2
"""Processes that share the workers."""
MANY_IN_ONE = {
    # A hundred times a second each worker would look what its thread does: of a hundred, that takes all of a core.
    "distributed.worker.profile.enabled": False,
    # And each would look at the machine that they share.
    "distributed.admin.system-monitor.interval": "10s",
}
"""Settings of workers that share a process."""
SECONDS = 60.0
"""For workers to come."""
PINGS = 50


@dataclass
class Slept:
    """What sleeping spans leave: when they ran, and a state as large as a real one."""

    first: float
    last: float
    state: Any


@dataclass(frozen=True)
class Sleeper:
    """A pass whose spans sleep and whose merges are real."""

    real: Any
    seconds: float
    name: str = "factor"

    @property
    def fan_in(self) -> int:
        """That of the real pass."""
        return int(self.real.fan_in)

    def span(self) -> Slept:
        """A state that took its time."""
        began = time.time()
        time.sleep(self.seconds)
        p = self.real.p
        R = np.asfortranarray(np.triu(np.ones((p, p))) + np.eye(p))
        return Slept(began, time.time(), Triangle(R, np.zeros((p, 0), order="F"), np.zeros(0)))

    def merge(self, left: Slept, right: Slept) -> Slept:
        return Slept(min(left.first, right.first), max(left.last, right.last), self.real.merge(left.state, right.state))


def sleep_span(step: Sleeper, _: System, span: Span, *__: Any) -> tuple[Slept, Tally]:
    """The task of one span, with the arguments of the real one."""
    return step.span(), Tally(span.stop - span.start)


def synthetic_job(rows: int, columns: int, span_seconds: float | None = None, *, verify: bool = True) -> Any:
    """Least squares on a synthetic matrix, without an output."""
    job = job_of({
        "kind": "least_squares", "matrix": {"synthetic": {"rows": rows, "columns": columns}},
        "rhs": {"synthetic": {"noise": 0.1}}, "output": "memory", "verify": verify,
        "method": "auto" if span_seconds is None else {"name": "tsqr", "span_seconds": span_seconds},
    })  # fmt: skip
    return job.model_copy(update={"output": None})


def graph_of(job: Any, run: str = "run") -> tuple[Graph, Any, Work, Any]:
    """The graph of the pass that factors, its root, its rows, and the pass."""
    inputs = open_inputs(job, run)
    layout = layout_of(job, inputs)
    system = System(inputs.A, inputs.b, None, layout.shape.dtype, omit_rows=False, block_rows=layout.block_rows)
    work, step = Work(system, layout.spans, layout.shape.row_bytes), factor_pass(layout)
    return *build(step, work, run), work, step


def asleep(graph: Graph, step: Any, seconds: float) -> Graph:
    """The same graph with spans that sleep."""
    sleeper = Sleeper(step, seconds)

    def other(task: Any) -> Any:
        if isinstance(task, Task) and task.func is do_span:
            return Task(task.key, sleep_span, *task.args, _data_producer=task.data_producer)
        return sleeper if task is step else task

    return {key: other(task) for key, task in graph.items()}


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
    """The case in processes of its own, so that memory and processor time are its own."""
    command = [sys.executable, "-m", "benchmarks.sleepers", json.dumps(case)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return dict(case) | found


def main(case: Mapping[str, Any]) -> dict[str, Any]:
    graph, root, work, step = graph_of(synthetic_job(case["rows"], case["columns"], case.get("span_seconds")))
    with many_workers(case["workers"]) as client:
        _run(client, asleep(graph, step, 0.0), root)  # to warm up: modules, connections
        pings = [_seconds(lambda: client.run_on_scheduler(int)) for _ in range(PINGS)]
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
        fetches = [fetched(client, addresses[0], address) for address in addresses[1:PINGS]]
        mine, hosts = psutil.Process(), psutil.Process().children()
        before, memory = processor(mine, *hosts), mine.memory_info().rss
        graph, root, _, step = graph_of(synthetic_job(case["rows"], case["columns"], case.get("span_seconds")), "again")
        began = time.time()
        slept = _run(client, asleep(graph, step, case["seconds"]), root)
        ended = time.time()
        used = [now - then for now, then in zip(processor(mine, *hosts), before, strict=True)]
        tasks = len(graph) - 2
        return {
            "spans": len(work.spans), "tasks": tasks, "total": ended - began, "start": slept.first - began,
            "scheduler_cpu": used[0], "workers_cpu": sum(used[1:]), "ping": median(pings),
            "fetch": max(0.0, median(fetches)) if fetches else 0.0, "hosts": len(hosts),
            "scheduler_bytes": mine.memory_info().rss, "scheduler_bytes_before": memory,
        }  # fmt: skip


def _run(client: Any, graph: Graph, root: Any) -> Slept:
    slept: Slept = client.get(graph, root, sync=False).result()[0]
    return slept


def processor(*processes: psutil.Process) -> list[float]:
    """Seconds of processor time of each, so far."""
    return [sum(process.cpu_times()[:2]) for process in processes]


def fetched(client: Any, here: str, there: str) -> float:
    """Seconds more of a task on `there` whose input, a small state, lies `here`, than of one whose input lies there."""

    def taken(worker: str) -> float:
        state = client.submit(np.ones, 300, pure=False, workers=[worker])
        state.result()
        return _seconds(lambda: client.submit(len, state, pure=False, workers=[there]).result())

    local = taken(there)
    return taken(here) - local


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def many_workers(count: int) -> Iterator[Any]:
    """A client, in the process of the scheduler as in `tallgrass run`, of so many workers in a few processes."""
    from distributed import Client, LocalCluster

    hosts = min(HOSTS, count)
    with dask.config.set(SETTINGS):
        cluster = LocalCluster(
            n_workers=0, dashboard_address=None, processes=False, protocol="tcp://", host="127.0.0.1"
        )
        with cluster, Client(cluster) as client:
            each = [count // hosts + (number < count % hosts) for number in range(hosts)]
            command = [sys.executable, "-m", "benchmarks.sleepers", "host", cluster.scheduler_address]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            processes = [subprocess.Popen([*command, str(part)], cwd=ROOT, env=environment) for part in each]
            try:
                client.wait_for_workers(count, timeout=SECONDS)
                yield client
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()


async def host(scheduler: str, count: int) -> None:
    """So many workers in this process, until it is ended."""
    from distributed import Worker

    with dask.config.set(SETTINGS | MANY_IN_ONE):
        logging.getLogger("distributed").setLevel(logging.ERROR)
        workers = [
            Worker(scheduler, nthreads=1, memory_limit=0, dashboard=False, name=f"{os.getpid()}-{number}")
            for number in range(count)
        ]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    # Imported by its name, or Dask would send this module's code along with each task.
    from benchmarks import sleepers  # noqa: PLW0406  # as above

    logging.getLogger("distributed").setLevel(logging.ERROR)
    if sys.argv[1] == "host":
        with suppress(KeyboardInterrupt):
            asyncio.run(sleepers.host(sys.argv[2], int(sys.argv[3])))
    else:
        print(json.dumps(sleepers.main(json.loads(sys.argv[1]))))
