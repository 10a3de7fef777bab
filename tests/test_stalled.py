"""Nothing waits for ever: clusters that stand still, in every way that they can, end a run with a letter."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import dask
import distributed
import numpy as np
import pytest
from zarr.codecs import Crc32cCodec

from pipelines import LeastSquares, open_result, run
from pipelines.errors import ClusterUnreachable, Stalled
from pipelines.progress import PassProgress
from tests.conftest import environment, stored
from tests.machines import need
from tests.served import wait_for
from tests.test_execution import SECONDS, assert_gone, cluster_file, command, family, scheduler, until, workers_of
from workers.clusters import Address, Local, open_cluster
from workers.clusters.local import SETTINGS

ROWS, COLUMNS = 60_000, 700


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A job of some seconds, in sixty tasks; workers of others import at their first task, which takes a while."""
    folder, random = tmp_path_factory.mktemp("slow"), np.random.default_rng(6)
    A, x = random.integers(-9, 10, (ROWS, COLUMNS), dtype="i1"), np.arange(float(COLUMNS))
    options = {"compressors": [Crc32cCodec()]}
    fields = {"matrix": stored(folder / "A", A, (1000, COLUMNS), **options)}
    fields |= {"rhs": stored(folder / "b", A.astype("f4") @ x.astype("f4") + 0.0, (1000,), **options)}
    return fields | {
        "output": "x",
        "no_progress_timeout": "4s",
        "method": {"name": "tsqr", "products": False, "span_seconds": 1e-9},
    }


@contextmanager
def workers(address, folder, count, **settings):
    """So many, in processes of their own, without nannies, with settings of Dask that are not ours."""
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "1GiB")
    quiet, given = subprocess.DEVNULL, {f"DASK_DISTRIBUTED__{name}": value for name, value in settings.items()}
    with ExitStack() as stack:
        found = []
        for number in range(count):
            words = [sys.executable, "-m", "distributed.cli.dask_worker", address, *options, "--name", f"w{number}"]
            words += ["--local-directory", f"{folder}/w{number}"]
            found.append(subprocess.Popen(words, stdout=quiet, stderr=quiet, env=environment() | given))
            stack.callback(found[-1].wait)
            stack.callback(found[-1].kill)
        with distributed.Client(address, set_as_default=False) as client:
            wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == count)  # paused ones count too
        yield found


def stalled(process, *says):
    """The run ends by itself, with the letter that says this, and no traceback."""
    stdout, rest = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (9, ""), rest
    assert "Traceback" not in rest
    for text in says:
        assert re.search(text, rest), rest


@pytest.mark.slow
def test_a_frozen_worker_is_named_and_the_same_command_goes_on_once_it_is_gone(slow, tmp_path):
    with scheduler() as (address, _), workers(address, tmp_path, 2) as both:
        file = cluster_file(tmp_path, address)
        with command(tmp_path, slow, "--cluster", file) as process:
            until(process, "factor: ")
            until(process, "factor: ")
            both[1].send_signal(signal.SIGSTOP)
            stalled(
                process,
                r"Nothing has moved in the pass factor for 4\.\d s: 2 workers running, .* used; 1 worker not heard of: "
                r"w1 on 127\.0\.0\.1 for [\d.]+ s\. End what is frozen \(`ps` shows a T\), or mend the network to it, "
                r"and run the job again: it goes on from what is kept\.",
                "What was done is kept beside the output",
            )
        both[1].kill()
        with command(tmp_path, slow, "--cluster", file) as process:
            _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert re.search(r"factor: \d+ of 60 spans were done by an earlier run", said)
    np.testing.assert_allclose(open_result(tmp_path / "x").x, np.arange(float(COLUMNS)), atol=1e-9)


def test_a_worker_that_is_frozen_before_the_run_begins_is_named(tmp_path):
    with scheduler() as (address, _), workers(address, tmp_path, 2) as both:
        both[1].send_signal(signal.SIGSTOP)
        says = r"The worker w1 does not answer, and the scheduler has not heard of it for [\d.]+ s\. End it if it is fr"
        with (
            pytest.raises(ClusterUnreachable, match=says),
            open_cluster(Address(address=address, connect_timeout="3s")),
        ):
            pass


@pytest.mark.slow
def test_a_frozen_scheduler_ends_the_run(slow, tmp_path):
    with (
        scheduler() as (address, process_there),
        workers(address, tmp_path, 1),
        command(tmp_path, slow, "--cluster", cluster_file(tmp_path, address)) as process,
    ):
        until(process, "factor: ")
        process_there.send_signal(signal.SIGSTOP)
        stalled(process, "the scheduler does not answer. Look at the scheduler's process and the network to it, start")


def paused_from(part):
    """Makes a worker pause as soon as it uses this part of its memory."""

    def change(dask_worker):
        dask_worker.memory_manager.memory_pause_fraction = part

    return change


def test_workers_that_are_all_paused_end_the_run(slow, tmp_path):
    """With a tenth of a gigabyte, they use more than a twentieth of it."""
    with scheduler() as (address, _), workers(address, tmp_path, 2):
        file = cluster_file(tmp_path, address)
        with (
            command(tmp_path, slow | {"no_progress_timeout": "2s"}, "--cluster", file) as process,
            distributed.Client(address, set_as_default=False) as client,
        ):
            until(process, "factor: ")
            client.run(paused_from(0.05))
            stalled(
                process, r"2 workers, all paused: memory \d+ % used\. Free memory and disk on the machines of the p"
            )


