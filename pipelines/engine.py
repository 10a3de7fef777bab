"""Passes as Dask graphs: the only file that builds one, and building it reads nothing.

A task is a span: it opens the array, walks its rows slab by slab, and returns one small state.  States merge in
a tree that the numbers of the spans fix.  Raw rows never travel and never wait.
"""

import asyncio
import functools
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dask.config
import dask.threaded
import numpy as np
from dask.task_spec import Task, TaskRef
from threadpoolctl import ThreadpoolController

from pipelines import room, storage
from pipelines.checkpoints import Checkpoints, Place, checkpoints
from pipelines.errors import BadData, OutOfMemory, RunFailed
from pipelines.failures import ask_scheduler, explain
from pipelines.kernels import panels
from pipelines.matrix import InMemory, Span, System, Tally
from pipelines.meter import Graph, Meter, Work
from pipelines.passes.base import Pass, settled
from pipelines.passes.output import Target
from pipelines.patience import Patience
from pipelines.progress import Listener, Note
from pipelines.turns import Turns, served_now

REPORT_EVERY = 0.25
"""Seconds between two words of a task about how far it is."""

LARGE_GRAPH = "1 TB"
"""Dask warns of graphs above 10 MB; ours hold a triangle or two, each once."""

FRUGALLY = "one task at a time on each worker and nothing read ahead"
SOURCES = ("A", "b", "weights")
"""The fields of a System that rows come from."""

Tell = Callable[[int, int], None]
"""Called by a task with its span's number and the rows done of it."""


def walk(step: Pass[Any], system: System, span: Span, tell: Callable[[int], None]) -> tuple[Any, Tally]:
    """One span's state and tally: groups of slabs, merged as a binary counter so that no chain grows long."""
    counter: list[tuple[int, Any]] = []
    tally, state, slabs, done, bad = Tally(), step.start(), 0, 0, False
    for block in system.blocks(span):
        done += block.tally.rows + block.tally.omitted
        if bad:
            tally += system.scan(block)
            continue
        for slab in block.slabs(step.slab_rows):
            state, slabs = step.absorb(state, slab), slabs + 1
            if slabs % step.group == 0:
                _carry(counter, step, state)
                state = step.start()
            del slab  # the last one would hold its block while the next is read
        bad = not (step.finite(state) and (not counter or step.finite(counter[-1][1])))
        tally += system.scan(block) if bad else block.tally
        if bad and not tally.bad:
            raise BadData(_overflow(block.slab.start, block.slab.start + block.tally.rows))
        del block
        tell(done)
    while counter:
        state = step.merge(counter.pop()[1], state)
    return step.finish(state, span), tally


def _carry(counter: list[tuple[int, Any]], step: Pass[Any], state: Any) -> None:
    level = 0
    while counter and counter[-1][0] == level:
        state, level = step.merge(counter.pop()[1], state), level + 1
    counter.append((level, state))


def _overflow(start: int, stop: int) -> str:
    return (
        f"Rows {start:,} to {stop:,} hold finite numbers, but so large ones that their squares overflow 64-bit floats. "
        "Divide the matrix (and the right-hand side) by a power of ten and run the job again."
    )


def do_span(
    step: Pass[Any],
    system: System,
    span: Span,
    parts: Sequence[Any],
    run: str,
    kept: Checkpoints | None,
    frugal: bool = False,
) -> tuple[Any, Tally]:
    """The task of one span; `parts` are the span's rows of the sources that come in parts, else None."""
    found: dict[str, Any] = {
        name: InMemory(_two_dimensional(part), span.start)
        for name, part in zip(SOURCES, parts, strict=True)
        if part is not None
    }
    system = replace(system, **found)
    tell = _teller(run)

    def walked() -> tuple[Any, Tally]:
        return walk(settled(step), system, span, lambda rows: tell(span.number, rows))

    with room.alone(frugal or getattr(step, "alone", False)):
        if kept is None:
            return walked()
        made = kept.load(system, span)
        if made is not None:
            tell(span.number, span.stop - span.start)
            return made
        return kept.make(system, span, walked)


