"""Runs in real processes: stopped, killed, starved and cut off, they end with the right answer or with a letter."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import dask.array as da
import numpy as np
import psutil
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, Pseudoinverse, open_result, run
from pipelines.errors import PlanRefused, RunFailed
from pipelines.plan import Resources
from pipelines.progress import PassProgress, PassStarted
from pipelines.storage import clean
from tests.conftest import environment
from workers.clusters import Local, open_cluster

SECONDS = 60
"""For anything that should take a few."""


@pytest.fixture(scope="module")
def long(store, tmp_path_factory):
    """A problem that keeps two workers busy for some seconds."""
    folder, random = tmp_path_factory.mktemp("long"), np.random.default_rng(6)
    A, x = random.integers(-9, 10, (60_000, 700), dtype="i1"), random.integers(-9, 10, 700).astype(float)
    b = A.astype(np.float32) @ x.astype(np.float32)  # whole numbers: exact
    matrix = store(folder / "A", A, (1000, 700), compressors=[Crc32cCodec()])
    rhs = store(folder / "b", b.astype(float), (1000,), compressors=[Crc32cCodec()])
    in_one = store(folder / "C", A, A.shape, compressors=[Crc32cCodec()])  # one chunk, so one task of some seconds
    return SimpleNamespace(fields={"matrix": matrix, "rhs": rhs}, in_one={"matrix": in_one, "rhs": rhs}, x=x)


def written(folder: Path, job: dict) -> None:
    (folder / "job.yaml").write_text(json.dumps({"kind": "least_squares"} | job))


@contextmanager
def command(folder, job, *words):
    """`tallgrass run` as it goes on, in a session of its own; whatever happens, it and all it started is gone after."""
    written(folder, job)
    typed = [sys.executable, "-m", "workers.cli", "run", "job.yaml", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(typed, cwd=folder, env=environment(), **pipes) as process:
        try:
            yield process
        finally:
            for left in [*family(process.pid), process]:
                left.kill()


def family(pid: int) -> list[psutil.Process]:
    """All that a process has started and that lives."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes: forks of the server that the command has started."""
    return [process for process in family(pid) if process.ppid() != pid]


def until(process: subprocess.Popen, text: str) -> str:
    """What the command says up to the line that begins so."""
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(text):
            return said
    raise AssertionError(said)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


# Ctrl-C


