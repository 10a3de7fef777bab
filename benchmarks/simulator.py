"""A cluster that is not there: the same graph on any number of workers, one event after the other.

What is carried is the graph that pipelines.engine builds; what it takes is measured: the seconds of a span and of a
merge, and what Dask needs for each task.  Scheduler and workers are modelled as Dask 2026 has them with the settings of
workers.clusters: the scheduler is one server that handles one message after another; spans wait there in the order of
dask.order, and each worker has two in hand, one of which runs; a merge goes to a worker that has most of its children,
before further spans, once the others' states have come over.

Nothing is random, so the same costs give the same seconds.  Not modelled: the network's and a shared store's limits,
workers that differ, and failures.
"""

import heapq
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import Any

from dask.core import get_dependencies
from dask.order import order
from dask.task_spec import Task

from pipelines.engine import do_span, merge_states, start_only
from pipelines.meter import Graph
from workers.clusters.local import SETTINGS

IN_HAND = ceil(SETTINGS["distributed.scheduler.worker-saturation"])
"""Tasks that a worker of one thread has at a time while more wait at the scheduler."""


@dataclass(frozen=True)
class Costs:
    """What Dask takes, in seconds."""

    submit: float
    """Of each task, from `client.get` until the first may run: the graph is sent and ordered."""
    scheduler: float
    """Of the scheduler for each task that ends; it does nothing else meanwhile."""
    worker: float
    """Of the process that a worker lives in, for each task."""
    latency: float
    """Of a message to or from the scheduler."""
    fetch: float
    """Until a state of another worker is here."""


@dataclass(frozen=True)
class Node:
    """A task of the graph."""

    needs: tuple[Hashable, ...]
    rank: int
    """Its place in dask.order: the lower, the sooner."""
    seconds: float
    queued: bool
    """True for a span, which waits at the scheduler."""


@dataclass(frozen=True)
class Timeline:
    """What a simulated pass took."""

    seconds: float
    """From `client.get` until the root is here."""
    busy: float
    """Seconds of work on spans and merges, of all workers together."""
    scheduler_busy: float
    """Seconds in which the scheduler had something to do."""
    last_span: float
    """When the last span ended; after it there are merges only."""
    ran: dict[Hashable, int]
    """Which worker ran which task."""


def tasks_of(graph: Graph, span: Callable[[int], float], merge: Callable[[int], float]) -> dict[Hashable, Node]:
    """The tasks of a graph of pipelines.engine.build, with `span(rows)` and `merge(children)` seconds of work."""
    ranks = order(graph)

    def seconds(task: Any) -> tuple[float, bool]:
        if isinstance(task, Task) and task.func is do_span:
            rows = task.args[2]
            return span(rows.stop - rows.start), True
        function = task[0] if isinstance(task, tuple) and task else None
        if function is merge_states:
            return merge(len(task[2])), False
        if function is start_only or not callable(function):
            return 0.0, False
        raise ValueError(f"{function} is no task of a pass")

    return {
        key: Node(tuple(sorted(get_dependencies(graph, key), key=ranks.__getitem__)), ranks[key], *seconds(task))
        for key, task in graph.items()
    }


