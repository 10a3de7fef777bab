"""The service on a Dask cluster that runs elsewhere: a scheduler and a worker started by hand, lost and found."""

import sys

import httpx
import numpy as np
import pytest

from tests.conftest import stored
from tests.dask_cluster import Cluster
from tests.served import Served, wait_for
from workers import Client
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("remote")
    stored(made / "A", np.random.default_rng(3).standard_normal((4000, 8)), (500, 8))
    return made


@pytest.fixture(scope="module")
def cluster(folder):
    with Cluster(folder) as made:
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
