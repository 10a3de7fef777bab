"""One attempt at one job, in a process of its own: whatever it does to itself, server and agent live on.

It speaks with the agent through a pipe, in tuples whose first word says what they are.  From here: ("running",),
("progress", {...}), ("log", [lines]), ("commit?",), and at last ("done", summary, shortfalls) or
("error", {...}, lost).  From there: ("commit", True or False).  When the pipe closes, the agent is dead, and this
attempt ends.
"""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pipelines.errors import ClusterUnreachable, JobCancelled, PlanRefused, RunFailed, TallgrassError
from pipelines.progress import Event, Note, PassFinished, PassProgress, PassStarted
from workers.output import described, unforeseen
from workers.processes import LAST_SECONDS, NICE

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from workers.clusters import Reached


@dataclass(frozen=True)
class Task:
    """What an attempt has to know."""

    id: str
    name: str
    attempt: int
    job: dict[str, Any]
    cluster: "Reached"
    roots: tuple[str, ...] | None
    """Where it may read and write; anywhere when None."""
    lock: str
    """A file that this process holds a shared lock on while it lives: who locks it alone knows that nobody writes."""
    output: str
    """The file that takes what this process prints, such as the last words of a library that crashes."""


def drive(task: Task, pipe: "Connection") -> None:
    """Run the job to its end, and say how it ended; never raises."""
    os.nice(NICE)
    _redirect(task.output)
    with Path(task.lock).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        agent = Agent(pipe)
        signal.signal(signal.SIGTERM, _stop)
        try:
            summary, shortfalls = _run(task, agent)
            agent.tell("done", summary, list(shortfalls))
        except KeyboardInterrupt:
            letter = "The job was stopped while it ran. Nothing was written."
            agent.tell("error", _document(JobCancelled(letter)), True)
        except BaseException as error:  # noqa: BLE001  # whatever it was, the agent has to know
            agent.tell("error", _document(error), _lost(error))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _redirect(path: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


class Agent:
    """The other end of the pipe."""

    def __init__(self, pipe: "Connection") -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._answered = threading.Event()
        self._may_commit = False
        threading.Thread(target=self._listen, daemon=True, name="agent").start()

    def tell(self, *message: Any) -> None:
        """Say something; when nobody is there to hear it, this process is about to end."""
        with self._sending, suppress(OSError):
            self._pipe.send(message)

    def before_commit(self) -> None:
        """Raises JobCancelled unless this attempt is still the one whose result counts."""
        self.tell("commit?")
        self._answered.wait()
        if not self._may_commit:
            raise JobCancelled("The job was stopped, or given to another process, before its result was complete.")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a result that begins to appear appears

    def _listen(self) -> None:
        try:
            while True:
                _, self._may_commit = self._pipe.recv()
                self._answered.set()
        except (EOFError, OSError):
            pass
        # The agent is dead.  An orderly end takes away what was half written; a stuck one is not waited for.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_SECONDS)
        os._exit(1)


def _run(task: Task, agent: Agent) -> tuple[dict[str, Any], tuple[str, ...]]:
    from pipelines.execute import Submission, run
    from pipelines.load import job_of
    from pipelines.roots import confine
    from workers.clusters import open_cluster

    if task.roots is not None:
        confine(task.roots)
    job = job_of(task.job)
    if found := _done_before(task):
        return found
    with open_cluster(task.cluster) as client:
        agent.tell("running")
        submission = Submission(task.id, task.name, task.attempt, agent.before_commit)
        watching = Watching(agent)
        try:
            result = run(job, client, watching, submission=submission)
        except PlanRefused:  # the place is taken: perhaps by an earlier attempt of ours that was late
            if found := _done_before(task):
                return found
            raise
        watching.found(result.arrays)
    return result.summary, result.shortfalls


def _done_before(task: Task) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """The result that an earlier attempt let appear before it could say so."""
    from pipelines.addresses import Address
    from pipelines.result import read_summary

    if task.attempt == 1:
        return None
    with suppress(TallgrassError):
        summary = read_summary(Address(task.job["output"], task.job.get("storage_options")))
        if summary.get("submitted", {}).get("id") == task.id:
            return summary, tuple(summary["shortfalls"])
    return None


class Watching:
    """Turns what a run tells into what the service shows: a document of all passes, and lines of a log."""

    def __init__(self, agent: Agent) -> None:
        from workers.terminal import Lines

        self._agent = agent
        self._lines = Lines(lambda text: agent.tell("log", [text]))
        self._passes: list[dict[str, Any]] = []
        self._spectrum: list[float] = []
        self._workers = self._memory = 0

    def __call__(self, event: Event) -> None:
        """Take an event, and pass it on."""
        self._lines(event)
        match event:
            case PassStarted():
                begun = {"name": event.name, "of_rows": event.rows, "of_bytes": event.bytes, "tasks": event.spans}
                self._passes.append(begun | {"rows": 0, "bytes": 0, "seconds": 0.0, "done": False})
            case PassProgress():
                self._workers, self._memory = event.workers, max(self._memory, event.memory_bytes)
                self._passes[-1] |= {"rows": event.rows, "bytes": event.bytes, "seconds": round(event.seconds, 2)}
            case PassFinished():
                last = {"rows": event.rows, "bytes": event.bytes, "seconds": round(event.seconds, 2), "done": True}
                self._passes[-1] |= last
            case Note():
                return
        self._tell()

    def found(self, arrays: Mapping[str, Any]) -> None:
        """What came out: its singular values, if there are any."""
        from workers.dashboard import spectrum_of

        self._spectrum = spectrum_of(arrays)
        self._tell()

    def _tell(self) -> None:
        document = {"passes": self._passes, "workers": self._workers, "memory_bytes": self._memory}
        self._agent.tell("progress", document | {"spectrum": self._spectrum})


def _document(error: BaseException) -> dict[str, Any]:
    """An error as it is kept and shown: the letter, and nothing of the code's insides."""
    if isinstance(error, TallgrassError):
        return described(error)
    import traceback

    traceback.print_exception(error)  # into the file that the agent keeps when an attempt ends like this
    return described(RunFailed(f"{unforeseen(error)} Please report it, with the job's log."))


def _lost(error: BaseException) -> bool:
    """Whether the cluster failed, and not the job: it may be tried again."""
    return isinstance(error, ClusterUnreachable | JobCancelled)