def simulate(tasks: Mapping[Hashable, Node], workers: int, costs: Costs, hosts: int | None = None) -> Timeline:
    """The tasks on so many workers of one thread each, which live in as many processes unless `hosts` says fewer.

    Raises:
        ValueError: there are no workers, or the tasks need each other in a circle.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers can do nothing")
    return _Run(tasks, workers, costs, hosts or workers).run()


@dataclass
class _Worker:
    host: int
    free: float = 0.0
    """When its thread is done with what it runs."""
    running: bool = False
    ready: list[tuple[int, Hashable]] = field(default_factory=list)
    """A heap of what has all its input here."""
    in_hand: int = 0


class _Run:
    """The state of a simulation; every event is a call at a time."""

    def __init__(self, tasks: Mapping[Hashable, Node], workers: int, costs: Costs, hosts: int) -> None:
        self.tasks, self.costs = tasks, costs
        self.workers = [_Worker(number % hosts) for number in range(workers)]
        self.hosts = [0.0] * hosts
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.numbers = count()
        self.queue: list[tuple[int, Hashable]] = []
        self.waiting = {key: len(task.needs) for key, task in tasks.items()}
        self.dependents: dict[Hashable, list[Hashable]] = {key: [] for key in tasks}
        for key, task in tasks.items():
            for needed in task.needs:
                self.dependents[needed].append(key)
        self.holders: dict[Hashable, set[int]] = {}
        self.ran: dict[Hashable, int] = {}
        self.scheduler_free = self.scheduler_busy = self.busy = self.last_span = self.over = 0.0

    def run(self) -> Timeline:
        start = self.costs.submit * len(self.tasks) + self.costs.latency
        self._at(start, self._hand_out, [key for key, needed in self.waiting.items() if not needed])
        while self.events:
            time, _, call, arguments = heapq.heappop(self.events)
            call(time, *arguments)
        if len(self.ran) < len(self.tasks):
            raise ValueError(f"{len(self.tasks) - len(self.ran)} tasks need each other in a circle")
        return Timeline(self.over, self.busy, self.scheduler_busy, self.last_span, self.ran)

    def _at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), call, arguments))

    # The scheduler

    def _hand_out(self, now: float, ready: list[Hashable]) -> None:
        """Tasks whose input is there: spans into the queue, others to a worker at once."""
        for key in sorted(ready, key=lambda key: self.tasks[key].rank):
            if self.tasks[key].queued:
                heapq.heappush(self.queue, (self.tasks[key].rank, key))
            else:
                self._send(now, key, self._best(key))
        self._fill(now)

    def _fill(self, now: float) -> None:
        """Spans for workers that have too few in hand, the emptiest first."""
        for held in range(IN_HAND):
            for number, worker in enumerate(self.workers):
                if self.queue and worker.in_hand == held:
                    self._send(now, heapq.heappop(self.queue)[1], number)

    def _best(self, key: Hashable) -> int:
        """The worker that has most of what a task needs, and of those the one with the least to do."""
        held = [0] * len(self.workers)
        for needed in self.tasks[key].needs:
            for number in self.holders[needed]:
                held[number] += 1
        return min(range(len(held)), key=lambda number: (-held[number], self.workers[number].in_hand, number))

    def _send(self, now: float, key: Hashable, number: int) -> None:
        self.workers[number].in_hand += 1
        self._at(now + self.costs.latency, self._arrives, key, number)

    def _hears(self, now: float, key: Hashable, number: int) -> None:
        """A worker says that a task is done: the scheduler turns to that when it is through with what came before."""
        begins = max(now, self.scheduler_free)
        self.scheduler_free = begins + self.costs.scheduler
        self.scheduler_busy += self.costs.scheduler
        self._at(self.scheduler_free, self._knows, key, number)

    def _knows(self, now: float, key: Hashable, number: int) -> None:
        self.holders.setdefault(key, set()).add(number)
        self.workers[number].in_hand -= 1
        self.over = now + self.costs.latency
        ready = []
        for other in self.dependents[key]:
            self.waiting[other] -= 1
            if not self.waiting[other]:
                ready.append(other)
        self._hand_out(now, ready)

    # The workers

    def _arrives(self, now: float, key: Hashable, number: int) -> None:
        """A task is here; what it needs of other workers comes first, all at once, and stays."""
        missing = [needed for needed in self.tasks[key].needs if number not in self.holders[needed]]
        for needed in missing:
            self.holders[needed].add(number)
        self._at(now + (self.costs.fetch if missing else 0.0), self._ready, key, number)

    def _ready(self, now: float, key: Hashable, number: int) -> None:
        heapq.heappush(self.workers[number].ready, (self.tasks[key].rank, key))
        self._begin(now, number)

    def _begin(self, now: float, number: int) -> None:
        worker = self.workers[number]
        if worker.running or not worker.ready:
            return
        worker.running = True
        key = heapq.heappop(worker.ready)[1]
        self.ran[key] = number
        self.busy += self.tasks[key].seconds
        self._at(now + self.tasks[key].seconds, self._ends, key, number)

    def _ends(self, now: float, key: Hashable, number: int) -> None:
        """The process that the worker lives in sees to the end of the task, after those of others."""
        if self.tasks[key].queued:
            self.last_span = now
        host = self.workers[number].host
        self.hosts[host] = max(now, self.hosts[host]) + self.costs.worker
        self._at(self.hosts[host], self._through, key, number)

    def _through(self, now: float, key: Hashable, number: int) -> None:
        self.workers[number].running = False
        self._at(now + self.costs.latency, self._hears, key, number)
        self._begin(now, number)
