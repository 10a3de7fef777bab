"""The service on a Dask cluster that runs elsewhere: a scheduler and a worker started by hand, lost and found."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.conftest import stored
from tests.served import Served, free_port, wait_for
from workers import Client
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")
DASK = str(Path(sys.executable).with_name("dask"))


class Cluster:
    """A scheduler with the page of jobs, and one worker, as an administrator starts them."""

    def __init__(self, folder):
        self.folder, self.port, self.http = folder, free_port(), free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes = []

    def start(self):
        self.run("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--dashboard-address",
                 f"127.0.0.1:{self.http}", "--preload", "workers.clusters.preload")  # fmt: skip
        self.run("worker", self.address, "--nthreads", "1", "--memory-limit", "512MiB", "--no-dashboard",
                 "--local-directory", str(self.folder / "spill"))  # fmt: skip

    def run(self, *words):
        with (self.folder / "dask.log").open("ab") as log:
            self.processes.append(subprocess.Popen([DASK, *words], cwd=self.folder, stdout=log, stderr=log))

    def kill(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("remote")
    stored(made / "A", np.random.default_rng(3).standard_normal((4000, 8)), (500, 8))
    return made


@pytest.fixture(scope="module")
def cluster(folder):
    with ExitStack() as stack:
        made = Cluster(folder)
        stack.callback(made.kill)
        made.start()
        yield made


@pytest.fixture(scope="module")
def served(folder, cluster):
    with Served(folder, cluster=f"kind: address\naddress: {cluster.address}\nconnect_timeout: 5s\n") as server:
        yield server


def submit(served, client, name):
    return client.submit({"kind": "svd", "matrix": f"{served.folder}/A", "output": f"{served.folder}/{name}.zarr"}).id


def test_jobs_run_there_and_its_dashboard_shows_them(served, cluster):
    with Client(served.url) as client:
        found = client.wait(submit(served, client, "there"))
        assert found.state is State.SUCCEEDED, found.error
        assert found.dashboard == f"http://127.0.0.1:{cluster.http}/jobs?job={found.id}"
        report = client.server().clusters[0]
        assert (report.kind, report.address, report.error) == ("address", cluster.address, None)
        page = httpx.get(found.dashboard)
        assert page.status_code == 200
        assert '<a href="jobs">Jobs</a>' in page.text


def test_jobs_wait_while_it_is_away_and_run_when_it_is_back(served, cluster):
    with Client(served.url) as client:
        cluster.kill()
        job = submit(served, client, "waits")
        error = wait_for(lambda: client.server().clusters[0].error, "a letter about the cluster")
        assert "has gone away. Jobs wait until it is back." in error or "did not answer within" in error
        assert not client.job(job).over
        cluster.start()
        found = client.wait(job)
        assert found.state is State.SUCCEEDED, found.error
        wait_for(lambda: client.server().clusters[0].error is None)
