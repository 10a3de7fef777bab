"""Memory: no worker takes more than the plan says, and where it is short after all, tasks take less of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
import pytest
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, room, run
from pipelines.errors import OutOfMemory
from pipelines.load import job_of
from pipelines.plan import IDLE_BYTES, Resources
from pipelines.progress import Note, ignore
from pipelines.read_ahead import ahead
from tests.conftest import environment, written
from workers.clusters import Local, open_cluster

ZSTD, CRC, PLAIN = {"compressors": [ZstdCodec()]}, {"compressors": [Crc32cCodec()]}, {"compressors": None}
FINE = {"name": "tsqr", "span_seconds": 1e-9}
SLACK = 20 * 2**20
"""What an idle worker grows by when it does anything at all: modules, threads, connections. IDLE_BYTES has room."""


def resident_bytes(client):
    """What the only worker has in memory, and the most that it had; asked by a function that travels by value."""

    def asked() -> tuple[int, int]:
        from pathlib import Path

        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024

    [found] = client.run(asked).values()
    return found


def matrix(shape, dtype, missing):
    rng = np.random.default_rng(1)
    if dtype == "i1":
        return rng.integers(-9, 10, shape, dtype="i1")
    A = rng.standard_normal(shape, dtype="f4" if dtype == "f4" else "f8").astype(dtype)
    if missing:
        A[::7, 0] = np.nan
    return A


def slow(*values, **options):
    return pytest.param(*values, marks=pytest.mark.slow, **options)


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks", "options", "fields"),
    [
        ((150_000, 64), "f8", (50_000, 64), ZSTD, {}),
        ((100_000, 64), "f8", (50_000, 16), ZSTD, {}),
        ((100_000, 64), "f8", (100_000, 64), CRC, {}),
        ((200_000, 64), "f4", (100_000, 64), ZSTD, {"nan": "omit_rows"}),
        ((800_000, 64), "i1", (400_000, 64), CRC, {}),
        ((100_000, 64), "f8", (5000, 64), ZSTD | {"shards": (50_000, 64)}, {}),
        ((64, 100_000), "f8", (16, 50_000), ZSTD, {}),
        ((100_000, 64), "c8", (50_000, 64), ZSTD, {}),
        ((100_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "pseudoinverse", "form": "explicit"}),
        ((100_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "svd", "vectors": "both"}),
        ((100_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "pca", "nan": "mean"}),
        ((200_000, 64), "f8", (50_000, 64), ZSTD, {"threads": 4, "method": FINE}),
        ((20_000, 64), "f8", (10_000, 64), ZSTD, {"k": 200}),
        ((150_000, 64), "f8", 50_000, "dask", {}),
        slow((64, 100_000), "f8", (64, 50_000), ZSTD, {"nan": "omit_rows"}),
        slow((200_000, 64), "f8", (5000, 64), ZSTD | {"shards": (100_000, 64)}, {}),
        slow((60_000, 64), "f8", (8192, 64), PLAIN, {"k": 200}),
        slow((200_000, 64), "f4", 50_000, "dask", {}),
        slow((600_000, 64), "f8", (600_000, 64), ZSTD, {}),
        slow((64, 200_000), "f8", (64, 50_000), ZSTD, {"kind": "svd", "vectors": "both"}),
        slow((64, 200_000), "c8", (64, 50_000), CRC, {}),
        slow((200_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "pca", "scores": True}),
        slow((100_000, 128), "f8", (25_000, 128), ZSTD,
             {"kind": "svd", "vectors": "both", "values": 10, "method": {"name": "block_krylov"}}),
        slow((200_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "qr", "form": "explicit"}),
        slow((200_000, 64), "f8", (50_000, 64), ZSTD, {"kind": "low_rank", "rank": 5}),
        slow((400_000, 64), "f8", (8192, 64), PLAIN, {"threads": 4, "method": FINE}),
        slow((6000, 2000), "f8", (500, 2000), PLAIN, {"method": FINE}),
    ],
)  # fmt: skip
def test_no_worker_takes_more_memory_than_the_plan_says(save, tmp_path, shape, dtype, chunks, options, fields):
    fields = {"kind": "least_squares", "output": f"{tmp_path}/out"} | fields
    threads, k = fields.pop("threads", 1), fields.pop("k", None)
    if options == "dask":
        A = da.random.random(shape, chunks=(chunks, -1)).astype(dtype)
        job = LeastSquares(matrix=A, rhs=da.random.random(shape[0], chunks=chunks))
    else:
        A = matrix(shape, dtype, "nan" in fields)
        if fields["kind"] == "least_squares":
            b = np.ones((shape[0], k)) if k else np.ones(shape[0])
            fields["rhs"] = save("b", b, (min(shape[0], 10_000), *b.shape[1:]), **CRC)
        job = job_of(fields | {"matrix": save("A", A, chunks, **options)})
        del A
    with open_cluster(Local(processes=1, threads=threads, memory="2 GiB", dashboard=False)) as client:
        idle, _ = resident_bytes(client)
        plan = run(job, client=client).summary["plan"]
        _, peak = resident_bytes(client)
    assert peak <= plan["peak_bytes_per_worker"]
    assert peak - idle <= plan["peak_bytes_per_worker"] - IDLE_BYTES + SLACK


# Where memory is short after all


@pytest.fixture
def heavy(save):
    """Eight tasks, each of which holds some 150 MB."""
    A = np.tile(np.random.default_rng(1).standard_normal((1000, 64)), (800, 1))
    fields = {"matrix": save("A", A, (100_000, 64), **ZSTD), "rhs": save("b", A[:, 0] ** 2, (10_000,))}
    return LeastSquares(**fields, method={"name": "tsqr", "span_seconds": 0.1})


def on_workers_of(memory, job, threads, listener=ignore):
    plentiful = Resources(workers=1, threads=threads, memory_bytes=2**40)  # the plan would refuse
    with open_cluster(Local(processes=1, threads=threads, memory=memory, dashboard=False)) as client:
        return run(job, client=client, resources=plentiful, listener=listener)


@pytest.mark.slow
def test_a_pass_whose_worker_dies_for_memory_is_tried_again_with_a_task_at_a_time(heavy):
    notes = []

    def listener(event):
        if isinstance(event, Note):
            notes.append(event.text)

    found = on_workers_of("280 MiB", heavy, 4, listener)
    why = "workers died for want of memory (more than 95 % of 280 MiB)"
    how = "one task at a time on each worker and nothing read ahead"
    assert notes == [f"factor: {why}; it is tried again with {how}"]
    assert found.x.tobytes() == run(heavy, resources=Resources(1, 1, 2**40)).x.tobytes()


@pytest.mark.slow
def test_a_pass_that_needs_more_than_there_is_even_so_fails_with_the_numbers(save):
    A = np.zeros((800_000, 64))  # compressed a few kilobytes, decoded 200 MB in each of two chunks
    fields = {"matrix": save("A", A, (400_000, 64), **ZSTD), "rhs": save("b", A[:, 0])}
    says = (
        r"by 4 workers, and each of them died: it took more than 95 % of the memory limit of 256 MiB\. Give .* "
        r"That was with one task at a time on each worker and nothing read ahead\.$"
    )
    with pytest.raises(OutOfMemory, match=says):
        on_workers_of("256 MiB", LeastSquares(**fields), 2)


def test_a_process_that_is_nearly_full_reads_nothing_ahead(monkeypatch):
    """The same pieces in the same order; only when they are read is another matter."""
    log = []

    def read(start, stop, out):
        log.append(f"read {start}")
        return start

    def walked():
        log.clear()
        for piece in ahead(read, [(0, 1), (1, 2), (2, 3)], [None, None]):
            time.sleep(0.05)  # whoever reads ahead has done it by then
            log.append(f"done {piece}")
        return list(log)

    monkeypatch.setattr(room, "_limit", 0)
    assert walked() == ["read 0", "read 1", "done 0", "read 2", "done 1", "done 2"]
    monkeypatch.setattr(room, "_limit", psutil.Process().memory_info().rss)
    in_turn = ["read 0", "done 0", "read 1", "done 1", "read 2", "done 2"]
    assert walked() == in_turn
    monkeypatch.setattr(room, "_limit", 0)
    with room.alone(True):
        assert walked() == in_turn
    assert walked() != in_turn


@pytest.mark.slow
def test_a_command_in_a_control_group_stays_within_its_limit(heavy, tmp_path):
    """With `memory: auto` the workers share what the group leaves, and the kernel has nobody to kill."""
    group = Path("/sys/fs/cgroup/memory", f"tallgrass-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of memory (version 1) can be made here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(1300 * 2**20))
        job = written(tmp_path, heavy.model_dump(mode="json", include={"matrix", "rhs"}) | {"output": "x"})
        typed = f"echo $$ >{group}/cgroup.procs; exec {sys.executable} -m workers.cli run {job.name} --json"
        done = subprocess.run(["sh", "-c", typed], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)["plan"]
        assert 0 < plan["workers"] * plan["memory_bytes_per_worker"] < 800 * 2**20
        assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    finally:
        group.rmdir()
