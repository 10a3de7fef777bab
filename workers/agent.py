"""The agent: holds a cluster, takes jobs from the queue, and gives each a process of its own.

It is one loop over everything that can happen: the server wakes it, a job's process speaks or ends, the cluster ends,
time passes.  Only this loop writes to the queue, so what it writes has an order.

Agents, clusters and job processes die with what started them: each watches a pipe whose other end closes.  An agent
that starts in the place of a dead one waits until the last of its processes is gone, and then queues its jobs again.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipelines.errors import JobCancelled, RunFailed, Stalled, TallgrassError
from workers.attempt import Attempt, cleaned
from workers.clusters import Cluster, Local
from workers.clusters.hosted import Hosted
from workers.dashboard import SHOWN
from workers.driver import Task, drive
from workers.entries import Entry, Fenced, Selection
from workers.lifecycle import ACTIVE, State
from workers.processes import JOBS_LOCK, LAST_SECONDS, Identity, alone, how_it_died, identity
from workers.queue import LEASE_SECONDS, Queue

TICK_SECONDS = 1.0
"""An agent that nobody wakes looks at the queue so often."""
RENEW_SECONDS = LEASE_SECONDS / 5
ASKED_SECONDS = 0.2
"""Time between two looks at what people want to end, when they may want something."""
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


class Agent:
    """Runs the jobs of a queue, until it is told to stop."""

    def __init__(self, settings: Settings, wake: int | None = None) -> None:
        self.settings, self.wake = settings, wake
        self.queue = Queue(settings.database)
        self.state = Path(settings.state)
        self.attempts: dict[str, Attempt] = {}
        self.processes = get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self.cluster = Hosted(settings.cluster)
        self.renewed = self.announced = self.shown = 0.0
        self.board: dict[str, Any] = {}
        self.statements: dict[str, str] = {}
        self.stopping, self.changed, self.may_claim, self.asked = False, True, True, False

    def run(self) -> None:
        """Work until the server is gone or somebody says SIGTERM; then give all jobs back."""
        signal.signal(signal.SIGTERM, self._end)
        self.state.mkdir(parents=True, exist_ok=True)
        forkserver.ensure_running()  # it imports what jobs need while the cluster starts
        with alone(self.state, self._left), self.cluster:
            for output in self.state.glob("*-*.out"):
                output.unlink(missing_ok=True)
            self.queue.recover(self.settings.name)
            while not self.stopping:
                with surviving():
                    self._step()
            self._give_back()

    def _left(self) -> list[Identity]:
        """Job processes that the agent before this one may have left."""
        held = self.queue.select(Selection(states=list(ACTIVE), limit=1000))
        return [one.process for one in held if one.agent == self.settings.name and one.process is not None]

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
        assert self.cluster.reached is not None
        ours, theirs = connection.Pipe()
        output = self.state / f"{entry.id}-{entry.attempt}.out"
        task = Task(
            entry.id, entry.name, entry.attempt, entry.job, self.cluster.reached, self.settings.roots,
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
            case ("running",):
                with suppress(Fenced):  # a stop may have come first
                    queue.update(entry, State.RUNNING, dashboard=self.cluster.page_of(entry.id))
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
        if state is State.STOPPING and error["kind"] in (JobCancelled.__name__, Stalled.__name__):
            self.queue.update(entry, State.CANCELLED, error=error, exit_code=7)
            self.queue.add_lines(entry, [error["message"]])
        elif lost:
            self.queue.lose(entry, error["message"])
            if not isinstance(self.settings.cluster, Local):
                self.cluster.back_off()
        else:
            after = State.FAILED
            if error["kind"] == Stalled.__name__:
                after = State.INTERRUPTED
                error |= {"message": f"{error['message']} Here that is `tallgrass retry {entry.id}`."}
            self.queue.update(entry, after, error=error, exit_code=error["exit_code"])
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
            self._tidy(attempt.entry)

    def _tidy(self, entry: Entry) -> None:
        """Remove what an attempt left half written; what a later one may go on from stays, unless nobody wants it."""
        from pipelines.addresses import Address
        from pipelines.storage import clean, local_path, sweep

        assert entry.output is not None
        if self.queue.get(entry.id).state is not State.CANCELLED:
            sweep(entry.output)
        elif local_path(entry.output) is not None:
            clean(entry.output)
        else:  # a store may take its time
            address = Address(entry.output, entry.job.get("storage_options"))
            threading.Thread(target=cleaned, args=(address, f"job {entry.id}"), daemon=True).start()

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
        if not self.cluster.jobs_page or self.cluster.reached is None or self.cluster.board.behind:
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
        before = self.cluster.reached
        self.cluster.tend()
        if self.cluster.reached != before:
            self.queue.announce(self.settings.name, self.cluster.described())
            for attempt in self.attempts.values():
                if before is not None and not attempt.ended:  # its cluster is gone, and it would wait for an answer
                    self._end_attempt(attempt)


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
