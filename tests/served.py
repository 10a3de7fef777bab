"""`tallgrass serve` as a process of its own, and its parts, for tests that talk to it and that kill it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from zarr.codecs import GzipCodec

from tests.conftest import stored
from workers import trust
from workers.queue import Queue

SECONDS = 90
"""Longest wait for anything, on a machine that is busy with other things."""


def wait_for(condition, what="it"):
    """What `condition` gives once it is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come to pass within {SECONDS} s")


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def store_problem(folder: Path, rows: int, columns: int) -> None:
    """A, b, and in x.npy the least-squares solution, in eight chunks or a few more."""
    random = np.random.default_rng(3)
    A = random.standard_normal((rows, columns))
    b = A @ np.arange(float(columns)) + 0.1 * random.standard_normal(rows)
    stored(folder / "A", A, (max(500, rows // 40), columns))
    stored(folder / "b", b, (max(500, rows // 40),))
    np.save(folder / "x.npy", np.linalg.lstsq(A, b, rcond=None)[0])


def store_slow(place: Path) -> None:
    """A matrix that takes seconds to read."""
    large = np.random.default_rng(3).standard_normal((100_000, 120))
    stored(place, large, (1600, 120), compressors=[GzipCodec(level=1)])


class Served:
    """A server in a folder: started, killed, and started again."""

    def __init__(
        self, folder: Path, *words: str, workers: int = 2, dashboard: str = "false", cluster: str = "", ca: str = ""
    ):
        self.folder, self.port = folder, free_port()
        local = f"kind: local\nprocesses: {workers}\nmemory: 512 MiB\ndashboard: {dashboard}\n"
        (folder / "cluster.yaml").write_text(cluster or local)
        self.words = [
            "serve", "--port", str(self.port), "--state", str(folder / "state"), "--root", str(folder),
            "--cluster", str(folder / "cluster.yaml"), *words,
        ]  # fmt: skip
        self.url, self.ca = f"http{'s' if ca else ''}://127.0.0.1:{self.port}", ca
        self.database = f"sqlite:///{folder / 'state' / 'queue.db'}"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        with suppress(psutil.NoSuchProcess):
            for process in self.everything():
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()

    def start(self):
        """The server, once it answers."""
        command = [sys.executable, "-m", "workers.cli", *self.words]
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stderr=log, stdout=log, start_new_session=True)
        wait_for(self.answers, "an answer of the server")

    def answers(self):
        """Whether it does."""
        assert self.process.poll() is None, self.said()
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", verify=trust.context(self.ca) if self.ca else True).is_success
        return False

    def said(self):
        """What it printed."""
        return (self.folder / "serve.log").read_text()

    def tallgrass(self, *words, **options):
        """A command as a user types it, from the server's folder."""
        environment = os.environ | {"TALLGRASS_SERVER": self.url} | options.pop("env", {})
        return subprocess.run(
            [sys.executable, "-m", "workers.cli", *words], cwd=self.folder, env=environment, capture_output=True,
            text=True, timeout=SECONDS, **options,
        )  # fmt: skip

    # Its parts

    def everything(self):
        """All processes of the service."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def parts(self, word):
        """Processes whose command line has this word."""
        found = []
        for process in self.everything():
            with suppress(psutil.NoSuchProcess):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    @property
    def agent(self):
        """The agent's process."""
        return wait_for(lambda: self.parts("workers.agent"), "an agent")[0]

    @property
    def host(self):
        """The process of scheduler and nannies."""
        return wait_for(lambda: self.parts("workers.clusters.host"), "a cluster")[0]

    @property
    def workers(self):
        """Dask's workers: forks of the fork server of the cluster."""
        return [fork for server in self.host.children() for fork in server.children()]

    def driver(self, client, job):
        """The process of a job, once it runs."""
        number = wait_for(lambda: self._driver(client, job), "a process of the job")
        return psutil.Process(number)

    def _driver(self, client, job):
        assert not client.job(job).over
        queue = Queue(self.database)
        try:
            process = queue.get(job).process
        finally:
            queue.close()
        return process and process["pid"]

    def freeze_workers(self):
        """Let no task get on; the same function undoes it."""
        for worker in wait_for(lambda: self.workers, "workers"):
            worker.send_signal(signal.SIGSTOP)

    def thaw_workers(self):
        """Let tasks get on again."""
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
