"""Why a cluster failed, in words for the person who can do something about it.

Dask says that a task was tried on four workers which all died; why they died stands in the log of the processes
that watch over them. Those of a local cluster log in this process, those of another one are asked.
"""

import re
import signal
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pipelines.errors import ClusterUnreachable, JobCancelled, OutOfMemory, RunFailed, Stalled, TallgrassError
from pipelines.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from distributed import Client

RECENT: deque[str] = deque(maxlen=1000)
"""The last lines that Dask logged in this process; nannies of a local cluster run here, so deaths are among them."""

ASK_SECONDS = 5.0
"""A scheduler that is well answers within milliseconds; one that does not answer by then is the explanation."""

_OVER_LIMIT = re.compile(r"exceeded (\d+)% memory budget")
_SIGNAL = re.compile(r"was killed by signal (\d+)")
_EXIT = re.compile(r"exited with status (\d+)")

MORE_MEMORY = (
    "Give each worker more memory (`memory` in the cluster file, or fewer `processes`), "
    "or store the matrix in smaller chunks"
)


def explain(client: "Client", error: BaseException) -> TallgrassError:
    """The error as one of ours, with its cause: never raises, and takes a few seconds at most."""
    name = type(error).__name__
    if isinstance(error, TallgrassError):
        return error
    if name == "KilledWorker":
        return _killed(client, error)
    if name in ("NoWorkerError", "NoValidWorkerError"):
        return Stalled(_without_workers(client, error))
    if name in ("FuturesCancelledError", "FutureCancelledError", "CancelledError"):
        return _cancelled(client, error)
    if name == "CommClosedError" or isinstance(error, TimeoutError | ConnectionError):
        return ClusterUnreachable(f"The cluster stopped answering ({_first_line(error)}): {cluster_state(client)}.")
    if isinstance(error, MemoryError):
        return RunFailed(f"A worker could not get the memory that it asked for ({_first_line(error)}). {MORE_MEMORY}.")
    return RunFailed(f"A task failed with {name}: {_first_line(error)}.")


def cluster_state(client: "Client") -> str:
    """One phrase: "2 workers, all paused: memory 95 % used", "no workers connected", ..."""
    return state_of(workers_now(client))


def state_of(workers: list[dict[str, Any]] | None) -> str:
    """The same of what `workers_now` gives."""
    if workers is None:
        return "the scheduler does not answer"
    if not workers:
        return "no workers connected"
    count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
    paused = sum(worker["status"] == "paused" for worker in workers)
    if paused:
        return f"{count}, {'all' if paused == len(workers) else paused} paused: {_memory(workers)}"
    return f"{count} running, {_memory(workers)}"


def workers_now(client: "Client", seconds: float = ASK_SECONDS) -> list[dict[str, Any]] | None:
    """What the scheduler knows of each worker now, or None when it does not answer."""
    if client.scheduler is None or client.status != "running":
        return None
    try:
        found = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=seconds)
    except (OSError, TimeoutError, RuntimeError):  # RuntimeError: its event loop has stopped
        return None
    return list(found["workers"].values())


def ask_scheduler(client: "Client", function: Callable[..., float], seconds: float = ASK_SECONDS) -> float | None:
    """What a function gives on the scheduler; None where that does not answer, or has no Tallgrass."""
    try:
        found: float = client.sync(client._run_on_scheduler, function, callback_timeout=seconds)  # noqa: SLF001
    except Exception:  # noqa: BLE001  # whatever it is, nothing follows from it
        return None
    return found


def _memory(workers: Iterable[dict[str, Any]]) -> str:
    """The fullest worker."""
    used = [(worker["metrics"].get("memory", 0), worker["memory_limit"] or 0) for worker in workers]
    part, memory = max((memory / limit if limit else 0.0, memory) for memory, limit in used)
    return f"memory {part:.0%} used".replace("%", " %") if part else f"{format_bytes(memory)} of memory used"


def _killed(client: "Client", error: Any) -> RunFailed:
    """A task was tried again and again, and each worker that ran it died."""
    task, deaths = _plain(error.task), error.allowed_failures + 1
    lines = [*RECENT, *_nanny_lines(client)]
    begin = f'The task "{task}" was run by {deaths} workers, and each of them died'
    limit = _limit(error)
    if over := [match for line in lines if (match := _OVER_LIMIT.search(line))]:
        letter = OutOfMemory(f"{begin}: it took more than {over[-1][1]} % of the memory limit{limit}. {MORE_MEMORY}.")
        letter.found = f"more than {over[-1][1]} %{limit}"
        return letter
    if signals := [int(match[1]) for line in lines if (match := _SIGNAL.search(line))]:
        kind = OutOfMemory if signals[-1] == signal.SIGKILL else RunFailed
        return kind(f"{begin}: {_by_signal(signals[-1])}")
    if exits := [match[1] for line in lines if (match := _EXIT.search(line))]:
        return RunFailed(f"{begin}: the process exited with status {exits[-1]}. What it printed before that says why.")
    where = error.last_worker.address
    return RunFailed(f"{begin}, for a reason that no log tells. The logs of the workers on {where} may.")


def _by_signal(number: int) -> str:
    if number == 9:
        return (
            "something outside killed it with SIGKILL, as the kernel does when memory runs out. "
            "Look for other programs that take memory, or lower `processes` or `memory` in the cluster file."
        )
    if number in (4, 6, 7, 8, 11):
        return (
            f"it crashed with signal {number}, inside compiled code. "
            "`tallgrass doctor` checks the libraries; run the job again on a single worker to see it alone."
        )
    return f"something outside ended it with signal {number}. Ask whoever runs this machine."


def _limit(error: Any) -> str:
    limit = getattr(error.last_worker, "memory_limit", 0)  # of the last one that died, since none may be there now
    return f" of {format_bytes(limit)}" if limit else ""


def _nanny_lines(client: "Client") -> list[str]:
    """What the watching processes of another cluster logged, as far as they answer."""
    if client.status != "running":
        return []
    try:
        logs = client.sync(client._get_worker_logs, n=200, nanny=True, callback_timeout=ASK_SECONDS)  # noqa: SLF001
    except Exception:  # noqa: BLE001  # an explanation with less in it is better than none
        return []
    return [text for lines in logs.values() if not isinstance(lines, str) for _, text in lines]


def _without_workers(client: "Client", error: Any) -> str:
    waited = format_seconds(getattr(error, "timeout", 0) or 0)
    return (
        f'The task "{_plain(error.task)}" waited {waited} for a worker that could run it: {cluster_state(client)}. '
        "Start workers, or free memory and disk on their machines, and run the job again: it goes on from what is kept."
    )


def _cancelled(client: "Client", error: BaseException) -> TallgrassError:
    text = str(error)
    if "lost" in text or workers_now(client) is None:
        return ClusterUnreachable(
            "The connection to the scheduler was lost while the job ran. "
            "Start the scheduler again if it died, and run the job again."
        )
    return JobCancelled(
        "The job's tasks were cancelled at the scheduler, by somebody else or by its restart. Run the job again."
    )


def _plain(task: Any) -> str:
    """The name of a task as the dashboard shows it."""
    from dask.utils import key_split

    return str(key_split(task))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
