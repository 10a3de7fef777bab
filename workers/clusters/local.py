"""Worker processes on this machine: how many, how much memory each, and the settings of Dask that suit our work."""

import atexit
import errno
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipelines.errors import PlanRefused, RunFailed
from pipelines.fields import NOT_BOOL, Bytes, Model, Url, needed
from pipelines.units import format_bytes
from workers.clusters.machine import Machine, this_machine

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.plan import Resources

SMALLEST_WORKER = 256 * 2**20
"""Bytes below which a worker is full before it has begun: Python, Dask, NumPy, SciPy and Zarr take 130 MB."""

COMFORTABLE_WORKER = 512 * 2**20
"""Bytes below which `processes: auto` rather starts fewer workers."""

DRIVER = 512 * 2**20
"""Bytes held back for the driver: scheduler, client, and the algebra on what the workers leave behind."""

FILES_OF_A_WORKER = 8
"""What Dask makes in the scratch folder for each worker, and for the scheduler, before there is anything in it."""

CLOSE_SECONDS = 10
"""Closing takes a tenth of a second; after this long, processes are killed and Dask's own bookkeeping is left."""


def _enough_for_a_worker(memory: int) -> int:
    if memory < SMALLEST_WORKER:
        raise needed(f"auto, or at least {format_bytes(SMALLEST_WORKER)}: an idle worker takes half of that")
    return memory


WorkerBytes = Annotated[Bytes, AfterValidator(_enough_for_a_worker)]
"""Memory of a worker process."""


class Local(Model):
    """Worker processes on this machine.

    With `processes: auto`, one process per core that this process may use (processor affinity and the quotas of
    control groups count), fewer where memory is short; each gets an equal part of the memory that is free now
    (or left below the limits of the control groups), after 512 MiB or a tenth of it, whichever is more, is held
    back for the driver. Workers, scheduler and dashboard can be reached from this machine only (127.0.0.1).
    """

    kind: Literal["local"] = "local"
    """The kind of cluster."""
    processes: Literal["auto"] | Annotated[int, Field(ge=1), NOT_BOOL] = "auto"
    """Worker processes; auto is one per `threads` cores, and no more than the job has tasks."""
    threads: Annotated[int, Field(ge=1), NOT_BOOL] = 1
    """Tasks that one process runs at a time, each with one BLAS thread; they share its memory."""
    memory: Literal["auto"] | WorkerBytes = "auto"
    """Memory of each worker process, such as "4 GiB"; at 95 % of it the worker is started anew."""
    dashboard: Literal["auto", False] | Annotated[int, Field(ge=1, le=65535), NOT_BOOL] = "auto"
    """Port of Dask's dashboard; auto is 8787, or another where that is taken; false shows none."""
    scratch: Url | None = None
    """Folder for what does not fit in a worker's memory; the system's folder for temporary files when left out."""


SETTINGS: dict[str, Any] = {
    # A task whose worker died this many times more than once is the cause of it, not its victim.
    "distributed.scheduler.allowed-failures": 3,
    # A frozen worker loses its tasks after a minute; Dask's five minutes is longer than most jobs.
    "distributed.scheduler.worker-ttl": "60s",
    # Workers come back within a second; when none does for a minute, waiting (Dask: for ever) will not help.
    "distributed.scheduler.no-workers-timeout": "60s",
    # One task in hand while another runs: states are small, and asking for each task leaves the core idle meanwhile.
    "distributed.scheduler.worker-saturation": 2.0,
    # For developers of Dask: the last messages, each with its task; 1,000 to each worker would hold 100 MB in the end.
    "distributed.admin.low-level-log-length": 50,
    # What a client that has gone did is of no interest after a minute; Dask keeps it for an hour.
    "distributed.scheduler.events-cleanup-delay": "60s",
    # On a loaded machine an answer may take long; below 11 s Dask's own assertions fail.
    "distributed.comm.timeouts.connect": "30s",
    "distributed.comm.timeouts.tcp": "30s",
    # A connection that breaks for a moment is made again, and what was asked is asked again (Dask: never).
    "distributed.comm.retry.count": 3,
    # Finished states of spans go to disk beyond this part of the limit: correct, and slower.
    "distributed.worker.memory.target": 0.6,
    # Not when memory is full of a task's own rows: writing states to disk would not make room for them.
    "distributed.worker.memory.spill": False,
    # A paused worker waits for memory that only its own tasks could give back: rather start it anew.
    "distributed.worker.memory.pause": False,
    # The nanny ends a worker here, before the kernel ends something else.
    "distributed.worker.memory.terminate": 0.95,
    # Nothing goes into the driver's environment; the workers' is set where their processes are started.
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.nanny.environ": {},
    # Pages of other sites, open in the same browser, get no data from the dashboard.
    "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": ["127.0.0.1", "localhost"],
}
"""Dask's settings while a cluster of ours is open, each with its reason."""

