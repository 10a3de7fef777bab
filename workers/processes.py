"""The processes of the service: how one of them ended, which is which, and how to know that none of them is left."""

import fcntl
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipelines.errors import RunFailed

AGENT_LOCK, JOBS_LOCK = "agent.lock", "jobs.lock"
"""Held alone by the agent, and shared by the agent and its job processes."""
LAST_SECONDS = 10.0
"""Time that a process has to clean up after it was told to end."""
WAIT_FOR_THE_DEAD = 5.0
"""Processes of a dead agent end within this time, or are killed."""
NICE = 5
"""Jobs and workers step back where cores are short: the server answers within milliseconds or people submit twice."""

Identity = dict[str, Any]
"""A process, told from a later one of the same number: {"pid", "began"}."""


def how_it_died(code: int | None, what: str = "The job's process") -> str:
    """What an exit status says about a process."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = " The kernel does that when memory runs out." if -code == signal.SIGKILL else ""
        return f"{what} was killed by {name}.{memory}"
    return f"{what} ended with status {code} and without a word."


def identity(pid: int) -> Identity:
    """A process, told from a later one of the same number."""
    import psutil

    try:
        return {"pid": pid, "began": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "began": 0.0}


@contextmanager
def alone(state: Path, left: Callable[[], list[Identity]]) -> Iterator[None]:
    """While this lasts, no process of an earlier agent of this place lives; those that are `left` are killed.

    Raises:
        RunFailed: another agent of this place lives, and stays.
    """
    with (state / AGENT_LOCK).open("a") as agent, (state / JOBS_LOCK).open("a") as jobs:
        if not _locked_within(agent, 2 * LAST_SECONDS):
            raise RunFailed(f"Another agent works in {state} already. Stop it, or give this one a folder of its own.")
        while not _locked_within(jobs, WAIT_FOR_THE_DEAD):
            kill(left())
        kill(left())  # one may be frozen, and not hold the lock yet
        fcntl.flock(jobs, fcntl.LOCK_SH)  # job processes of ours share it
        yield


def _locked_within(lock: IO[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not _locked(lock):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _locked(lock: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def kill(processes: Iterable[Identity]) -> None:
    """End these processes, if they are still the same."""
    import psutil

    for one in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(one["pid"])
            if abs(process.create_time() - one["began"]) < 1:
                process.kill()
