"""Object stores and the web: matrices, answers and results there, with options and the environment's credentials."""

import functools
import http.server
import threading
import time
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr

from pipelines import LeastSquares, open_result, run
from pipelines.errors import BadData, PlanRefused
from pipelines.storage import Staging, array_names, describe
from pipelines.storage.arrays import open_store


def test_a_job_reads_from_s3_and_writes_to_s3(remote):
    url = f"{remote.bucket}/results/x.zarr"
    result = run(LeastSquares(**remote.fields, output=url))
    np.testing.assert_allclose(result.x, remote.x, rtol=1e-12)
    again = open_result(url)
    np.testing.assert_array_equal(again.x, result.x)
    assert again.certificate == result.certificate


def test_workers_read_from_s3_and_write_a_wide_answer_there(s3, command):
    A = np.random.default_rng(3).standard_normal((3, 60))
    for name, array, chunks in (("A", A, (3, 20)), ("b", A[:, 0], (3,))):
        zarr.create_array(open_store(f"{s3}/{name}"), shape=array.shape, chunks=chunks, dtype=array.dtype)[...] = array
    done = command("run", "job.yaml", job={"matrix": f"{s3}/A", "rhs": f"{s3}/b", "output": f"{s3}/out"})
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_result(f"{s3}/out").x, np.linalg.lstsq(A, A[:, 0])[0], atol=1e-14)


def test_workers_write_a_pseudoinverse_and_scores_to_s3_chunk_by_chunk(s3, command):
    A = np.random.default_rng(4).standard_normal((60, 3))
    zarr.create_array(open_store(f"{s3}/A"), shape=A.shape, chunks=(25, 3), dtype=A.dtype)[...] = A
    for kind, more in (("pseudoinverse", {}), ("pca", {"scores": True})):
        job = {"kind": kind, "matrix": f"{s3}/A", "output": f"{s3}/{kind}"} | more
        done = command("run", "job.yaml", job=job)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_result(f"{s3}/pseudoinverse")["pinv"], np.linalg.pinv(A), atol=1e-14)
    scores = open_result(f"{s3}/pca")["scores"]
    np.testing.assert_allclose(scores @ open_result(f"{s3}/pca")["components"], A - A.mean(axis=0), atol=1e-13)


def test_a_result_on_s3_is_replaced_only_when_the_job_says_so(remote):
    url = f"{remote.bucket}/out"
    run(LeastSquares(**remote.fields, output=url))
    with pytest.raises(PlanRefused, match=r"holds a result already. Nothing was changed"):
        run(LeastSquares(**remote.fields, output=url))
    run(LeastSquares(**remote.fields, output=url, ridge=1e6, overwrite=True, arrays=["R"]))
    assert np.abs(open_result(url).x).max() < 1e-3
    assert "R" in array_names(url)


def test_a_foreign_folder_on_s3_is_never_replaced(remote):
    for output in (f"{remote.bucket}/data/A/c", f"{remote.bucket}/data"):
        with pytest.raises(PlanRefused, match=r"exists and is not a result of Tallgrass. Nothing was changed"):
            Staging(output, "run", overwrite=True)


def test_an_interrupted_run_leaves_nothing_on_s3_that_can_be_opened_and_the_next_one_succeeds(remote):
    url = f"{remote.bucket}/out"
    Staging(url, "run", overwrite=False).put("x", np.ones(99), ("column",))
    with pytest.raises(BadData, match=r"There is no result at"):
        open_result(url)
    np.testing.assert_allclose(run(LeastSquares(**remote.fields, output=url, overwrite=True)).x, remote.x, rtol=1e-12)
    assert open_result(url).x.shape == (3,)


def test_a_failed_run_leaves_nothing_on_s3(remote):
    store = open_store(remote.bucket)
    before = {entry["path"] for page in obstore.list(store.store) for entry in page}
    obstore.delete(store.store, "data/A/c/2/0")
    with pytest.raises(BadData):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out"))
    after = {entry["path"] for page in obstore.list(store.store) for entry in page}
    assert before - after == {"data/A/c/2/0"}
    assert after <= before


def test_a_chunk_that_is_missing_on_s3_is_named_and_counted(remote):
    obstore.delete(open_store(remote.fields["matrix"]).store, "c/2/0")
    with pytest.raises(BadData, match=r"The chunk c/2/0 of s3://.*/data/A is not in the store \(1 of its 6 chunks"):
        run(LeastSquares(**remote.fields))


def test_a_chunk_that_is_damaged_on_s3_is_named(remote):
    obstore.put(open_store(remote.fields["matrix"]).store, "c/2/0", b"nonsense")
    with pytest.raises(BadData, match=r"The chunk s3://.*/data/A/c/2/0 is damaged"):
        run(LeastSquares(**remote.fields))


def test_a_bucket_that_does_not_exist_is_said_for_input_and_output(remote):
    with pytest.raises(BadData, match=r"There is no Zarr array at s3://no-such-bucket/A: nothing is there"):
        run(LeastSquares(**remote.fields | {"matrix": "s3://no-such-bucket/A"}))
    said = "The output s3://no-such-bucket/x cannot be written: the store answered 404 Not Found, NoSuchBucket, "
    with pytest.raises(PlanRefused, match=f"{said}.*. Check its name, or make it."):
        run(LeastSquares(**remote.fields, output="s3://no-such-bucket/x"))


def test_a_key_where_nothing_is_is_said(remote):
    with pytest.raises(BadData, match=r"There is no Zarr array at s3://.*/data/C: nothing is there"):
        run(LeastSquares(**remote.fields | {"matrix": f"{remote.bucket}/data/C"}))


def test_credentials_that_are_not_there_are_said_at_once(remote, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    start = time.monotonic()
    with pytest.raises(BadData, match=r"data/A cannot be opened: .*Missing AccessKeyId"):
        run(LeastSquares(**remote.fields))
    assert time.monotonic() - start < 5


def test_an_object_store_that_does_not_answer_is_said_within_seconds(monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(
        BadData, match=rf"{s3}/A cannot be read: .*: nothing listens there \(\d+ times in .* s\). Check"
    ):
        describe(f"{s3}/A")
    assert time.monotonic() - start < 20


# The web


@pytest.fixture
def web(tmp_path):
    """The address at which the test's folder can be read."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_job_reads_over_http(problem, web):
    made = problem()
    job = LeastSquares(matrix=f"{web}/data/A", rhs=f"{web}/data/b")
    np.testing.assert_allclose(run(job).x, made.x, rtol=1e-12)


def test_a_chunk_that_is_missing_on_the_web_is_named(problem, web):
    made = problem()
    (Path(made.matrix) / "c/3/0").unlink()
    with pytest.raises(BadData, match=r"The chunk c/3/0 of http://.*/data/A is not in the store\. Zarr would"):
        run(LeastSquares(matrix=f"{web}/data/A", rhs=f"{web}/data/b"))


def test_a_result_cannot_be_written_to_the_web(problem, web):
    with pytest.raises(PlanRefused, match=r"The output http://.*/out cannot be "):
        run(LeastSquares(**problem().fields, output=f"{web}/out"))
