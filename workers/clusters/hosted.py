"""The cluster of an agent: a process beside it (workers.clusters.host) that is started again whenever it ends."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import connection
from typing import IO, Any

from pydantic import TypeAdapter

from workers.clusters import Cluster, Reached
from workers.processes import LAST_SECONDS, how_it_died

STARTING_SECONDS = 90.0
"""A cluster that has not started by then will not, unless its model gives it a time, after which it says so itself."""
BACK_OFF = (0.5, 30.0)
"""Seconds before the next attempt after a cluster failed: at first, and at most."""


class Hosted:
    """The cluster: one that runs elsewhere, or a process that is started again whenever it ends."""

    def __init__(self, model: Cluster) -> None:
        self.model = model
        self.reached: Reached | None = None
        """By what drivers connect to it, once it runs."""
        self.dashboard: str | None = None
        self.resources: dict[str, int] | None = None
        """What it offered when it began to run."""
        self.jobs_page = False
        self.error: str | None = None
        self.next_start = 0.0
        self._pause = BACK_OFF[0]
        self._patience = STARTING_SECONDS + getattr(model, "start_timeout", 0.0)
        self._process: subprocess.Popen[str] | None = None
        self._began = 0.0

    def __enter__(self) -> "Hosted":
        self.tend()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.board.close()
            try:
                self._process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def page_of(self, job: str) -> str | None:
        """Where the dashboard shows a job."""
        if self.dashboard is None or not self.jobs_page:
            return self.dashboard
        return f"{self.dashboard.removesuffix('/status')}/jobs?job={job}"

    @property
    def ready(self) -> bool:
        """Whether jobs may be given to it."""
        return self.reached is not None and time.monotonic() >= self.next_start

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
            "address": None if self.reached is None else self.reached.address,
            "dashboard": self.dashboard,
            "error": self.error,
            "resources": self.resources,
        }

    def tend(self) -> None:
        """Start what should run, and hear what it says."""
        if self._process is None:
            if time.monotonic() >= self.next_start:
                self._start()
            return
        if self.reached is None and connection.wait(self.watched(), timeout=0):
            self._greeted()
        if self._process.poll() is not None:
            self._is_gone()
        elif self.reached is None and time.monotonic() - self._began > self._patience:
            self.error = f"The cluster did not start within {self._patience:.0f} s."
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
        self.reached = TypeAdapter[Reached](Reached).validate_python(said["reached"])
        self.dashboard, self.jobs_page, self.error = said["dashboard"], said["jobs_page"], None
        self.resources = said["resources"]
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
        if self.reached is not None or self.error is None:
            self.error = self._last_words() or how_it_died(code, "The cluster's process")
        self.board.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = self.dashboard = self.reached = self.resources = None
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
