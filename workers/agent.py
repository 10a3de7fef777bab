"""The agent: holds a cluster, takes jobs from the queue, and gives each a process of its own.

It is one loop over everything that can happen: the server wakes it, a job's process speaks or ends, the cluster ends,
time passes.  Only this loop writes to the queue, so what it writes has an order.

Agents, clusters and job processes die with what started them: each watches a pipe whose other end closes.  An agent
that starts in the place of a dead one waits until the last of its processes is gone, and then queues its jobs again.
"""

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from pipelines.errors import RunFailed, TallgrassError
from workers.clusters import Address, Cluster, Local
from workers.dashboard import SHOWN
from workers.driver import LAST_SECONDS, Task, drive
from workers.lifecycle import State
from workers.queue import LEASE_SECONDS, Entry, Fenced, Queue, Selection

AGENT_LOCK, JOBS_LOCK = "agent.lock", "jobs.lock"
"""Held alone by the agent, and shared by the agent and its job processes."""
TICK_SECONDS = 1.0
"""An agent that nobody wakes looks at the queue so often."""
RENEW_SECONDS = LEASE_SECONDS / 5
ASKED_SECONDS = 0.2
"""Time between two looks at what people want to end, when they may want something."""
WAIT_FOR_THE_DEAD = 5.0
"""Processes of a dead agent end within this time, or are killed."""
CLUSTER_SECONDS = 90.0
"""A cluster that has not started by then will not."""
BACK_OFF = (0.5, 30.0)
"""Seconds before the next attempt after a cluster failed: at first, and at most."""
LAST_WORDS = 20
"""Lines of a dead process's output that go into its job's log."""
SHOW_SECONDS = 0.5
"""Time between two changes of the dashboard's page."""
IDLE_SECONDS = 5.0
"""The same when nothing happens here; another agent's jobs may change."""
ON_THE_PAGE = ("id", "name", "kind", "state", "attempt", "submitted_at", "started_at", "finished_at", "progress")
PRELOADED = ["distributed", "pipelines.execute", "workers.clusters.address", "workers.driver", "workers.forked"]
"""What job processes have imported before they are needed: no module that starts a thread."""


@dataclass(frozen=True)
class Settings:
    """What an agent is told when it starts."""

    database: str
    name: str
    """Of the place, not of the process: the next agent of this name takes over what this one leaves."""
    state: str
    """A folder of its own, for locks."""
    cluster: Cluster = field(default_factory=Local)
    at_once: int = 4
    """Jobs that run at the same time, and share the workers."""
    roots: tuple[str, ...] | None = None
    server: str | None = None
    """Where browsers find the server's reports."""


@dataclass
class Attempt:
    """A job's process, and what it said last."""

    entry: Entry
    process: Any
    pipe: connection.Connection
    output: Path
    heard: deque[tuple[Any, ...]] = field(default_factory=deque)
    """What it said that is not stored yet."""
    told_to_end: float | None = None
    committing: bool = False
    ended: bool = False
    """It has said how it ended."""
    passes: int = 0
    """Of those that it told of, how many have been counted."""
    bytes_read: int = 0

    def read_since(self, progress: dict[str, Any]) -> dict[str, int]:
        """What was read since it last told, to be added to the job's counts."""
        passes, size = len(progress["passes"]), sum(one["bytes"] for one in progress["passes"])
        more = {"passes": passes - self.passes, "bytes_read": size - self.bytes_read}
        self.passes, self.bytes_read = passes, size
        return more


