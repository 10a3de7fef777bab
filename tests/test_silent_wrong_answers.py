"""Six ways in which Dask and Zarr give a wrong number without an error, each refused or detected here."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import SchedulerPlugin
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, make_plan, open_result, run
from pipelines.errors import BadData, RunFailed
from pipelines.progress import PassFinished, PassStarted
from pipelines.storage import Staging, Writer, write_rows
from workers.clusters import Local, open_cluster

CODECS = {
    "uncompressed": {"compressors": None},
    "crc32c": {"compressors": [Crc32cCodec()]},
    "zstd": {"compressors": [ZstdCodec()]},
    "zstd with a checksum": {"compressors": [ZstdCodec(checksum=True)]},
    "blosc": {"compressors": [BloscCodec()]},
    "version 2": {"compressors": None, "zarr_format": 2},
}
MANY_TASKS = {"name": "tsqr", "span_seconds": 1e-9}
"""One task for each row of chunks."""


@pytest.fixture(scope="module")
def client():
    with open_cluster(Local(processes=2, memory="500 MiB", dashboard=False)) as client:
        yield client


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 2
    file.write_bytes(raw)


# 1. A chunk is deleted: Zarr reads fill values


@pytest.mark.parametrize("codec", CODECS)
def test_a_deleted_chunk_is_an_error_and_not_zeros(problem, codec):
    made = problem(**CODECS[codec])
    key = "2.0" if codec == "version 2" else "c/2/0"
    (Path(made.matrix) / key).unlink()
    assert not zarr.open_array(made.matrix)[20:30].any()  # what Zarr makes of it
    with pytest.raises(BadData, match=f"The chunk {key} of {made.matrix} is not in the store"):
        run(LeastSquares(**made.fields))


def test_a_deleted_chunk_is_an_error_on_workers_too(problem, client):
    made = problem(m=60, n=3, rows=10)
    (Path(made.rhs) / "c/2").unlink()
    with pytest.raises(BadData, match=f"The chunk c/2 of {made.rhs} is not in the store"):
        run(LeastSquares(**made.fields), client=client)


def test_an_array_that_somebody_opened_before_in_this_process_is_read_with_our_setting(problem):
    made = problem()
    run(LeastSquares(**made.fields, missing_chunks="fill"))
    (Path(made.matrix) / "c/2/0").unlink()
    run(LeastSquares(**made.fields, missing_chunks="fill"))
    with pytest.raises(BadData, match="is not in the store"):
        run(LeastSquares(**made.fields))


# 2. A bit flips


@pytest.mark.parametrize("codec", ["crc32c", "zstd with a checksum"])
def test_a_flipped_bit_under_a_checksum_is_an_error_that_names_the_chunk(problem, codec):
    made = problem(**CODECS[codec])
    flip(Path(made.matrix) / "c/4/0")
    with pytest.raises(BadData, match=f"The chunk {made.matrix}/c/4/0 is damaged"):
        run(LeastSquares(**made.fields))


@pytest.mark.parametrize("codec", ["uncompressed", "zstd", "blosc", "version 2"])
def test_without_checksums_the_plan_and_the_certificate_warn(problem, codec):
    made = problem(**CODECS[codec])
    warning = "The matrix and the rhs carry no checksums: damage to stored bytes could go unseen."
    assert make_plan(LeastSquares(**made.fields)).warnings[0].startswith(warning)
    assert run(LeastSquares(**made.fields)).certificate.warnings[0].startswith(warning)


def test_with_checksums_nobody_is_warned(problem):
    assert make_plan(LeastSquares(**problem().fields)).warnings == ()


def test_a_job_can_insist_on_checksums(problem, command):
    made = problem(**CODECS["zstd"])
    done = command("run", "job.yaml", job=made.fields | {"output": "out", "require": {"checksums": True}})
    assert done.returncode == 3
    assert "The job requires checksums, and the matrix and the rhs carry none." in done.stderr


# 3. A chunk inside a shard is missing, or a shard has no length


def test_an_inner_chunk_that_its_shard_does_not_hold_is_an_error_and_not_zeros(problem):
    made = problem(shards=None)
    A = zarr.create_array(Path(made.matrix).with_name("S"), shape=(60, 3), chunks=(5, 3), shards=(20, 3), dtype="f8")
    A[...] = made.A
    A[25:30] = 0  # all fill values: Zarr leaves the inner chunk out, as if it had got lost
    fields = made.fields | {"matrix": str(Path(made.matrix).with_name("S"))}
    with pytest.raises(BadData, match=r"The chunk c/1/0 \(its inner chunk \(5, 0\)\) of .* is not in the store"):
        run(LeastSquares(**fields))
    run(LeastSquares(**fields, missing_chunks="fill"))


def test_a_shard_without_length_is_an_error_and_not_zeros(problem):
    made = problem(shards=None)
    A = zarr.create_array(Path(made.matrix).with_name("S"), shape=(60, 3), chunks=(5, 3), shards=(20, 3), dtype="f8")
    A[...] = made.A
    (Path(made.matrix).with_name("S") / "c/1/0").write_bytes(b"")
    for policy in ("error", "fill"):
        with pytest.raises(BadData, match=r"The chunk .*/S/c/1/0.* is damaged"):
            run(LeastSquares(**made.fields | {"matrix": f"{made.matrix[:-1]}S"}, missing_chunks=policy))


# 4. Two tasks write parts of one chunk


def test_parts_of_chunks_are_never_written(tmp_path):
    staging = Staging(f"{tmp_path}/out", Writer("0123456789ab"), overwrite=False)
    url = staging.create("x", (100,), np.float64, (30,))
    for start, stop in ((0, 29), (1, 31), (60, 80), (95, 100)):
        with pytest.raises(RunFailed, match="are not whole chunks of 30 rows"):
            write_rows(url, start, np.ones((stop - start, 1)))
    staging.discard()


def test_tasks_that_store_a_wide_answer_write_one_chunk_each(save, tmp_path, client):
    A = np.random.default_rng(8).standard_normal((3, 50_000))
    fields = {"matrix": save("A", A, (3, 7000), compressors=[Crc32cCodec()]), "rhs": save("b", A[:, 0])}
    job = LeastSquares(**fields, output=f"{tmp_path}/out", method=MANY_TASKS)
    result = run(job, client=client)
    x = zarr.open_array(f"{tmp_path}/out/x")
    assert x.chunks[0] == result.summary["plan"]["span_rows"]
    assert x.nchunks == result.summary["plan"]["spans"] > 3
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, A[:, 0])[0], atol=1e-15)


# 5. Two graphs use the same names for other tasks


@pytest.fixture
def no_clash(caplog):
    """Fails when Dask notices one key with two meanings, which it only logs."""
    with caplog.at_level(logging.WARNING, logger="distributed"):
        yield
    assert "Detected different `run_spec`" not in caplog.text


def test_jobs_one_after_the_other_on_one_cluster_give_their_own_answers(problem, client, no_clash):
    made = problem(m=400, n=3, rows=10)
    for factor in (1, 2, 3):
        zarr.open_array(made.rhs)[...] = factor * made.b
        x = run(LeastSquares(**made.fields, method=MANY_TASKS), client=client).x
        np.testing.assert_allclose(x, factor * made.x, rtol=1e-12)


def test_jobs_at_the_same_time_on_one_cluster_give_their_own_answers(save, client, no_clash):
    A = np.random.default_rng(2).standard_normal((400, 3))
    matrix, together = save("A", A, (10, 3), compressors=[Crc32cCodec()]), threading.Barrier(3, timeout=60)
    rhs = [save(f"b{k}", A @ np.full(3, float(k)), (10,)) for k in range(3)]

    def solve(k: int) -> np.ndarray:
        together.wait()
        return run(LeastSquares(matrix=matrix, rhs=rhs[k], method=MANY_TASKS), client=client).x

    with ThreadPoolExecutor(3) as pool:
        for k, x in enumerate(pool.map(solve, range(3))):
            np.testing.assert_allclose(x, np.full(3, k), atol=1e-12)


def test_names_of_tasks_never_come_again(problem, client):
    made = problem(m=400, n=3, rows=10)

    class Names(SchedulerPlugin):
        name = "names"

        def update_graph(self, scheduler, **options) -> None:
            scheduler.log_event("keys", sorted(map(str, options["tasks"])))

    client.register_plugin(Names())
    for _ in range(2):
        run(LeastSquares(**made.fields, method=MANY_TASKS), client=client)
    client.unregister_scheduler_plugin("names")
    keys = [key for event in client.get_events("keys") for key in event[1]]
    assert len(keys) == len(set(keys)) >= 160
    assert all("factor" in key or "verify" in key for key in keys)


# 6. The input is written again


def test_an_input_that_was_written_again_gives_the_new_answer(problem, client):
    made = problem()
    before = run(LeastSquares(**made.fields), client=client)
    zarr.open_array(made.matrix)[...] = 2 * made.A
    after = run(LeastSquares(**made.fields), client=client)
    np.testing.assert_allclose(after.x, before.x / 2, rtol=1e-12)


def test_an_input_whose_shape_changed_gives_the_new_answer(problem, client, save):
    made = problem()
    run(LeastSquares(**made.fields), client=client)
    for name, array in (("A", made.A[:31]), ("b", made.b[:31])):
        save(f"data/{name}", array, (7, 3)[: array.ndim], overwrite=True)
    expected = np.linalg.lstsq(made.A[:31], made.b[:31])[0]
    np.testing.assert_allclose(run(LeastSquares(**made.fields), client=client).x, expected, rtol=1e-12)


@pytest.mark.parametrize(  # a wide job reads the right-hand side and the weights once
    ("name", "orientation"), [("matrix", "tall"), ("rhs", "tall"), ("weights", "tall"), ("matrix", "wide")]
)
def test_an_input_that_is_written_while_the_job_reads_is_an_error(problem, save, name, orientation):
    tall = orientation == "tall"
    made = problem() if tall else problem(m=4, n=60, rows=10)
    fields = made.fields | {"weights": save("w", np.ones(60), (10,))} if tall else made.fields

    def write(event) -> None:
        if isinstance(event, PassFinished) and event.name == "factor":
            zarr.open_array(fields[name])[...] = 3

    with pytest.raises(BadData, match=f"The {name} changed in the store while the job was reading"):
        run(LeastSquares(**fields), listener=write)


@pytest.mark.parametrize("compressors", [None, [ZstdCodec()]])
@pytest.mark.parametrize("form", ["numbers of another type", "fewer rows"])
def test_an_input_that_gets_another_form_between_plan_and_passes_is_an_error(problem, save, form, compressors):
    made = problem()
    counts = np.random.default_rng(1).integers(1, 100, (60, 3))
    fields = made.fields | {"matrix": save("data/counts", counts, (10, 3), compressors=compressors)}
    later = counts / 100 if form == "numbers of another type" else counts[:55]

    def write(event) -> None:
        if isinstance(event, PassStarted):
            save("data/counts", later, (10, 3), compressors=compressors, overwrite=True)

    with pytest.raises(BadData, match=r"was written anew since .* \(60, 3\) numbers of int64 and holds .* now"):
        run(LeastSquares(**fields), listener=write)


def test_no_result_appears_when_the_input_changed_meanwhile(problem, tmp_path):
    made = problem()

    def write(event) -> None:
        if isinstance(event, PassFinished) and event.name == "factor":
            zarr.open_array(made.matrix)[0] = 3

    with pytest.raises(BadData, match="Run the job again when nobody writes"):
        run(LeastSquares(**made.fields, output=f"{tmp_path}/out"), listener=write)
    with pytest.raises(BadData, match="There is no result"):
        open_result(f"{tmp_path}/out")
