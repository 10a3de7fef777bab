"""The service while its database is away: what happened meanwhile is told when it is back."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.postgres import programs
from tests.postgres import postgres
from tests.served import Served, store_slow, wait_for
from workers import Client
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")


def control(folder, *words):
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    command = [*as_user, programs() / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)


def test_jobs_end_well_though_the_database_was_away_and_a_process_died_meanwhile(tmp_path):
    store_slow(tmp_path / "A")
    with postgres() as url, Served(tmp_path, "--database", url) as served, Client(served.url) as client:
        folder = Path(url.partition("host=")[2])
        fields = {"kind": "svd", "matrix": f"{tmp_path}/A", "vectors": "both"}
        ids = [client.submit(fields | {"output": f"{tmp_path}/{number}.zarr"}).id for number in range(3)]
        wait_for(lambda: client.job(ids[0]).state is State.RUNNING)
        control(folder, "-m", "immediate", "stop")
        drivers = [fork for server in served.parts("pipelines.execute") for fork in server.children()]
        drivers[0].kill()
        time.sleep(3)
        control(folder, "-o", f"-k {folder} -c listen_addresses=", "start")
        found = [client.wait(job) for job in ids]
        assert [job.state for job in found] == [State.SUCCEEDED] * 3
        assert sorted(job.attempt for job in found) in ([1, 1, 2], [1, 1, 1])
        assert "cannot be used" in served.said()
        assert "Traceback" not in served.said()