class Agent:
    """Runs the jobs of a queue, until it is told to stop."""

    def __init__(self, settings: Settings, wake: int | None = None) -> None:
        self.settings, self.wake = settings, wake
        self.queue = Queue(settings.database)
        self.state = Path(settings.state)
        self.attempts: dict[str, Attempt] = {}
        self.processes = get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self.cluster = Host(settings.cluster)
        self.renewed = self.announced = self.shown = 0.0
        self.board: dict[str, Any] = {}
        self.statements: dict[str, str] = {}
        self.stopping, self.changed, self.may_claim, self.asked = False, True, True, False

    def run(self) -> None:
        """Work until the server is gone or somebody says SIGTERM; then give all jobs back."""
        signal.signal(signal.SIGTERM, self._end)
        self.state.mkdir(parents=True, exist_ok=True)
        forkserver.ensure_running()  # it imports what jobs need while the cluster starts
        with alone(self.state, self.queue, self.settings.name), self.cluster:
            for left in self.state.glob("*-*.out"):
                left.unlink(missing_ok=True)
            kill_processes_of(self.queue, self.settings.name)  # one may be frozen, and not hold the lock yet
            self.queue.recover(self.settings.name)
            while not self.stopping:
                with surviving():
                    self._step()
            self._give_back()

    def _end(self, *_: Any) -> None:
        self.stopping = True

    def _step(self) -> None:
        heard = connection.wait(self._watched(), timeout=self._patience())
        for ready in heard:
            self._hear(ready)
            self.changed = True
        for attempt in [one for one in self.attempts.values() if one.heard]:
            self._listen_alone(attempt)  # the queue could not be used when it spoke
        if not heard:
            self.may_claim = True  # another server may have taken a job
        self._watch_cluster()
        self._renew()
        self._look_around()
        self._claim()
        self._show()

    def _watched(self) -> list[Any]:
        pipes = [attempt.pipe for attempt in self.attempts.values()]
        sentinels = [attempt.process.sentinel for attempt in self.attempts.values()]
        return [*pipes, *sentinels, *self.cluster.watched(), *([] if self.wake is None else [self.wake])]

    def _patience(self) -> float:
        until = self.cluster.next_start - time.monotonic()
        most = ASKED_SECONDS if self.asked else TICK_SECONDS
        return max(0.05, min(most, until)) if until > 0 else most

    def _hear(self, ready: Any) -> None:
        if ready == self.wake:
            self._woken()
            return
        for attempt in list(self.attempts.values()):
            if ready in (attempt.pipe, attempt.process.sentinel):
                self._listen_alone(attempt)

    def _woken(self) -> None:
        assert self.wake is not None
        if not os.read(self.wake, 4096):  # the server is gone
            self.stopping, self.wake = True, None
        self.asked = self.may_claim = True  # somebody may want the end of a job, or a new one

    # Attempts

    def _claim(self) -> None:
        while (
            self.may_claim and self.cluster.ready and len(self.attempts) < self.settings.at_once and not self.stopping
        ):
            entry = self.queue.claim(self.settings.name)
            if entry is None:
                self.may_claim = False
                return
            self._start(entry)

    def _start(self, entry: Entry) -> None:
        assert self.cluster.address is not None
        ours, theirs = connection.Pipe()
        output = self.state / f"{entry.id}-{entry.attempt}.out"
        task = Task(
            entry.id, entry.name, entry.attempt, entry.job, self.cluster.address, self.settings.roots,
            str(self.state / JOBS_LOCK), str(output),
        )  # fmt: skip
        process = self.processes.Process(target=drive, args=(task, theirs), name=entry.id)
        process.start()
        theirs.close()
        self.attempts[entry.id] = Attempt(entry, process, ours, output)
        with suppress(Fenced):
            self.queue.update(entry, process=identity(process.pid or 0))
            self.queue.add_lines(entry, [f"attempt {entry.attempt} starts"])

    def _listen_alone(self, attempt: Attempt) -> None:
        """What goes wrong with one attempt is the end of that attempt alone."""
        try:
            self._listen(attempt)
        except RunFailed:  # the queue cannot be used now: the same again, later
            raise
        except Exception:  # noqa: BLE001  # the other jobs go on
            traceback.print_exc()
            attempt.heard.clear()
            attempt.process.kill()
            if not attempt.process.is_alive():
                self.attempts.pop(attempt.entry.id, None)  # `_renew` finds that the job is nobody's

    def _listen(self, attempt: Attempt) -> None:
        """All that the process has said, and then whether it is gone; what cannot be stored now is kept for later."""
        gone = not attempt.process.is_alive()
        with suppress(EOFError, OSError):
            while attempt.pipe.poll():
                attempt.heard.append(attempt.pipe.recv())
        try:
            while attempt.heard:
                self._take(attempt, attempt.heard[0])
                attempt.heard.popleft()
        except Fenced:
            attempt.heard.clear()
            self._end_attempt(attempt)
        if gone:
            self._bury(attempt)

    def _take(self, attempt: Attempt, message: tuple[Any, ...]) -> None:
        entry, queue = attempt.entry, self.queue
        match message:
            case ("running", dashboard):
                link = f"{dashboard.removesuffix('/status')}/jobs?job={entry.id}" if dashboard else None
                with suppress(Fenced):  # a stop may have come first
                    queue.update(entry, State.RUNNING, dashboard=link if self.cluster.jobs_page else dashboard)
                self.cluster.well()
            case ("progress", document):
                queue.update(entry, progress=document, more=attempt.read_since(document))
            case ("log", lines):
                queue.add_lines(entry, lines)
            case ("commit?",):
                attempt.committing = queue.may_commit(entry)
                with suppress(OSError):
                    attempt.pipe.send(("commit", attempt.committing))
            case ("done", summary, shortfalls):
                self._done(entry, summary, shortfalls)
                attempt.ended = True
            case ("error", error, lost):
                self._failed(entry, error, lost=lost)
                attempt.ended = True

    def _done(self, entry: Entry, summary: dict[str, Any], shortfalls: list[str]) -> None:
        if not shortfalls:
            self.queue.update(entry, State.SUCCEEDED, summary=summary, exit_code=0)
            self.queue.add_lines(entry, [summary["certificate"]["statement"]])
            return
        letter = "\n".join(f"the certificate falls short: {text}" for text in shortfalls)
        error = {"kind": "CertificateFallsShort", "message": letter, "exit_code": 8}
        self.queue.update(entry, State.FAILED, summary=summary, error=error, exit_code=8)
        self.queue.add_lines(entry, letter.splitlines())

    def _failed(self, entry: Entry, error: dict[str, Any], *, lost: bool) -> None:
        state = self.queue.get(entry.id).state
        if state is State.STOPPING and error["kind"] == "JobCancelled":
            self.queue.update(entry, State.CANCELLED, error=error, exit_code=7)
            self.queue.add_lines(entry, [error["message"]])
        elif lost:
            self.queue.lose(entry, error["message"])
            if not isinstance(self.settings.cluster, Local):
                self.cluster.back_off()
        else:
            self.queue.update(entry, State.FAILED, error=error, exit_code=error["exit_code"])
            self.queue.add_lines(entry, error["message"].splitlines())

    def _bury(self, attempt: Attempt) -> None:
        """The process is gone: if it never said how it ended, something killed it."""
        attempt.process.join()
        with suppress(Fenced):
            words = attempt.output.read_text(errors="replace").splitlines() if attempt.output.exists() else []
            self.queue.add_lines(attempt.entry, words[-LAST_WORDS:])
            attempt.output.unlink(missing_ok=True)
            if not attempt.ended:
                ours = attempt.told_to_end is not None and attempt.process.exitcode == -signal.SIGTERM
                self.queue.lose(attempt.entry, how_it_died(attempt.process.exitcode), crashed=not ours)
        del self.attempts[attempt.entry.id]
        self.may_claim = True  # one that waited for its place, or for a free one
        attempt.pipe.close()
        if attempt.entry.output is not None:
            from pipelines.storage import sweep

            sweep(attempt.entry.output)  # what it left half written

    def _end_attempt(self, attempt: Attempt) -> None:
        """Ask the process to end, and once it had its time, end it."""
        if attempt.told_to_end is None:
            attempt.told_to_end = time.monotonic()
            attempt.process.terminate()
        patience = LAST_SECONDS * (6 if attempt.committing else 1)
        if time.monotonic() - attempt.told_to_end > patience:
            attempt.process.kill()

    def _renew(self) -> None:
        """Keep our jobs, and see which of them somebody wants to end."""
        soon = self.asked or any(attempt.told_to_end is not None for attempt in self.attempts.values())
        if time.monotonic() < self.renewed + (ASKED_SECONDS if soon else RENEW_SECONDS):
            return
        self.renewed, self.asked = time.monotonic(), False
        held = self.queue.renew(self.settings.name)
        for job in held.keys() - self.attempts.keys():  # the answer to our claim got lost
            with suppress(Fenced):
                self.queue.lose(self.queue.get(job), "The job was taken, and could not be begun.")
        for attempt in self.attempts.values():
            ours = held.get(attempt.entry.id) in (State.STARTING, State.RUNNING)
            if attempt.told_to_end is not None or not ours:  # over, or to be ended: a process that stays is killed
                self._end_attempt(attempt)

    def _look_around(self) -> None:
        """Now and then: say that we are here, and take over from agents that are not heard of."""
        if time.monotonic() < self.announced + RENEW_SECONDS:
            return
        self.announced = time.monotonic()
        self.queue.announce(self.settings.name, self.cluster.described())
        self.queue.recover()

    def _show(self) -> None:
        """Let the dashboard show what has changed, twice a second at most."""
        if not self.cluster.jobs_page or self.cluster.address is None or self.cluster.board.behind:
            return
        if time.monotonic() < self.shown + (SHOW_SECONDS if self.changed else IDLE_SECONDS):
            return
        self.changed = False
        entries = self.queue.select(Selection(limit=SHOWN))
        rows = [
            {
                **{name: getattr(entry, name) for name in ON_THE_PAGE},
                "letter": entry.error["message"] if entry.error else self._statement(entry),
            }
            for entry in entries
        ]
        board = {"counts": self.queue.counts(), "jobs": rows, "server": self.settings.server}
        self.shown = time.monotonic()
        if board != self.board:
            self.board = board
            self.cluster.board.put(json.dumps(board))

    def _statement(self, entry: Entry) -> str:
        """What the certificate of a finished job says; it never changes, so it is asked for once."""
        if entry.state is not State.SUCCEEDED:
            return ""
        if entry.id not in self.statements:
            summary = self.queue.get(entry.id).summary or {}
            self.statements[entry.id] = str(summary.get("certificate", {}).get("statement", ""))
        return self.statements[entry.id]

    def _give_back(self) -> None:
        """Jobs that run wait for the next agent; nothing counts as lost."""
        for attempt in self.attempts.values():
            attempt.process.terminate()
        for attempt in list(self.attempts.values()):
            attempt.process.join(LAST_SECONDS)
            attempt.process.kill()
            attempt.process.join()
            with suppress(EOFError, OSError):
                while attempt.pipe.poll():
                    attempt.heard.append(attempt.pipe.recv())
            with suppress(Fenced, TallgrassError):
                for message in attempt.heard:
                    if message[0] != "error":
                        self._take(attempt, message)
            with suppress(Fenced, TallgrassError):
                self.queue.release(attempt.entry)

    def _watch_cluster(self) -> None:
        before = self.cluster.address
        self.cluster.tend()
        if self.cluster.address != before:
            self.queue.announce(self.settings.name, self.cluster.described())
            for attempt in self.attempts.values():
                if before is not None and not attempt.ended:  # its cluster is gone, and it would wait for an answer
                    self._end_attempt(attempt)


