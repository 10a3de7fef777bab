"""The same bits wherever a job runs: threads, processes, the order of tasks, workers that die on the way."""

import os
import pickle
import random
import signal
import time

import dask.array as da
import numpy as np
import pytest
from zarr.codecs import Crc32cCodec

from pipelines import LeastSquares, engine, inputs, matrix, run
from pipelines.kernels.basis import Basis
from pipelines.passes.project import Project
from pipelines.plan import Resources
from pipelines.progress import PassStarted
from workers.clusters import Local, open_cluster

MEMORY = "300 MiB"


@pytest.fixture
def jobs(save):
    """A job of each kind in many small tasks: chunks with checksums are read whole, so each may be a task."""
    rng = np.random.default_rng(1)
    A, b = rng.standard_normal((4000, 12)), rng.standard_normal((4000, 2))
    A[:, 5] = A[:, 4]  # deficient, so that the decomposition of R has a say too
    whole = {"compressors": [Crc32cCodec()]}
    tall = {"matrix": save("A", A, (100, 12), **whole), "rhs": save("b", b, (100, 2), **whole)}
    wide = {"matrix": save("W", rng.standard_normal((9, 3000)), (9, 100), **whole), "rhs": rng.standard_normal(9)}
    steep = rng.standard_normal((9, 3000)) * np.geomspace(1, 1e-9, 9)[:, None]  # takes the pass that orthogonalises
    steep = {"matrix": save("S", steep, (9, 100), **whole), "rhs": rng.standard_normal(9)}
    weighted = tall | {"weights": save("w", rng.random(4000), (100,), **whole), "ridge": 0.5}
    shared = {"arrays": ("R", "singular_values"), "method": {"name": "tsqr", "span_seconds": 1e-9}}
    return [LeastSquares(**shared | fields) for fields in (tall, wide, steep, weighted)]


def bits(result):
    """Every array of the result, byte by byte, and the numbers of the certificate."""
    names = ("x", "residual_norm", "R", "singular_values", "backward_error", "forward_error_bound")
    return [np.asarray(result[name]).tobytes() for name in names], result.summary["certificate"]


def threads(count):
    return Resources(workers=1, threads=count, memory_bytes=2**40)


@pytest.fixture
def expected(jobs):
    results = [run(job, resources=threads(1)) for job in jobs]
    assert all(result.summary["plan"]["spans"] >= 30 for result in results)
    return [bits(result) for result in results]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_threads_gives_the_same_bits(jobs, expected, count):
    assert [bits(run(job, resources=threads(count))) for job in jobs] == expected


def test_tasks_that_finish_in_any_order_give_the_same_bits(jobs, expected, monkeypatch):
    walk, order = engine.walk, []

    def delayed(step, system, span, tell):
        time.sleep(random.Random(span.number * 7919 % 101).random() / 100)
        order.append(span.number)
        return walk(step, system, span, tell)

    monkeypatch.setattr(engine, "walk", delayed)
    assert [bits(run(job, resources=threads(8))) for job in jobs] == expected
    assert order[:30] != sorted(order[:30])


@pytest.mark.parametrize("processes", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_worker_processes_gives_the_same_bits(jobs, expected, processes):
    with open_cluster(Local(processes=processes, memory=MEMORY, dashboard=False)) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == processes
        assert [bits(run(job, client=client)) for job in jobs] == expected


def test_two_threads_in_each_worker_give_the_same_bits(jobs, expected):
    with open_cluster(Local(processes=2, threads=2, memory="600 MiB", dashboard=False)) as client:
        assert [bits(run(job, client=client)) for job in jobs] == expected


def test_a_worker_killed_between_two_passes_changes_no_bit(jobs, expected):
    """A SIGKILL as the second pass begins: what the dead worker held is done again elsewhere."""
    with open_cluster(Local(processes=2, memory=MEMORY, dashboard=False)) as client:
        for job, right in zip(jobs, expected, strict=True):

            def kill_one(event):
                if isinstance(event, PassStarted) and event.number == 2:
                    os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)

            assert bits(run(job, client=client, listener=kill_one)) == right
            client.wait_for_workers(2, timeout=60)


def test_a_worker_killed_in_the_middle_of_a_pass_changes_no_bit(tmp_path, monkeypatch):
    """Its 20th block kills the worker that makes it, once."""
    monkeypatch.setattr(inputs, "PART_BYTES", 10_000)  # a task for each block, small as they are
    marker = tmp_path / "killed"
    rng = np.random.default_rng(2)
    A, b = rng.standard_normal((4000, 12)), rng.standard_normal(4000)

    def deadly(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 20 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    def job(matrix):
        return LeastSquares(matrix=matrix, rhs=b, arrays=("R", "singular_values"))

    blocks = da.from_array(A, chunks=(100, 12))
    right = bits(run(job(blocks), resources=threads(1)))
    with open_cluster(Local(processes=2, memory=MEMORY, dashboard=False)) as client:
        found = run(job(blocks.map_blocks(deadly, dtype=A.dtype, meta=A[:0])), client=client)
    assert marker.exists()
    assert found.summary["plan"]["spans"] == 40
    assert bits(found) == right


def test_the_same_job_run_twice_gives_the_same_bits(jobs, expected):
    assert [bits(run(job)) for job in jobs] == expected


def at_an_odd_address(array):
    """The same numbers where a network frame may leave them."""
    moved = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def test_addresses_do_not_decide_the_bits():
    rng = np.random.default_rng(5)
    a, W = rng.standard_normal((100, 40)), rng.standard_normal((40, 8))
    step = Project(
        Basis(W=at_an_odd_address(W)), None, at_an_odd_address(W.T), np.dtype(float), np.dtype(float), 99, None
    )
    here = engine.settled(step)
    assert here.basis.W.flags.aligned
    assert here.F.flags.aligned
    assert here.slab_rows == 99
    assert engine.settled(here) is here
    assert matrix.Slab(at_an_odd_address(a), None, None, 0).values(np.dtype(float))[0].flags.aligned


def test_a_view_is_taken_as_it_would_arrive_at_a_worker():
    W = np.random.default_rng(6).standard_normal((40, 16))[:, ::2]
    assert engine.settled(W).tobytes() == pickle.loads(pickle.dumps(W)).tobytes()
    assert engine.settled(W).strides == pickle.loads(pickle.dumps(W)).strides
