"""Scaling: real runs on one core to all, and the same graphs on clusters that are not there.

What a span and a merge take is measured on runs of one size, what Dask takes on spans that do nothing; a simulator
(benchmarks/simulator.py) carries the graphs with these costs.  It is held against runs of other sizes, and against a
real scheduler with many workers whose spans sleep (benchmarks/sleepers.py), before it says anything of larger clusters.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import fmean, median
from typing import Any

import psutil
from distributed import Client

from benchmarks import sleepers
from benchmarks.cluster import process_ids
from benchmarks.data import DataSet, stored, tall
from benchmarks.rounds import Contender, Timed, interleave
from benchmarks.settings import Settings, say
from benchmarks.simulator import Costs, Timeline, simulate, tasks_of
from pipelines import run
from pipelines.jobs import LeastSquares
from workers.clusters import Local, open_cluster

COLUMNS = 16
CALIBRATED_ON, SIZES = 4_000_000, (8_000_000, 16_000_000)
"""Rows of the runs that costs are taken from, and of those that the simulator has to foretell."""
WORKER_BYTES = 2**30
PASSES = ("factor", "verify")
SLEEPING = (
    {"rows": 10**9, "workers": 10, "seconds": 1.0},
    {"rows": 10**9, "workers": 100, "seconds": 5.0},
    {"rows": 10**10, "workers": 10, "seconds": 0.4},
    {"rows": 10**10, "workers": 100, "seconds": 3.0},
    {"rows": 10**11, "workers": 100, "seconds": 2.0},
)
"""What a real scheduler is given: the graphs of these rows, whose spans sleep; real ones take longer."""
DOING_NOTHING = {"rows": 4 * 10**10}
"""What Dask's own costs are taken from: the graph of these rows, whose spans do nothing."""
FORESEEN, WORKERS = (10**9, 10**10, 10**11), (1, 10, 100, 1000)
SHORTER = 0.2
"""Seconds of a shorter span: the method's `span_seconds`."""
ROWS_OF_A_WORKER = 10**8
"""For weak scaling."""
FETCHES = 20


def measure(settings: Settings) -> dict[str, Any]:
    """Everything; the simulations last."""
    sizes = [int(rows * settings.scale) for rows in (CALIBRATED_ON, *SIZES)]
    counts = worker_counts(len(os.sched_getaffinity(0)))
    with stored(tall(settings.folder, sizes[-1] * COLUMNS * 8, COLUMNS)) as data, clusters(counts) as clients:
        sources = {"synthetic": sleepers.synthetic_job, "stored": partial(_stored_job, data)}
        sources = {name: partial(make, columns=COLUMNS) for name, make in sources.items()}
        runs = {name: _runs(make, sizes, clients, settings.rounds) for name, make in sources.items()}
        nothing = {"rows": SLEEPING[0]["rows"]} if settings.quick else DOING_NOTHING
        dask = {count: _dask_costs(client, nothing["rows"]) for count, client in clients.items()}
        real = [case for name, found in runs.items() for case in _foretold(name, sources[name], found, sizes, dask)]
    cases = [case | {"columns": COLUMNS} for case in ([SLEEPING[0]] if settings.quick else SLEEPING)]
    asleep = {
        workers: _dask_costs_of(sleepers.measured(nothing | {"columns": COLUMNS, "workers": workers, "seconds": 0.0}))
        for workers in sorted({case["workers"] for case in cases})
    }
    scheduler = [_foretold_asleep(sleepers.measured(case), asleep[case["workers"]]) for case in cases]
    costs = runs["synthetic"]["costs"][counts[-1]]
    return {
        "columns": COLUMNS, "cores": counts[-1], "calibrated_on": sizes[0], "shorter": SHORTER,
        "costs": {name: found["costs"] for name, found in runs.items()},
        "dask": {count: vars(cost) for count, cost in dask.items()},
        "dask_asleep": {count: vars(cost) for count, cost in asleep.items()},
        "real": real, "scheduler": scheduler, "foreseen": list(_foreseen(costs, dask[counts[-1]])),
    }  # fmt: skip


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})


@contextmanager
def clusters(counts: Sequence[int]) -> Iterator[dict[int, Client]]:
    """A client for each number of workers, all open, so that they can take turns."""
    with ExitStack() as stack:
        yield {
            count: stack.enter_context(open_cluster(Local(processes=count, memory=WORKER_BYTES, dashboard=False)))
            for count in counts
        }