class Host:
    """The cluster: one that runs elsewhere, or a process that is started again whenever it ends."""

    def __init__(self, model: Cluster) -> None:
        self.model = model
        self.address: Address | None = None
        self.dashboard: str | None = None
        self.jobs_page = False
        self.error: str | None = None
        self.next_start = 0.0
        self._pause = BACK_OFF[0]
        self._process: subprocess.Popen[str] | None = None
        self._began = 0.0

    def __enter__(self) -> "Host":
        self.tend()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.board.close()
            try:
                self._process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()

    @property
    def ready(self) -> bool:
        """Whether jobs may be given to it."""
        return self.address is not None and time.monotonic() >= self.next_start

    def well(self) -> None:
        """A job has reached it: whatever was wrong is over."""
        self._pause = BACK_OFF[0]

    def watched(self) -> list[int]:
        """What is ready to be read when the cluster has started, or has ended."""
        return [] if self._process is None or self._process.stdout is None else [self._process.stdout.fileno()]

    def described(self) -> dict[str, Any]:
        """For people who ask the server."""
        return {
            "kind": self.model.kind,
            "address": None if self.address is None else self.address.address,
            "dashboard": self.dashboard,
            "error": self.error,
        }

    def tend(self) -> None:
        """Start what should run, and hear what it says."""
        if self._process is None:
            if time.monotonic() >= self.next_start:
                self._start()
            return
        if self.address is None and connection.wait(self.watched(), timeout=0):
            self._greeted()
        if self._process.poll() is not None:
            self._is_gone()
        elif self.address is None and time.monotonic() - self._began > CLUSTER_SECONDS:
            self.error = f"The cluster did not start within {CLUSTER_SECONDS:.0f} s."
            self._process.kill()

    def back_off(self) -> None:
        """Take no jobs for a while, and start no cluster: it would fail as the last time."""
        self.next_start = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, BACK_OFF[1])

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "workers.clusters.host"]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdin is not None
        self.board = Board(self._process.stdin)
        self.board.put(self.model.model_dump_json())

    def _greeted(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return
        said = json.loads(line)
        if "error" in said:
            self.error = said["error"]
            return
        self.address = self.model if isinstance(self.model, Address) else Address(address=said["address"])
        self.dashboard, self.jobs_page, self.error = said["dashboard"], said["jobs_page"], None
        self._pause = BACK_OFF[0]

    def _last_words(self) -> str:
        """Why it ended, if it said so."""
        assert self._process is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        with suppress(OSError, ValueError, TypeError):
            return str(json.loads(self._process.stdout.readline())["error"])
        return ""

    def _is_gone(self) -> None:
        assert self._process is not None
        code = self._process.returncode
        if self.address is not None or self.error is None:
            self.error = self._last_words() or how_it_died(code, "The cluster's process")
        self.board.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = self.dashboard = self.address = None
        self.back_off()


class Board(threading.Thread):
    """Writes lines to the cluster's process, of which only the latest counts: one that is stuck holds up nobody."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__(daemon=True, name="board")
        self._pipe = pipe
        self._latest: queue.Queue[str | None] = queue.Queue()
        self.start()

    def put(self, line: str) -> None:
        """Show this next."""
        self._latest.put(line)

    def close(self) -> None:
        """End the cluster's process."""
        self._latest.put(None)

    @property
    def behind(self) -> bool:
        """Whether what was put last is not written yet."""
        return not self._latest.empty()

    def run(self) -> None:
        """Write until the end."""
        with suppress(OSError, ValueError):
            while (line := self._latest.get()) is not None:
                self._pipe.write(line + "\n")
                self._pipe.flush()
        with suppress(OSError):
            self._pipe.close()


def how_it_died(code: int | None, what: str = "The job's process") -> str:
    """What an exit status says about a process."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = " The kernel does that when memory runs out." if -code == signal.SIGKILL else ""
        return f"{what} was killed by {name}.{memory}"
    return f"{what} ended with status {code} and without a word."


def identity(pid: int) -> dict[str, Any]:
    """A process, told from a later one of the same number."""
    import psutil

    try:
        return {"pid": pid, "began": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "began": 0.0}


@contextmanager
def alone(state: Path, queue: Queue, name: str) -> Iterator[None]:
    """While this lasts, no process of an earlier agent of this place lives; those that do not end are killed.

    Raises:
        RunFailed: another agent of this place lives, and stays.
    """
    with (state / AGENT_LOCK).open("a") as agent, (state / JOBS_LOCK).open("a") as jobs:
        if not _locked_within(agent, 2 * LAST_SECONDS):
            raise RunFailed(f"Another agent works in {state} already. Stop it, or give this one a folder of its own.")
        while not _locked_within(jobs, WAIT_FOR_THE_DEAD):
            kill_processes_of(queue, name)
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


def kill_processes_of(queue: Queue, name: str) -> None:
    """End the job processes that a dead agent has left: they hold its lock, and may be stuck."""
    import psutil

    for entry in queue.select(Selection(states=(State.STARTING, State.RUNNING, State.STOPPING), limit=1000)):
        if entry.agent == name and entry.process is not None:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(entry.process["pid"])
                if abs(process.create_time() - entry.process["began"]) < 1:
                    process.kill()


@contextmanager
def surviving() -> Iterator[None]:
    """A queue that fails for a moment does not end the agent: it tries again."""
    try:
        yield
    except RunFailed as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201  # the server passes it on
        time.sleep(TICK_SECONDS)


def main() -> None:
    """Settings are one line of JSON on standard input; each byte after that wakes the agent, and the end ends it."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            return
        line += piece
    Agent(TypeAdapter(Settings).validate_json(line), wake=0).run()


if __name__ == "__main__":
    main()