OF_CLIENTS = {key: value for key, value in SETTINGS.items() if key.startswith("distributed.comm.")}
"""Those that are ours to decide where scheduler and workers are somebody else's; `doctor` looks at the others."""


def resources_of_local(model: Local, spans: int | None = None, machine: Machine | None = None) -> "Resources":
    """What the cluster will offer, known without starting it.

    Raises:
        PlanRefused: the workers are given more memory than the machine has.
    """
    from pipelines.plan import Resources

    machine = machine or this_machine()
    processes = _processes(model, machine)
    memory = _share(machine, processes) if model.memory == "auto" else model.memory
    if processes * memory > machine.memory_bytes:
        raise PlanRefused(_too_much(processes, memory, machine))
    if model.processes == "auto" and spans is not None:
        processes = max(1, min(processes, spans))
    return Resources(processes, model.threads, memory)


def _processes(model: Local, machine: Machine) -> int:
    if model.processes != "auto":
        return model.processes
    each = COMFORTABLE_WORKER if model.memory == "auto" else model.memory
    return max(1, min(machine.cores // model.threads, _for_workers(machine) // each))


def _for_workers(machine: Machine) -> int:
    return max(0, machine.available_bytes - max(DRIVER, machine.available_bytes // 10))


def _share(machine: Machine, processes: int) -> int:
    """An equal part for each worker, in whole 16 MiB."""
    return max(SMALLEST_WORKER, (_for_workers(machine) // processes) >> 24 << 24)


def _too_much(processes: int, memory: int, machine: Machine) -> str:
    return (
        f"{processes} workers of {format_bytes(memory)} are {format_bytes(processes * memory)}; this machine lets us "
        f"have {format_bytes(machine.memory_bytes)}. Lower `memory` or `processes` in the cluster file."
    )


@contextmanager
def open_local(model: Local, spans: int | None = None) -> Iterator["Client"]:
    """A client of worker processes that start now and are gone afterwards, with their files."""
    from workers.clusters.spawn import fork_server

    with ExitStack() as stack:
        method = stack.enter_context(fork_server())  # it imports Dask while we do
        resources = resources_of_local(model, spans)
        import dask
        import distributed

        from workers.clusters.logs import quiet

        stack.enter_context(quiet())
        scratch = stack.enter_context(scratch_folder(model.scratch))
        here = {"distributed.worker.multiprocessing-method": method, "temporary-directory": str(scratch)}
        stack.enter_context(dask.config.set(SETTINGS | here))
        cluster = stack.enter_context(_cluster(model, resources, scratch))
        yield stack.enter_context(distributed.Client(cluster))


@contextmanager
def _cluster(model: Local, resources: "Resources", scratch: Path) -> Iterator[Any]:
    import distributed

    nanny = nanny_class()
    _check_files(scratch, resources.workers)
    try:
        cluster = distributed.LocalCluster(
            n_workers=resources.workers,
            threads_per_worker=resources.threads,
            memory_limit=resources.memory_bytes,
            worker_class=nanny,
            host="127.0.0.1",
            # bokeh is imported when somebody looks at the dashboard, so it is attached below.
            scheduler_kwargs={"dashboard": False, "dashboard_address": f"127.0.0.1:{dashboard_port(model.dashboard)}"},
            silence_logs=50,  # workers print nothing either
            local_directory=str(scratch),
        )
    except (RuntimeError, OSError) as error:
        raise RunFailed(_does_not_start(resources, error)) from error
    except KeyboardInterrupt:
        # Half a cluster cannot be closed by Dask, which would print a traceback when Python ends.  Its nannies live on
        # in their thread, and must not start a process of another kind once our settings are gone.
        from distributed.deploy import spec

        nanny.leaving = True
        atexit.unregister(spec.close_clusters)
        raise
    with watched(cluster, model.dashboard):
        yield cluster


@contextmanager
def watched(cluster: Any, port: int | Literal["auto", False]) -> Iterator[Any]:
    """A cluster whose scheduler runs here, with its dashboard or without; closed at the end, however badly it goes."""
    from workers.clusters import dashboard

    if port is False:  # or clients would be told of one
        cluster.scheduler.services.pop("dashboard", None)
        cluster.scheduler_info["services"].pop("dashboard", None)
    else:
        cluster.loop.add_callback(dashboard.attach, cluster.scheduler)
    try:
        yield cluster
    finally:
        with suppress(Exception):  # what is left of it ends with the fork server, or notices that the scheduler is gone
            cluster.close(timeout=CLOSE_SECONDS)


def nanny_class() -> Any:
    """A class for the workers of one cluster: Dask's Nanny, which watches one worker process, with two differences.

    It waits for nothing when it closes: results are in their store, and states can be redone. And it starts one
    process at a time: Dask's begins another when one dies while it starts, and then cannot be closed.
    """
    import asyncio

    import distributed
    from distributed.core import Status

    class Nanny(distributed.Nanny):
        leaving = False

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.starting = asyncio.Lock()
            self.starter: asyncio.Task[Any] | None = None

        async def instantiate(self) -> Any:
            async with self.starting:
                self.starter = asyncio.current_task()
                return Status.closed if self.leaving else await super().instantiate()

        async def close(self, timeout: float = 5, reason: str = "nanny-close") -> Any:
            self.leaving = True
            if asyncio.current_task() is self.starter and self.starting.locked():
                self.process = None  # it could not be started, and who started it gives up: there is no end to wait for
                return await super().close(timeout=timeout, reason=reason)
            async with self.starting:
                if self.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)
            return await super().close(timeout=timeout, reason=reason)

    return Nanny


def _does_not_start(resources: "Resources", error: Exception) -> str:
    cause = str(error.__cause__ or error)
    return (
        f"The local cluster of {resources.workers} workers with {format_bytes(resources.memory_bytes)} each did not "
        f"start: {cause}. `tallgrass doctor` looks for the reason."
    )


def dashboard_port(dashboard: int | Literal["auto", False]) -> int:
    """The port for the scheduler's HTTP server, which runs in any case; 0 lets the system choose."""
    if dashboard is False:
        return 0
    wanted = 8787 if dashboard == "auto" else dashboard
    if dashboard == "auto" and not _free(wanted):
        return 0
    if not _free(wanted):
        raise RunFailed(f"Port {wanted} for the dashboard is taken. Set `dashboard: auto`, or another port.")
    return wanted


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[Path]:
    """A folder of our own, removed at the end; what runs that were killed left behind goes at the start."""
    base = Path(parent or tempfile.gettempdir())
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        folder = Path(tempfile.mkdtemp(prefix="tallgrass-", dir=base))
    except OSError as error:
        raise RunFailed(_no_scratch(base, error)) from error
    try:
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "lock")  # so that nobody sees it unlocked while we live
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_scratch(base: Path, error: OSError) -> str:
    advice = "Remove files there, or name" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Name"
    return f"No scratch folder in {base}: {error.strerror}. {advice} another one as `scratch`."


def _check_files(folder: Path, workers: int) -> None:
    """Raises RunFailed where the empty files and folders of workers cannot be made, of which Dask prints tracebacks."""
    probes = [folder / f"probe-{number}" for number in range(FILES_OF_A_WORKER * (workers + 1))]
    try:
        for probe in probes:
            probe.touch()
    except OSError as error:
        raise RunFailed(_no_scratch(folder.parent, error)) from error
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)


def _sweep(base: Path) -> None:
    """Remove folders whose owner is dead: nobody holds their lock."""
    for lock in base.glob("tallgrass-*/lock"):
        with suppress(OSError), lock.open() as file:
            if lock.stat().st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