@pytest.mark.parametrize(
    "moment", ["factor:", *(pytest.param(one, marks=pytest.mark.slow) for one in ("dashboard:", "factor: done"))]
)
def test_an_interrupt_stops_the_work_and_leaves_nothing(long, tmp_path, moment):
    with command(tmp_path, long.fields | {"output": "out/x"}) as process:
        said = until(process, moment)
        started = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        stdout, rest = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in said + rest
    assert rest.endswith("Interrupted. No result was written.\n")
    assert_gone(started)
    if moment == "factor: done":
        assert "What was done is kept beside the output (" in rest
    clean(str(tmp_path / "out" / "x"))
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("job.yaml", "out")]


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_stops_the_work_without_a_traceback(long, tmp_path):
    written(tmp_path, long.fields | {"output": "x"})
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "workers.cli", "run", "job.yaml"], environment())
    started = wait_on(terminal, b"factor")
    children = family(pid)
    os.write(terminal, b"\x03")
    said = wait_on(terminal, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"Traceback" not in started + said
    assert b"Interrupted. No result was written." in said
    assert_gone(children)
    clean(str(tmp_path / "x"))  # some spans may have been done
    assert os.listdir(tmp_path) == ["job.yaml"]


def test_an_interrupt_is_not_lost_where_python_ignores_exceptions(tmp_path):
    code = """
import gc, os, signal, sys, time
from workers import cli, commands

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # here the interrupt arrives, and nobody can catch it

def load_job(*words):
    Interrupted()
    time.sleep(60)

import pipelines.load
pipelines.load.load_job = load_job
cli.main(["check", "job.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted. No result was written.")


def wait_on(terminal: int, text: bytes | None) -> bytes:
    """What is shown up to a text, or to the end."""
    said, end = b"", time.monotonic() + SECONDS
    while time.monotonic() < end and (text is None or text not in said):
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # the other side has closed it
                return said
    return said


@pytest.mark.slow
def test_a_command_that_is_killed_takes_its_workers_along_and_the_next_one_succeeds(long, tmp_path):
    with command(tmp_path, long.fields | {"output": "x"}) as process:
        until(process, "factor:")
        started = family(process.pid)
        process.kill()
        process.wait()
        assert_gone(started)
    made = {"matrix": np.eye(3), "rhs": np.arange(3.0)}
    run(LeastSquares(**made, output=f"{tmp_path}/x"))
    assert sorted(os.listdir(tmp_path)) == ["job.yaml", "x"]


# Workers that die


@pytest.fixture(scope="module")
def pair():
    with open_cluster(Local(processes=2, memory="700 MiB", dashboard=False)) as client:
        yield client


def test_a_killed_worker_changes_no_bit_of_the_answer(long, pair):
    undisturbed, killed = run(LeastSquares(**long.fields, verify=False), client=pair).x, []

    def kill(event) -> None:
        if isinstance(event, PassProgress) and event.rows and not killed:
            killed.append(next(iter(pair.cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    disturbed = run(LeastSquares(**long.fields, verify=False), client=pair, listener=kill).x
    assert killed
    np.testing.assert_array_equal(disturbed, undisturbed)
    np.testing.assert_allclose(disturbed, long.x, atol=1e-10)


def test_a_worker_that_is_killed_while_it_writes_changes_no_bit_of_the_result(store, pair, tmp_path):
    """Chunks that it had written are written once more, with the same bits."""
    A = np.random.default_rng(7).standard_normal((60_000, 64))
    matrix, killed = store(tmp_path / "A", A, (2000, 64)), []

    def kill() -> None:
        killed.append(next(iter(pair.cluster.workers.values())).pid)
        os.kill(killed[0], signal.SIGKILL)

    def soon(event) -> None:
        if isinstance(event, PassStarted) and event.name == "write":
            threading.Timer(0.1, kill).start()

    options = {"matrix": matrix, "method": {"name": "tsqr", "span_seconds": 0.01}}
    undisturbed = run(Pseudoinverse(**options, output=f"{tmp_path}/undisturbed"), client=pair)["pinv"]
    result = run(Pseudoinverse(**options, output=f"{tmp_path}/out"), client=pair, listener=soon)
    assert killed
    np.testing.assert_array_equal(zarr.open_array(f"{tmp_path}/out/pinv", mode="r")[...], undisturbed)
    assert max(result.certificate.penrose.values()) < 1e-13


def test_workers_that_are_killed_again_and_again_are_a_failure_that_names_the_cause(long):
    stop = threading.Event()

    def kill_all(cluster) -> None:
        """Each worker, half a second after it is there."""
        while not stop.wait(0.1):
            for nanny in cluster.workers.values():
                if (
                    nanny.pid
                    and psutil.pid_exists(nanny.pid)
                    and psutil.Process(nanny.pid).create_time() < time.time() - 1
                ):
                    os.kill(nanny.pid, signal.SIGKILL)

    with open_cluster(Local(processes=1, memory="700 MiB", dashboard=False)) as client:
        killer = threading.Thread(target=kill_all, args=(client.cluster,))

        def listener(event) -> None:
            if isinstance(event, PassStarted):
                killer.start()

        died = (
            r'The task "factor" was run by 4 workers, and each of them died: something outside killed it with SIGKILL'
        )
        try:
            with pytest.raises(RunFailed, match=died):
                run(LeastSquares(**long.in_one), client=client, listener=listener)
        finally:
            stop.set()
            killer.join()


def test_a_job_that_outgrows_its_workers_is_a_failure_that_names_the_memory(save):
    A = np.zeros((400_000, 64))  # compressed a few kilobytes, decoded 200 MB in one chunk
    fields = {"matrix": save("A", A, A.shape, compressors=[ZstdCodec()]), "rhs": save("b", A[:, 0])}
    plentiful = Resources(workers=1, threads=1, memory_bytes=2**40)  # the plan would refuse
    with (
        open_cluster(Local(processes=1, memory="256 MiB", dashboard=False)) as client,
        pytest.raises(
            RunFailed, match=r"it took more than 95 % of the memory limit of 256 MiB\. Give each worker more"
        ),
    ):
        run(LeastSquares(**fields), client=client, resources=plentiful)


# Workers that do nothing


def test_workers_that_stand_still_end_the_run_with_their_state(long, tmp_path):
    with command(tmp_path, long.fields | {"output": "x", "no_progress_timeout": "2s"}) as process:
        until(process, "factor:")
        started = family(process.pid)
        for worker in workers_of(process.pid):
            worker.suspend()
        stdout, rest = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (9, "")
    assert "Nothing has moved in the pass factor for 2" in rest
    assert "2 workers running, " in rest
    assert "Traceback" not in rest
    assert_gone(started)
    assert "x" not in os.listdir(tmp_path)


def test_a_cluster_whose_workers_are_gone_ends_the_run_and_says_so(long, tmp_path):
    with scheduler() as (address, _), worker(address, tmp_path) as only:
        job = long.fields | {"output": "x", "no_progress_timeout": "8s"}
        with command(tmp_path, job, "--cluster", cluster_file(tmp_path, address)) as process:
            until(process, "factor:")
            only.kill()
            _, rest = process.communicate(timeout=SECONDS)
    assert process.returncode == 9
    assert "Nothing has moved in the pass factor for 8" in rest
    assert "no workers connected. Start workers and run the job again" in rest
    assert "Traceback" not in rest


def test_a_scheduler_that_dies_during_the_run_is_told_with_exit_code_5(long, tmp_path):
    with scheduler() as (address, there), worker(address, tmp_path):
        job = long.fields | {"output": "x"}
        with command(tmp_path, job, "--cluster", cluster_file(tmp_path, address)) as process:
            until(process, "factor:")
            there.kill()
            _, rest = process.communicate(timeout=SECONDS)
    assert process.returncode == 5, rest
    assert "scheduler" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "x").exists()


@contextmanager
def started(*typed: str):
    """A Dask process of its own."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *typed], stdout=quiet, stderr=quiet, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def scheduler():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ("--host", "127.0.0.1", "--port", port, "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    with started("-m", "distributed.cli.dask_scheduler", *options) as process:
        yield f"tcp://127.0.0.1:{port}", process


@contextmanager
def worker(address, folder):
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "1GiB")
    with started("-m", "distributed.cli.dask_worker", address, *options, "--local-directory", f"{folder}/w") as process:
        yield process


