"""Jobs that share workers get equal parts of them, whoever came first and however much each has to do."""

import time

import pytest

from pipelines.turns import Turns, served_now
from workers.clusters import Local, open_cluster


def test_spans_come_in_their_order_and_merges_before_further_reads():
    turns = Turns(start=10.0, slots=2, fan_in=4)
    assert [turns(("factor-x", number)) for number in range(3)] == [-10.0, -10.5, -11.0]
    assert turns(("factor-merge-x", 0, 1)) == turns(("factor-x", 4))
    assert turns(("factor-merge-x", 1, 1)) == turns(("factor-x", 16))
    assert turns("factor-inputs-x") == -10.0
    assert turns.end(6) == 13.0


@pytest.fixture(scope="module")
def one_worker():
    with open_cluster(Local(processes=1, dashboard=False)) as client:
        yield client


def wait_and_note(name, number):
    time.sleep(0.02)
    return (time.monotonic(), name, number)


def submit(client, name, count, start):
    graph = {(name, number): (wait_and_note, name, number) for number in range(count)}
    return client.get(graph, list(graph), sync=False, priority=Turns(start, 1, 8))


def test_a_newcomer_gets_half_and_neither_waits_nor_holds_up(one_worker):
    first = submit(one_worker, "first", 40, 0.0)
    while one_worker.run_on_scheduler(served_now) < 10:
        time.sleep(0.005)
    second = submit(one_worker, "second", 10, one_worker.run_on_scheduler(served_now))
    order = [name for _, name, _ in sorted(one_worker.gather(first) + one_worker.gather(second))]
    where = [place for place, name in enumerate(order) if name == "second"]
    assert where[0] < 20  # the first has 40 tasks and was there before
    between = order[where[0] : where[-1] + 1]
    assert between.count("first") >= 3  # it went on meanwhile: about as often, on a machine that does nothing else
    assert where[-1] < 40