def test_workers_that_are_all_paused_before_a_run_are_not_taken_for_missing(tmp_path):
    with scheduler() as (address, _), workers(address, tmp_path, 2):
        with distributed.Client(address, set_as_default=False) as client:
            client.run(paused_from(0.05))
            wait_for(
                lambda: {one["status"] for one in client.scheduler_info(n_workers=-1)["workers"].values()} == {"paused"}
            )
        says = (
            r"2 workers, all paused: memory \d+ % used\. Free memory and disk on their machines, or start workers with"
        )
        with (
            pytest.raises(ClusterUnreachable, match=says),
            open_cluster(Address(address=address, connect_timeout="1s")),
        ):
            pass


@pytest.mark.slow
def test_workers_of_ours_that_are_all_frozen_end_the_run_and_leave_no_process(slow, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("kind: local\nprocesses: 2\nmemory: 400 MiB\ndashboard: false\n")
    with command(tmp_path, slow, "--cluster", str(cluster)) as process:
        until(process, "factor: ")
        started = family(process.pid)
        for worker in workers_of(process.pid):
            worker.suspend()
        stalled(
            process, r"2 workers not heard of: 0 on 127\.0\.0\.1 for [\d.]+ s, 1 on 127\.0\.0\.1 for [\d.]+ s\. End"
        )
    assert_gone(started)
    assert "x" not in os.listdir(tmp_path)


def test_where_workers_may_take_long_to_come_the_scheduler_s_own_time_counts():
    """As with a batch system, whose queue is longer than any `no_progress_timeout`."""
    A = np.eye(3)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.no-workers-timeout": "2s"}))
        cluster = stack.enter_context(distributed.LocalCluster(n_workers=0, dashboard_address=":0"))
        client = stack.enter_context(distributed.Client(cluster))
        with pytest.raises(Stalled, match=r"(factor for|waited) [2-9][\d.]* s.*: no workers connected\. Start workers"):
            run(LeastSquares(matrix=A, rhs=A[0], no_progress_timeout="500ms"), client=client)


# One of two


def answer(client, fields, **options):
    """The bits of x, without what an earlier run has kept."""
    job = LeastSquares(**fields | {"output": None, "no_progress_timeout": "60s"})
    return run(job, client=client, **options).x.tobytes()


@pytest.mark.slow
def test_a_job_goes_on_with_the_other_worker_when_one_freezes_and_the_frozen_one_is_started_anew(slow, monkeypatch):
    monkeypatch.setitem(SETTINGS, "distributed.scheduler.worker-ttl", "1s")  # with ten missed words, in fact: 5 s
    with open_cluster(Local(processes=2, memory="400 MiB", dashboard=False)) as client:
        expected, frozen = answer(client, slow), []

        def freeze(event):
            if isinstance(event, PassProgress) and event.name == "factor" and event.rows and not frozen:
                frozen.append(next(iter(client.run(os.getpid).values())))
                os.kill(frozen[0], signal.SIGSTOP)

        assert answer(client, slow, listener=freeze) == expected
        client.wait_for_workers(2, timeout=SECONDS)
        assert frozen[0] not in client.run(os.getpid).values()
    assert frozen


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2])
def test_a_cable_that_is_never_put_back_costs_a_worker_or_ends_the_run(slow, tmp_path, cut):
    """Of two workers on machines of their own: the job goes on with the other one, or says that there is none."""
    chaos = pytest.importorskip("benchmarks.chaos", reason="the benchmarks are no part of the wheel")
    need("ip")
    with chaos._fleet(tmp_path) as fleet:
        (tmp_path / "cluster.yaml").write_text(f"kind: address\naddress: tcp://{fleet.host}:{fleet.port}\n")
        job = slow | {"no_progress_timeout": "120s" if cut == 1 else "10s"}
        with command(tmp_path, job, "--cluster", "cluster.yaml") as process:
            until(process, "factor: ")
            until(process, "factor: ")
            for link in fleet.networks[:cut]:
                chaos._ip("link", "set", f"{link}-l", "down")
            if cut == 1:
                _, said = process.communicate(timeout=200)
                assert process.returncode == 0, said
                np.testing.assert_allclose(open_result(tmp_path / "x").x, np.arange(float(COLUMNS)), atol=1e-9)
            else:
                stalled(process, "2 workers not heard of: .* mend the network to it, and run the job again: it goes on")


@pytest.mark.slow
def test_a_worker_that_joins_late_takes_its_part(slow):
    with open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client:
        expected, joined = answer(client, slow), []

        def join(event):
            if isinstance(event, PassProgress) and event.rows and not joined:
                joined.append(client.cluster.scale(2))

        assert answer(client, slow, listener=join) == expected

        def has_worked():
            from pipelines.engine import _one_blas_thread  # the first span on a worker calls it

            return _one_blas_thread.cache_info().currsize

        assert list(client.run(has_worked).values()) == [1, 1]