def cluster_file(folder, address):
    path = Path(folder, "cluster.yaml")
    path.write_text(f"kind: address\naddress: {address}\nconnect_timeout: 5s\n")
    return str(path)


# The same bits everywhere


def test_threads_and_processes_give_the_same_bits(pair, save):
    A = np.random.default_rng(3).standard_normal((5000, 20))
    fields = {"matrix": save("A", A, (300, 20), compressors=[Crc32cCodec()]), "rhs": save("b", A[:, 0] ** 2)}
    job = LeastSquares(**fields, method={"name": "tsqr", "span_seconds": 1e-9})
    one, many = (run(job, resources=Resources(1, threads, 2**34)) for threads in (1, 8))
    processes = run(job, client=pair)
    assert processes.summary["plan"]["spans"] == 17
    for name in one.arrays:
        np.testing.assert_array_equal(many[name], one[name])
        np.testing.assert_array_equal(processes[name], one[name])


# Arrays of Python


def system(m=2000, n=5):
    random = np.random.default_rng(7)
    A, b = random.standard_normal((m, n)), random.standard_normal(m)
    return A, b, np.linalg.lstsq(A, b)[0]


CHUNKS = {
    "rows": (300, -1),
    "columns": (-1, 2),
    "both": (450, 3),
    "one": (-1, -1),
    "uneven": ((1000, 1, 999), (4, 1)),
}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("place", ["threads", "cluster"])
def test_a_dask_array_is_taken_however_it_is_chunked(request, chunks, place):
    client = request.getfixturevalue("pair") if place == "cluster" else None
    A, b, x = system()
    result = run(LeastSquares(matrix=da.from_array(A, CHUNKS[chunks]), rhs=da.from_array(b, 700)), client=client)
    np.testing.assert_allclose(result.x, x, rtol=1e-12)
    assert result.certificate.rows_used == 2000


