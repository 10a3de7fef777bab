"""A scheduler that has run many jobs is as small as one that has run none."""

import os
import signal
import time

import pytest

from pipelines import SVD, run
from tests.served import wait_for
from workers.clusters import Local, open_cluster
from workers.clusters import tidy as module
from workers.clusters.tidy import tidy


def known(dask_scheduler):
    """Numbers of things that a scheduler keeps of tasks."""
    spans = dask_scheduler.extensions["spans"]
    return {
        "prefixes": len(dask_scheduler.task_prefixes),
        "spans": len(spans.spans) + len(spans.root_spans) + sum(map(len, spans.spans_search_by_tag.values())),
    }


def test_nothing_is_kept_of_jobs_that_are_over(problem, monkeypatch):
    at = problem(m=200, n=3, rows=50)
    with open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client:
        for _ in range(3):
            run(SVD(matrix=at.fields["matrix"]), client)
        before = client.run_on_scheduler(known)
        assert before["prefixes"] >= 3
        assert before["spans"] >= 3
        client.run_on_scheduler(tidy)
        assert client.run_on_scheduler(known)["spans"] == before["spans"], "workers may still tell of them"
        monkeypatch.setattr(module, "FORGET_AFTER", 0.0)
        time.sleep(0.1)
        client.run_on_scheduler(tidy)
        assert client.run_on_scheduler(known) == {"prefixes": 0, "spans": 0}
        assert run(SVD(matrix=at.fields["matrix"]), client)["s"].shape == (3,)


@pytest.mark.slow
def test_a_worker_may_tell_of_what_was_cancelled_long_ago(monkeypatch):
    monkeypatch.setattr(module, "FORGET_AFTER", 0.0)
    with open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client:
        workers = list(client.scheduler_info()["workers"])
        assert client.submit(abs, -1).result() == 1
        long = client.submit(time.sleep, 3, pure=False)
        time.sleep(1)  # it has begun
        client.cancel([long], force=True)
        wait_for(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        client.run_on_scheduler(tidy)
        assert client.run_on_scheduler(known)["spans"] == 0
        time.sleep(4)  # it ends, and the worker tells of it
        assert list(client.scheduler_info()["workers"]) == workers
        assert client.submit(abs, -2).result() == 2


def test_what_is_held_can_be_made_again_after_its_worker_died(monkeypatch):
    monkeypatch.setattr(module, "FORGET_AFTER", 0.0)
    with open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client:
        held = client.submit(pow, 2, 3, pure=False)
        pid = client.submit(os.getpid, pure=False).result()
        time.sleep(1)  # the worker has told what that took
        client.run_on_scheduler(tidy)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: client.submit(os.getpid, pure=False).result() != pid)
        time.sleep(2)
        assert (held.result(), len(client.scheduler_info()["workers"])) == (8, 1)