def _stored_job(data: DataSet, rows: int, columns: int) -> LeastSquares:  # noqa: ARG001  # as synthetic jobs are made
    part = {"rows": (0, rows)}
    return LeastSquares(matrix={"url": data.A} | part, rhs={"url": data.b} | part)


# Real runs


def _runs(make: Callable[..., Any], sizes: Sequence[int], clients: dict[int, Client], rounds: int) -> dict[str, Any]:
    """The costs of spans and merges, by workers, and the seconds of runs of the other sizes."""
    for client in clients.values():
        client.get_task_stream(count=1)  # from now on the scheduler keeps what tasks took
        run(make(sizes[0]), client)
    seen: dict[int, list[Mapping[str, float]]] = {count: [] for count in clients}

    def calibrate(count: int) -> Timed:
        timed, costs = _watched(make(sizes[0]), clients[count])
        seen[count].append(costs)
        return timed

    everybody = [Contender(f"costs {count}", partial(calibrate, count)) for count in clients]
    everybody += [
        Contender(f"{rows} {count}", partial(_timed, make(rows), client))
        for rows in sizes[1:]
        for count, client in clients.items()
    ]
    found = interleave(everybody, rounds)
    costs = {count: {name: median(one[name] for one in each) for name in each[0]} for count, each in seen.items()}
    return {"costs": costs, "seconds": {name: series.seconds for name, series in found.items()}}


def _timed(job: Any, client: Client) -> Timed:
    """The seconds of both passes."""
    timings = run(job, client).summary["timings"]
    return Timed(sum(timings[name] for name in PASSES), parts=timings)


def _watched(job: Any, client: Client) -> tuple[Timed, dict[str, float]]:
    """Seconds of a span's row and of a merge's child, in each pass: means over the tasks of a run, which add up."""
    spans = sleepers.graph_of(job)[2].spans
    began = time.time()
    timed = _timed(job, client)
    costs: dict[str, list[float]] = {}
    for task in client.get_task_stream(start=began):
        key, seconds = (
            task["key"],
            [one["stop"] - one["start"] for one in task["startstops"] if one["action"] == "compute"],
        )
        if not isinstance(key, tuple) or not seconds:
            continue
        name = key[0].rpartition("-")[0]
        if len(key) == 2:
            costs.setdefault(name, []).append(seconds[0] / (spans[key[1]].stop - spans[key[1]].start))
        else:
            children = min(8, len(spans))
            costs.setdefault(name, []).append(seconds[0] / children)
    found = {name: fmean(each) for name, each in costs.items()}
    return timed, {name: found.get(name, 0.0) for one in PASSES for name in (one, f"{one}-merge")}


# What Dask takes


def _dask_costs(client: Client, rows: int) -> Costs:
    """From spans that do nothing, on a cluster whose scheduler is in this process."""
    graph, root, _, step = sleepers.graph_of(sleepers.synthetic_job(rows, COLUMNS))
    workers = [psutil.Process(number) for number in process_ids(client)]
    asleep = sleepers.asleep(graph, step, 0.0)
    before = sleepers.processor(psutil.Process(), *workers)
    began = time.time()
    slept = client.get(asleep, root, sync=False).result()[0]
    used = [now - then for now, then in zip(sleepers.processor(psutil.Process(), *workers), before, strict=True)]
    pings = [_seconds(lambda: client.run_on_scheduler(int)) for _ in range(sleepers.PINGS)]
    found = {
        "tasks": len(graph) - 2, "start": slept.first - began, "ping": median(pings),
        "scheduler_cpu": used[0], "workers_cpu": sum(used[1:]),
    }  # fmt: skip
    return _dask_costs_of(found | {"fetch": _fetch(client)})


def _dask_costs_of(found: Mapping[str, Any]) -> Costs:
    """Costs from what a run of spans that do nothing used."""
    tasks, latency = found["tasks"], found["ping"] / 2
    submit = max(0.0, found["start"] - latency) / tasks
    return Costs(
        submit=submit,
        scheduler=max(0.0, found["scheduler_cpu"] / tasks - submit),  # which is the same processor's time
        worker=found["workers_cpu"] / tasks,
        latency=latency,
        fetch=found["fetch"],
    )