@pytest.mark.parametrize("place", ["threads", "cluster"])
@pytest.mark.parametrize("shape", [(2000, 5), (5, 2000)])
def test_a_numpy_array_is_taken(request, place, shape):
    client = request.getfixturevalue("pair") if place == "cluster" else None
    A = np.random.default_rng(7).standard_normal(shape)
    result = run(LeastSquares(matrix=A, rhs=A[:, :2] ** 2), client=client)
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, A[:, :2] ** 2)[0], atol=1e-12)


@pytest.mark.parametrize("place", ["threads", "cluster"])
def test_a_wide_dask_array_gives_the_answer_of_least_norm(request, place):
    client = request.getfixturevalue("pair") if place == "cluster" else None
    A = np.random.default_rng(7).standard_normal((5, 2000))
    result = run(LeastSquares(matrix=da.from_array(A, (2, 300)), rhs=A[:, 0]), client=client)
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, A[:, 0])[0], atol=1e-14)


@pytest.mark.parametrize("place", ["threads", "cluster"])
def test_a_stored_matrix_goes_with_a_dask_right_hand_side_and_weights_of_numpy(request, save, place):
    client = request.getfixturevalue("pair") if place == "cluster" else None
    A, b, _ = system()
    w = np.random.default_rng(8).uniform(1, 2, 2000)
    job = LeastSquares(matrix=save("A", A, (300, 5)), rhs=da.from_array(b, 450), weights=w)
    s = np.sqrt(w)
    np.testing.assert_allclose(run(job, client=client).x, np.linalg.lstsq(A * s[:, None], b * s)[0], rtol=1e-12)


def test_a_dask_array_is_not_computed_before_the_run_nor_held_after_it(pair):
    A, b, x = system()
    calls = []

    def block(part):
        calls.append(1)
        return part

    lazy = da.from_array(A, (500, 5)).map_blocks(block, dtype=A.dtype, meta=np.empty((0, 0)))
    job = LeastSquares(matrix=lazy, rhs=b)
    assert calls == []
    np.testing.assert_allclose(run(job, client=pair).x, x, rtol=1e-12)
    end = time.monotonic() + 10
    while pair.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end


def test_chunks_of_unknown_size_are_refused_with_a_way_out():
    A, b, _ = system()
    lazy = da.from_array(A, (500, 5))
    unknown = lazy[lazy[:, 0] > 0]
    with pytest.raises(PlanRefused, match=r"whose chunk sizes are unknown.* Call its compute_chunk_sizes\(\) first"):
        run(LeastSquares(matrix=unknown, rhs=b))
    unknown.compute_chunk_sizes()
    keep = A[:, 0] > 0
    result = run(LeastSquares(matrix=unknown, rhs=b[keep]))
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A[keep], b[keep])[0], rtol=1e-12)


def test_the_current_client_is_used(pair, save):
    A, b, x = system()
    with pair.as_current():
        result = run(LeastSquares(matrix=save("A", A, (300, 5)), rhs=save("b", b)))
    np.testing.assert_allclose(result.x, x, rtol=1e-12)
    assert result.summary["plan"]["workers"] == 2


def test_without_a_cluster_a_run_starts_no_process(save, tmp_path):
    A, b, _ = system()
    before = family(os.getpid())
    seen = []
    run(LeastSquares(matrix=A, rhs=b, output=f"{tmp_path}/x"), listener=lambda event: seen.append(family(os.getpid())))
    assert all(now == before for now in seen)
    assert open_result(f"{tmp_path}/x").x.shape == (5,)
