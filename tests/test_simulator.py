"""The simulated cluster: what it says where the answer can be worked out by hand, and on a real scheduler."""

import json
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from dask.task_spec import Task
from distributed import Client, LocalCluster

from pipelines.jobs import LeastSquares
from pipelines.layout import tree_levels
from workers.clusters.local import SETTINGS

pytest.importorskip("benchmarks.simulator", reason="the benchmarks are no part of the wheel")

from benchmarks import scaling, sleepers
from benchmarks.scaling_report import efficiency
from benchmarks.simulator import Costs, Node, simulate, tasks_of

FREE = Costs(submit=0.0, scheduler=0.0, worker=0.0, latency=0.0, fetch=0.0)


def graph(rows=10**9, **options):
    return sleepers.graph_of(sleepers.synthetic_job(rows, 16, **options))[0]


def spans(count, seconds=1.0):
    """Spans without merges."""
    return {number: Node((), number, seconds, True) for number in range(count)}


def chain(count, seconds=1.0):
    """Tasks of which each needs the one before."""
    return {n: Node((n - 1,) if n else (), n, seconds, False) for n in range(count)}


def test_the_graph_is_the_one_that_the_engine_builds():
    tasks = tasks_of(graph(), lambda rows: rows * 1e-9, lambda children: 1e-3 * children)
    leaves = [task for task in tasks.values() if task.queued]
    merges = [task for key, task in tasks.items() if isinstance(key, tuple) and len(key) == 3]
    assert len(leaves) == 44
    assert len(merges) == sum(tree_levels(44, 8))
    assert sum(task.seconds for task in leaves) == pytest.approx(1.0)
    assert sum(task.seconds for task in merges) == pytest.approx(1e-3 * (44 + 6))
    assert all(len(task.needs) == 2 for task in leaves)  # the pass and the system
    assert sorted(len(task.needs) for task in merges) == [5, 7, *[9] * 5]


def test_what_is_no_graph_of_ours_is_refused():
    with pytest.raises(ValueError, match="is no task of a pass"):
        tasks_of({"a": (sum, [1, 2])}, lambda rows: 0, lambda children: 0)


@pytest.mark.parametrize(("count", "workers", "seconds"), [(100, 1, 100), (100, 10, 10), (101, 10, 11), (109, 10, 11)])
def test_without_overhead_spans_take_whole_rounds(count, workers, seconds):
    found = simulate(spans(count), workers, FREE)
    assert found.seconds == pytest.approx(seconds)
    assert found.busy == pytest.approx(count)
    assert max(list(found.ran.values()).count(one) for one in range(workers)) == seconds


def test_what_needs_another_waits_for_it():
    assert simulate(chain(7), 3, FREE).seconds == pytest.approx(7)


def test_each_task_costs_the_scheduler_and_its_worker_and_messages_take_their_time():
    assert simulate(chain(10), 1, replace(FREE, scheduler=0.5)).seconds == pytest.approx(15)
    assert simulate(chain(10), 1, replace(FREE, worker=0.25)).seconds == pytest.approx(12.5)
    assert simulate(chain(10), 1, replace(FREE, submit=0.1)).seconds == pytest.approx(11)
    assert simulate(chain(10), 1, replace(FREE, latency=0.1)).seconds == pytest.approx(10 + 0.1 * 22)


def test_a_task_in_hand_hides_the_way_to_the_scheduler():
    found = simulate(spans(100), 1, replace(FREE, latency=0.2, scheduler=0.2))
    assert found.seconds == pytest.approx(100 + 5 * 0.2)  # to the scheduler, to the worker, back, known, to the client


def test_a_scheduler_that_takes_longer_than_all_workers_decides():
    found = simulate(spans(2000, 0.01), 100, replace(FREE, scheduler=0.01))
    assert found.seconds == pytest.approx(20, rel=0.01)
    assert found.scheduler_busy == pytest.approx(20)


def test_workers_in_one_process_take_turns():
    alone = simulate(spans(1000, 0.0), 10, replace(FREE, worker=0.1))
    together = simulate(spans(1000, 0.0), 10, replace(FREE, worker=0.1), hosts=1)
    assert (alone.seconds, together.seconds) == (pytest.approx(10), pytest.approx(100))


def test_a_state_of_another_worker_is_fetched_once():
    two = spans(2) | {2: Node((0, 1), 2, 1.0, False), 3: Node((0, 1, 2), 3, 1.0, False)}
    assert simulate(two, 1, replace(FREE, fetch=5.0)).seconds == pytest.approx(4)
    apart = simulate(two, 2, replace(FREE, fetch=5.0))
    assert apart.seconds == pytest.approx(1 + 5 + 1 + 1)
    assert apart.ran[2] == apart.ran[3]


def test_few_spans_go_to_one_worker_each():
    found = simulate(spans(10), 20, FREE)
    assert found.seconds == pytest.approx(1)
    assert len(set(found.ran.values())) == 10


