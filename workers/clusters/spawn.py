"""How worker processes start: forked from a small server that has imported what they need, and nothing of ours.

Dask starts a worker as a new interpreter that imports the user's script again, takes its thread counts from the
user's environment, gets every Ctrl-C that is meant for the program, and needs half a second to import Dask.
Here a server (the standard library's `forkserver`) starts once per cluster, with the environment that we decide
and with Ctrl-C blocked, while the driver imports Dask itself; each worker, and each one that replaces a dead
worker, is a fork of it, within milliseconds.  A script needs no `if __name__ == "__main__"`.

Nothing outlives the driver: its end of a pipe closes when it dies, even by SIGKILL, and workers and server go.
"""

import atexit
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context, forkserver, popen_forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.process import BaseProcess
from typing import Any

METHOD = "tallgrass"
"""The name by which Dask finds our way of starting processes (`distributed.worker.multiprocessing-method`)."""

ENVIRONMENT = {
    # One BLAS thread per task: workers share the cores already, and the user's environment has no say.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    # Chunks of 32 MB and more are faulted in by huge pages: half the processor time of a read (glibc ≥ 2.35).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A chunk of zeros is data: left out, it could not be told from a chunk that got lost.
    "ZARR_ARRAY__WRITE_EMPTY_CHUNKS": "True",
    # A `pipelines` or `workers` folder in the directory in which the command runs is not ours.
    "PYTHONSAFEPATH": "1",
    # The same hash of the same text in every process, as Dask asks for.
    "PYTHONHASHSEED": "6640",
}
"""What is in every worker's environment before its interpreter starts."""

REMOVED = ("MALLOC_TRIM_THRESHOLD_",)
"""Not wanted: a trim threshold stops malloc from keeping the memory of one chunk for the next."""

IMPORTED = [
    *("distributed.nanny", "distributed.worker", "numpy", "scipy.linalg", "zarr"),
    *("pipelines.engine", "workers.clusters.child"),
]
"""What the server imports before it forks: no module that starts a thread, since threads do not survive a fork."""


class _Server(forkserver.ForkServer):
    """A fork server of our own; the one in the standard library may be running for somebody else."""

    _forkserver_pid: int | None
    _stop: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload(IMPORTED)
        self._guard = threading.RLock()
        self._stopped = True

    def begin(self) -> None:
        """Start the server for a cluster."""
        with self._guard:
            self._stopped = False
            self.ensure_running()

    def ensure_running(self) -> None:
        """Start the server again if it died; it and its forks have our environment and no Ctrl-C.

        Raises:
            RuntimeError: it was stopped: a nanny that is late would leave a server that nobody ends.
        """
        with self._guard:
            if self._stopped:
                raise RuntimeError("the server that forks workers was stopped")
            with _interrupts_blocked():
                resource_tracker.ensure_running()  # by itself, since starting it unblocks Ctrl-C
            with _environment(), _interrupts_blocked():
                super().ensure_running()

    def stop(self) -> None:
        """End the server at once, and every fork of it that is left; it does not start again by itself."""
        with self._guard:
            self._stopped = True
            if self._forkserver_pid is not None:
                import psutil

                with suppress(psutil.NoSuchProcess):
                    server = psutil.Process(self._forkserver_pid)
                    for process in [*server.children(), server]:
                        process.kill()
                self._stop()


TRIES, PAUSE = 8, 0.02
"""Times that a process is asked of the server before its start has failed; seconds after the first, which double."""


class _Popen(popen_forkserver.Popen):
    """A process forked from our server, which does not import the user's script."""

    _fds: list[int]

    def _launch(self, process_obj: Any) -> None:
        # The server may be killed at any moment (by the kernel, for memory): it starts again, and we ask again later,
        # since one that is dying does not answer, and is not dead yet.
        for attempt in range(1, TRIES + 1):
            try:
                self._ask_server(process_obj)
                break
            except (EOFError, OSError) as error:
                if attempt == TRIES:
                    raise RuntimeError(f"the server that forks workers died {TRIES} times: {error}") from error
                time.sleep(PAUSE * 2**attempt)
                SERVER.ensure_running()

    def _ask_server(self, process_obj: Any) -> None:
        self._fds = []
        message = self._message(process_obj)  # pickling it collects the descriptors that the child needs
        self.sentinel, to_child = SERVER.connect_to_new_process(self._fds)
        keep_open = os.dup(to_child)  # the child sees its end close when this process dies
        self.finalizer = util.Finalize(self, _close, (keep_open, self.sentinel))
        with open(to_child, "wb") as pipe:
            pipe.write(message)
        self.pid = forkserver.read_signed(self.sentinel)

    def _message(self, process_obj: Any) -> bytes:
        """What the child has to know, and what it has to run."""
        preparation = spawn.get_preparation_data(process_obj.name)
        for key in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(key, None)
        return pickled(self, preparation, process_obj)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def pickled(popen: Any, *values: Any) -> bytes:
    """The values one after the other, pickled for the process that `popen` starts."""
    buffer = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        for value in values:
            reduction.dump(value, buffer)
    finally:
        context.set_spawning_popen(None)
    return buffer.getvalue()


class _Process(context.ForkServerProcess):
    def run(self) -> None:
        """What the process is for; when it breaks, its exit status tells the nanny, and nothing is printed."""
        try:
            super().run()
        except Exception:  # noqa: BLE001  # Dask has logged it
            sys.exit(1)

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:
        return _Popen(process_obj)


class _Context(context.ForkServerContext):
    Process = _Process


SERVER = _Server()
atexit.register(SERVER.stop)  # or Python would wait for ever for a server that an ill-timed signal left behind
_users = 0
_lock = threading.Lock()


def register() -> str:
    """The method by which Dask shall start processes: ours on Linux, the standard library's `spawn` elsewhere."""
    if sys.platform != "linux":
        return "spawn"  # a fork after a system library has started threads is not safe there
    context._concrete_contexts.setdefault(METHOD, _Context())  # type: ignore[attr-defined]  # noqa: SLF001
    return METHOD


@contextmanager
def fork_server() -> Iterator[str]:
    """The server runs, and the method by which to ask it for processes; it stops with the last cluster."""
    global _users  # noqa: PLW0603  # one server for all clusters of this process
    method = register()
    with _lock:
        _users += 1
    try:
        warm_up()
        with _unchanged_environment():
            yield method
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                SERVER.stop()


def warm_up() -> None:
    """Start the server now: it imports Dask, NumPy and Zarr while the driver does something else."""
    if register() == METHOD:
        SERVER.begin()


@contextmanager
def _environment() -> Iterator[None]:
    """This process's environment is the workers', for as long as it takes to start one process."""
    with _unchanged_environment(*ENVIRONMENT, *REMOVED):
        os.environ.update(ENVIRONMENT)
        for name in REMOVED:
            os.environ.pop(name, None)
        yield


@contextmanager
def _unchanged_environment(*names: str) -> Iterator[None]:
    """Afterwards these variables are as they were; also the one that Dask sets in its own process."""
    before = {name: os.environ.get(name) for name in (*names, "PYTHONHASHSEED")}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started now never sees Ctrl-C or the end of its terminal: the driver does, and ends its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