def _fetch(client: Client) -> float:
    """Seconds more that a task takes whose input lies on another worker; 0 where there is no other."""
    addresses = list(client.scheduler_info(n_workers=-1)["workers"])
    if len(addresses) < 2:
        return 0.0
    return max(0.0, median(sleepers.fetched(client, addresses[0], addresses[1]) for _ in range(FETCHES)))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# What the simulator says


def passes(job: Any, costs: Mapping[str, float], dask: Costs, workers: int) -> list[Timeline]:
    """Both passes of a least-squares job, simulated; the graph is that of the first, which the second shares."""
    graph = sleepers.graph_of(job)[0]

    def one(row: float, child: float) -> Timeline:
        return simulate(tasks_of(graph, lambda rows: rows * row, lambda children: children * child), workers, dask)

    return [one(costs[name], costs[f"{name}-merge"]) for name in PASSES]


def _foretold(
    name: str, make: Callable[..., Any], found: Mapping[str, Any], sizes: Sequence[int], dask: Mapping[int, Costs]
) -> Iterator[dict[str, Any]]:
    """Real runs beside what the simulator says of them."""
    for rows in sizes[1:]:
        for count, costs in found["costs"].items():
            seconds = sum(one.seconds for one in passes(make(rows), costs, dask[count], count))
            measured = found["seconds"][f"{rows} {count}"]
            say(f"  {name}, {rows:,} rows, {count} workers: {measured:.2f} s, simulated {seconds:.2f} s")
            yield {"source": name, "rows": rows, "workers": count, "seconds": measured, "simulated": seconds}


def _foretold_asleep(case: dict[str, Any], dask: Costs) -> dict[str, Any]:
    graph = sleepers.graph_of(sleepers.synthetic_job(case["rows"], case["columns"]))[0]
    tasks = tasks_of(graph, lambda rows: case["seconds"], lambda children: 0.0)
    seconds = simulate(tasks, case["workers"], dask, case["hosts"]).seconds
    say(
        f"  {case['spans']:,} spans asleep, {case['workers']} workers: {case['total']:.2f} s, simulated {seconds:.2f} s"
    )
    return case | {"simulated": seconds}


def _foreseen(costs: Mapping[str, float], dask: Costs) -> Iterator[dict[str, Any]]:
    """Strong and weak scaling on clusters that are not there."""
    for rows in FORESEEN:
        for span_seconds in (None, SHORTER) if rows < max(FORESEEN) else (None,):  # which has as many as can be
            yield from _family("strong", [(rows, workers) for workers in WORKERS], span_seconds, costs, dask)
    yield from _family("weak", [(ROWS_OF_A_WORKER * workers, workers) for workers in WORKERS], None, costs, dask)


def _family(
    name: str, cases: Sequence[tuple[int, int]], span_seconds: float | None, costs: Mapping[str, float], dask: Costs
) -> Iterator[dict[str, Any]]:
    """Efficiency is the work of spans and merges over all seconds of all workers."""
    for rows, workers in cases:
        job = sleepers.synthetic_job(rows, COLUMNS, span_seconds)
        found = passes(job, costs, dask, workers)
        seconds = sum(one.seconds for one in found)
        efficiency = sum(one.busy for one in found) / (workers * seconds)
        scheduler_busy = sum(one.scheduler_busy for one in found) / seconds
        spans = sum(len(key) == 2 for key in found[0].ran if isinstance(key, tuple))
        yield {
            "scaling": name, "rows": rows, "workers": workers, "span_seconds": span_seconds, "spans": spans,
            "seconds": seconds, "efficiency": efficiency, "scheduler_busy": scheduler_busy,
            "limit": limit(spans, workers, efficiency, scheduler_busy),
        }  # fmt: skip


def limit(spans: int, workers: int, efficiency: float, scheduler_busy: float) -> str:
    """What keeps the workers from being busy all the time."""
    if spans < workers:
        return f"{spans} spans"
    if scheduler_busy > 0.5:
        return "scheduler"
    rounds = -(-spans // workers) * workers / spans
    if efficiency > 0.95:
        return "rows"
    return "last round" if rounds - 1 > (1 / efficiency - 1) / 2 else "start and merges"
