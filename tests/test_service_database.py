"""The service while its database is away: what happened meanwhile is told when it is back."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.postgres import programs
from tests.postgres import postgres
from tests.served import Served, store_problem, store_slow, wait_for
from workers import Client
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")


def control(folder, *words):
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    command = [*as_user, programs() / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)


@pytest.mark.slow
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


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request, tmp_path):
    """A database for several servers."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
    else:
        with postgres() as url:
            yield url


@pytest.mark.slow  # a lease has to end
def test_two_servers_share_one_queue_and_when_one_dies_the_other_takes_its_jobs(shared, tmp_path):
    store_slow(tmp_path / "A")
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    words = ("--database", shared, "--root", str(tmp_path), "--at-once", "2")
    with (
        Served(folders[0], *words) as first,
        Served(folders[1], *words, workers=1) as second,
        Client(first.url) as client,
        Client(second.url) as other,
    ):
        fields = {"kind": "svd", "matrix": f"{tmp_path}/A", "vectors": "both"}
        ids = [client.submit(fields | {"output": f"{tmp_path}/{number}.zarr"}).id for number in range(6)]
        wait_for(lambda: len(other.server().clusters) == 2)
        wait_for(lambda: sum(other.job(job).state is State.RUNNING for job in ids) >= 3, "jobs of both servers")
        for process in first.everything():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        first.process.wait()
        found = [other.wait(job) for job in ids]
        assert [job.state for job in found] == [State.SUCCEEDED] * 6, [job.error for job in found]
        assert {job.attempt for job in found} == {1, 2}
        first.start()  # so that it can be stopped
        assert sorted(job.id for job in client.jobs()) == sorted(ids)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.slow
def test_a_queue_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    store_problem(tmp_path, 4000, 8)
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", state], check=True)
    try:
        with Served(tmp_path, "--database", f"sqlite:///{state}/queue.db") as served, Client(served.url) as client:
            job = {"kind": "svd", "matrix": f"{tmp_path}/A"}
            before = client.submit(job | {"output": f"{tmp_path}/before.zarr"}).id
            client.wait(before)
            with (state / "filler").open("wb") as filler, suppress(OSError):
                while filler.write(b"x" * 4096):
                    filler.flush()
            answer = httpx.post(f"{served.url}/v1/jobs", json={"job": job | {"output": f"{tmp_path}/while.zarr"}})
            assert answer.status_code == 503, answer.text
            assert "cannot be used: database or disk is full." in answer.json()["detail"]
            assert "that there is space on its disk" in answer.json()["detail"]
            assert client.job(before).state is State.SUCCEEDED
            (state / "filler").unlink()
            after = client.wait(client.submit(job | {"output": f"{tmp_path}/after.zarr"}).id)
            assert after.state is State.SUCCEEDED, after.error
            assert [one.id for one in client.jobs()] == [after.id, before]
            assert "Traceback" not in served.said()
    finally:
        subprocess.run(["umount", "-l", state], check=True)