def test_merges_go_before_further_spans():
    tasks = tasks_of(graph(10**10), lambda rows: 1.0, lambda children: 0.01)
    found = simulate(tasks, 10, FREE)
    assert found.seconds - found.last_span < 0.3  # a few levels, and not all merges


def test_the_same_costs_give_the_same_seconds():
    tasks = tasks_of(graph(10**10), lambda rows: 1e-7 * rows, lambda children: 1e-3)
    costs = Costs(submit=3e-4, scheduler=1e-3, worker=2e-3, latency=5e-4, fetch=5e-3)
    assert simulate(tasks, 37, costs) == simulate(tasks, 37, costs)


def test_a_thousand_workers_need_more_spans_than_a_billion_rows_have():
    assert scaling.limit(44, 1000, 0.04, 0.01) == "44 spans"
    assert scaling.limit(4096, 1000, 0.8, 0.01) == "last round"
    assert scaling.limit(4096, 1000, 0.2, 0.9) == "scheduler"
    assert scaling.limit(4096, 10, 0.99, 0.05) == "rows"
    assert scaling.limit(4000, 1000, 0.7, 0.2) == "start and merges"


@pytest.mark.parametrize("tasks", [{0: Node((1,), 0, 1, False), 1: Node((0,), 1, 1, False)}])
def test_a_circle_and_no_workers_are_refused(tasks):
    with pytest.raises(ValueError, match="2 tasks need each other in a circle"):
        simulate(tasks, 1, FREE)
    with pytest.raises(ValueError, match="0 workers can do nothing"):
        simulate(tasks, 0, FREE)


def test_cores_are_taken_in_powers_of_two_and_all():
    assert [scaling.worker_counts(cores) for cores in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


def test_efficiency_is_that_of_one_worker_over_that_of_all():
    one, two, more = (
        {"source": "stored", "rows": rows, "workers": workers, "seconds": seconds}
        for rows, workers, seconds in ((8, 1, 10.0), (8, 2, 6.0), (16, 2, 12.5))
    )
    assert efficiency(two, [one, two, more], weak=False) == pytest.approx(10 / 12)
    assert efficiency(more, [one, two, more], weak=True) == pytest.approx(0.8)
    assert efficiency(more, [one, two, more], weak=False) is None


def test_a_sleeping_graph_has_the_keys_of_the_real_one_and_spans_that_sleep():
    real, _, _, step = sleepers.graph_of(sleepers.synthetic_job(10**9, 16))
    asleep = sleepers.asleep(real, step, 0.25)
    assert list(asleep) == list(real)
    changed = [key for key in real if asleep[key] is not real[key] and asleep[key] != real[key]]
    assert len(changed) == 45  # the spans and the pass
    leaves = [asleep[key] for key in changed if isinstance(key, tuple)]
    assert {task.func for task in leaves} == {sleepers.sleep_span}
    assert all(task.data_producer for task in leaves)


def test_a_real_scheduler_hands_out_spans_that_are_few_for_it_one_by_one():
    """Twelve spans on eight workers: Dask would send them to one worker for others to steal."""
    real, root, work, step = sleepers.graph_of(sleepers.synthetic_job(6_990_720, 16))
    eight = {"n_workers": 8, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    honest = SETTINGS | {"distributed.scheduler.work-stealing": False}  # or it would depend on who is late
    with dask.config.set(honest), LocalCluster(**eight) as cluster, Client(cluster) as client:
        client.get_task_stream(count=1)
        client.get(sleepers.asleep(real, step, 0.25), root, sync=False).result()
        done = [task for task in client.get_task_stream() if isinstance(task["key"], tuple)]
    ran = [task["worker"] for task in done if len(task["key"]) == 2]
    assert len(ran) == len(work.spans) == 12
    assert max(map(ran.count, ran)) == 2


def test_spans_of_a_dask_array_go_to_who_has_their_block():
    b = np.ones(1000)
    for A, queued in ((da.ones((1000, 4), chunks=(500, 4)), False), (np.ones((1000, 4)), True)):
        graph = sleepers.graph_of(LeastSquares(matrix=A, rhs=b))[0]
        spans = [task for key, task in graph.items() if isinstance(key, tuple) and len(key) == 2]
        assert {isinstance(task, Task) and task.data_producer for task in spans} == {queued}


@pytest.mark.slow
def test_a_real_scheduler_runs_the_graph_of_a_billion_rows_on_four_workers():
    found = sleepers.measured({"rows": 10**9, "columns": 16, "workers": 4, "seconds": 0.05})
    assert json.loads(json.dumps(found)) == found
    assert (found["spans"], found["tasks"]) == (44, 51)
    assert found["total"] > 11 * 0.05
    assert 0 < found["start"] < found["total"]