def _two_dimensional(part: Any) -> np.ndarray:
    array = np.asarray(part)
    return array.reshape(array.shape[0], -1) if array.ndim == 1 else array


def merge_states(step: Pass[Any], parts: Sequence[tuple[Any, Tally]]) -> tuple[Any, Tally]:
    """The task of one node of the tree: its children, from left to right."""
    return functools.reduce(lambda left, right: (step.merge(left[0], right[0]), left[1] + right[1]), parts)


def build(
    step: Pass[Any],
    work: Work,
    run: str,
    name: str | None = None,
    kept: Checkpoints | None = None,
    frugal: bool = False,
) -> tuple[Graph, Any]:
    """The graph of a pass, and the key of its root; keys carry a name for people and the run's for Dask."""
    name = name or step.name
    if not work.spans:
        return {(f"{name}-{run}", 0): (start_only, step)}, (f"{name}-{run}", 0)
    inputs, system = f"{name}-inputs-{run}", f"{name}-system-{run}"
    in_parts: dict[str, Any] = {name: None for name in SOURCES if hasattr(getattr(work.system, name), "part")}
    graph: Graph = dict(work.extra)
    graph[inputs] = step
    # What comes in parts must not travel whole with the system.
    graph[system] = replace(work.system, **in_parts)
    keys: list[Any] = []
    sources = [getattr(work.system, name) for name in SOURCES]
    for span in work.spans:
        parts = [source.part(span) if hasattr(source, "part") else None for source in sources]
        keys.append((f"{name}-{run}", span.number))
        graph[keys[-1]] = _span_task(keys[-1], inputs, system, span, parts, run, kept, frugal)
    return graph, _tree(graph, keys, inputs, step.fan_in, f"{name}-merge-{run}")


def _span_task(key: Any, inputs: str, system: str, span: Span, parts: list[Any], *rest: Any) -> Any:
    """The task of a span: it waits at the scheduler for a free thread, or goes to who has its block of a dask array."""
    if any(isinstance(part, tuple) for part in parts):  # keys of blocks
        return (do_span, inputs, system, span, parts, *rest)
    # Where spans are few Dask would otherwise send them all to who has their inputs, for others to steal.
    return Task(key, do_span, TaskRef(inputs), TaskRef(system), span, parts, *rest, _data_producer=True)


def start_only(step: Pass[Any]) -> tuple[Any, Tally]:
    """The state of a matrix without rows."""
    return step.start(), Tally()


def _tree(graph: Graph, keys: list[Any], inputs: str, fan_in: int, name: str) -> Any:
    level = 0
    while len(keys) > 1:
        groups = [keys[i : i + fan_in] for i in range(0, len(keys), fan_in)]
        keys = [(name, level, number) for number in range(len(groups))]
        graph.update({key: (merge_states, inputs, group) for key, group in zip(keys, groups, strict=True)})
        level += 1
    return keys[0]


def graph_of(arrays: Sequence[Any]) -> Graph:
    """The graphs behind dask arrays, as Dask would run them: their blocks are made by the tasks that need them."""
    graph: Graph = {}
    for array in arrays:
        graph.update(array.__dask_optimize__(array.__dask_graph__(), array.__dask_keys__()))
    return graph


_tellers: dict[str, Tell] = {}
"""Runs of this process, for tasks that run in its threads."""


def _teller(run: str) -> Tell:
    """How a task says how far it is: a call in this process, an event on a worker of a cluster."""
    if run in _tellers:
        return _tellers[run]
    worker = _this_worker()
    if worker is None:
        return lambda span, rows: None
    _one_blas_thread()
    panels.use_threads(worker.state.nthreads)
    room.limited(worker.memory_manager.memory_limit or 0)
    last = [0.0]

    def tell(span: int, rows: int) -> None:
        if time.monotonic() - last[0] > REPORT_EVERY:
            last[0] = time.monotonic()
            worker.log_event(run, {"span": span, "rows": rows})

    return tell


