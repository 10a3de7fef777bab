"""A scheduler that has run many jobs is as small as one that has run none."""

import time

from pipelines import SVD, run
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