def _this_worker() -> Any:
    from distributed import get_worker  # only tasks on a cluster come here, and there it is loaded already

    try:
        return get_worker()
    except ValueError:
        return None


@functools.cache
def _one_blas_thread() -> None:
    """One BLAS thread in this worker from now on: tasks fill the cores, and the bits must not depend on it."""
    ThreadpoolController().limit(limits=1)


def one_blas_thread() -> Any:
    """A context in which this process's BLAS runs on one thread."""
    return ThreadpoolController().limit(limits=1)


class Engine:
    """Runs passes, on a cluster's client or in the threads of this process."""

    def __init__(
        self,
        client: Any,
        listener: Listener,
        no_progress_timeout: float,
        threads: int,
        label: str | None = None,
    ) -> None:
        self.client, self.listener, self.threads = client, listener, threads
        self.label = label
        """What the dashboard shows before the name of each pass: the name of a job, where many share a cluster."""
        self.kept: Place | None = None
        """Where spans leave what they made for a later run."""
        self.tag = 0.0
        """Where the last pass ended, in rounds of the cluster (pipelines.turns)."""
        self.no_progress_timeout = no_progress_timeout
        self.run = uuid.uuid4().hex[:12]
        self.passes = 0
        self.timings: dict[str, float] = {}
        self.broke = False
        """True when it was a task that failed, and not what came out of a pass."""
        self.frugal = False
        """Tasks take no more memory than they must: workers have died for want of it."""
        self._wrote: list[tuple[tuple[Target, ...], int]] = []
        self.loaded, self.unsaved = 0, ""
        """Spans that an earlier run had done, and why some of this one could not be kept."""

    def __call__(self, step: Pass[Any], work: Work, again: int = 2) -> tuple[Any, Tally]:
        """The pass's state over all rows of `work`.

        What a span has written may be spoilt by a late twin of its own, which Dask took for dead, or of another run's:
        the pass is gone over `again` then.  When workers die for want of memory it is tried once more, frugally.

        Raises:
            BadData: the data is missing or damaged.
            Stalled: nothing moved for `no_progress_timeout` seconds.
        """
        self.passes += 1
        run = f"{self.run}{self.passes:02x}"
        meter = Meter(step, work, self.passes, self.listener)
        kept = checkpoints(self.kept, run, step, work.system)
        graph, root = build(
            step, work, run, f"{_word(self.label)}:{step.name}" if self.label else None, kept, self.frugal
        )
        compute = self._in_threads if self.client is None else self._on_cluster
        self.broke = True
        try:
            state, tally = compute(graph, root, run, meter)
        except OutOfMemory as error:
            if self.frugal or not self._can_save(work):
                raise OutOfMemory(f"{error} That was with {FRUGALLY}." if self.frugal else str(error)) from error
            why = f"workers died for want of memory ({error.found})"
            self.listener(Note(f"{step.name}: {why}; it is tried again with {FRUGALLY}"))
            self.frugal = True
            return self(step, work, again)
        self.broke = False
        if kept is not None and kept.targets:
            if again and not self._is_as_written(kept.targets, tally.wrote):  # spans that hold are not done again
                return self(step, work, again - 1)
            self._wrote.append((kept.targets, tally.wrote))
        meter.finish()
        self._tell_of_checkpoints(step.name, tally, work)
        name = step.name if step.name not in self.timings else f"{step.name}-{self.passes}"
        self.timings[name] = time.monotonic() - meter.began
        return state, tally

    def _can_save(self, work: Work) -> bool:
        """Whether a task could do with less memory: beside it others run, or it reads ahead."""
        longest = max((span.stop - span.start for span in work.spans), default=0)
        return self.threads > 1 or (work.system.reads_ahead and longest > work.system.block_rows)

    def _tell_of_checkpoints(self, name: str, tally: Tally, work: Work) -> None:
        self.loaded += tally.loaded
        if tally.loaded:
            self.listener(Note(f"{name}: {tally.loaded} of {len(work.spans)} spans were done by an earlier run"))
        if tally.unsaved and not self.unsaved:
            assert self.kept is not None
            self.unsaved = tally.unsaved
            self.listener(
                Note(
                    f"{name}: what is done cannot be kept at {self.kept.address} ({tally.unsaved}), so an interrupted "
                    "run will start again; choose an output beside which all workers can write, to have it kept"
                )
            )

    def check_written(self) -> None:
        """Raises RunFailed when a chunk that spans have written is not there, or was written by somebody else."""
        for targets, expected in self._wrote:
            if not self._is_as_written(targets, expected):
                raise RunFailed(
                    f"Something else wrote to {targets[0].url} while this job did, or removed a part of it: perhaps "
                    "tasks of a run that was killed, which their cluster had not given up yet. Run the job again: only "
                    "what was spoilt is done once more."
                )

    def _is_as_written(self, targets: tuple[Target, ...], expected: int) -> bool:
        return sum(storage.whole_identity(target.url, self.run) for target in targets) % 2**128 == expected

    def _in_threads(self, graph: Graph, root: Any, run: str, meter: Meter) -> tuple[Any, Tally]:
        last = [0.0]

        def tell(span: int, rows: int) -> None:
            meter.tell(span, rows)
            if time.monotonic() - last[0] > REPORT_EVERY:
                last[0] = time.monotonic()
                meter.show()

        _tellers[run] = tell
        panels.use_threads(self.threads)
        try:
            result: tuple[Any, Tally] = dask.threaded.get(graph, root, num_workers=self.threads)
            return result
        finally:
            del _tellers[run]

    def _on_cluster(self, graph: Graph, root: Any, run: str, meter: Meter) -> tuple[Any, Tally]:
        self.client.subscribe_topic(run, lambda event: meter.tell(event[1]["span"], event[1]["rows"]))
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGE_GRAPH}):
            future = self.client.get(graph, root, sync=False, **self._turns(meter))
        try:
            return self._awaited(future, meter)
        except BaseException as error:
            with suppress(Exception):  # the cluster may be what failed
                self.client.cancel([future], force=True)
            if isinstance(error, Exception):
                raise explain(self.client, error) from error
            raise
        finally:
            with suppress(Exception):  # as above
                self.client.unsubscribe_topic(run)

    def _turns(self, meter: Meter) -> dict[str, Any]:
        """Where jobs share a cluster, what gives each of them the same part of it."""
        if self.label is None:
            return {}
        now = ask_scheduler(self.client, served_now)
        if now is None:  # a scheduler without Tallgrass: first come, first served
            return {}
        slots = max(1, sum(self.client.nthreads().values()))
        turns = Turns(max(now, self.tag), slots, meter.fan_in)
        self.tag = turns.end(len(meter.work.spans))
        return {"priority": turns}

    def _awaited(self, future: Any, meter: Meter) -> tuple[Any, Tally]:
        """The state at the root, once it is there and has come from its worker, which may freeze before it is sent."""
        result = future._result()  # noqa: SLF001  # the coroutine of result(), so that we can look around meanwhile
        fetched = asyncio.run_coroutine_threadsafe(result, self.client.loop.asyncio_loop)
        patience = Patience(self.client, self.no_progress_timeout, keeps=self.kept is not None)
        try:
            while not futures.wait([fetched], REPORT_EVERY).done:
                patience.look(meter)
                meter.show()
        finally:
            fetched.cancel()  # where nobody waits for it any more
        found: tuple[Any, Tally] = fetched.result()
        return found


def _word(label: str) -> str:
    """A label as Dask shows it whole: it cuts names at hyphens that digits follow."""
    return re.sub(r"\W+", "_", label)
