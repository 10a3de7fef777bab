"""The command where its surroundings fail it: streams that are closed or full, signals, results that are none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipelines import LeastSquares, run
from pipelines.errors import BadData, PlanRefused
from tests.conftest import environment, written


def slow(delay):
    """One of several moments, of which one is enough for every day."""
    return pytest.param(delay, marks=pytest.mark.slow)


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full and /proc")


def typed(folder, line):
    """A line of shell, in which $T is the command."""
    line = line.replace("$T", f"{sys.executable} -m workers.cli")
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment(), timeout=90
    )


@pytest.fixture
def job(problem, tmp_path):
    written(tmp_path, problem(m=200, n=3, rows=50).fields | {"output": "out/r.zarr"})
    return tmp_path


def was_written(folder):
    return (folder / "out" / "r.zarr" / "zarr.json").exists()


# Streams


@LINUX
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2> >(true)"])
@pytest.mark.slow
def test_a_run_needs_no_stderr(job, stderr):
    done = typed(job, f"$T run job.yaml {stderr}")
    assert done.returncode == 0
    assert "exact least-squares solution" in done.stdout
    assert was_written(job)


@LINUX
def test_an_error_keeps_its_exit_code_without_a_stderr(job):
    assert typed(job, "$T show nothing 2>/dev/full").returncode == 4


@LINUX
@pytest.mark.parametrize("form", ["", "--json"])
def test_a_full_stdout_is_one_letter(job, form):
    done = typed(job, f"$T check job.yaml {form} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "The answer could not be printed: No space left on device. Send stdout to another place and run it again; a "
        "result that was stored is there.\n"
    )


def test_a_reader_that_goes_away_is_no_failure(job):
    done = typed(job, "set -o pipefail; $T run job.yaml -q --json | true")
    assert (done.returncode, done.stderr) == (0, "")
    assert was_written(job)


# Signals


def started(folder, *words):
    command = [sys.executable, "-m", "workers.cli", "run", "job.yaml", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True, **options)


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(child) for child in found]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def fork_server_of(pid):
    for child in children(pid):
        if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


@LINUX
@pytest.mark.parametrize("delay", [slow(0.1), 0.5, slow(0.9)])
@pytest.mark.parametrize(("number", "code", "letter"), [
    (signal.SIGINT, 130, "Interrupted. No result was written."),
    (signal.SIGTERM, 143, "Stopped by SIGTERM. No result was written."),
    (signal.SIGHUP, 129, "Stopped by SIGHUP. No result was written."),
])  # fmt: skip
def test_a_run_that_is_stopped_while_its_workers_start_ends_in_one_line(job, number, code, letter, delay):
    process = started(job, "-q")
    wait_for(lambda: fork_server_of(process.pid))
    time.sleep(delay)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("it was done already")
    assert (process.returncode, stderr.strip()) == (code, letter)
    assert not list(job.glob("out/.*"))


@LINUX
@pytest.mark.parametrize("delay", [slow(0.0), slow(0.2), slow(0.35), 0.4, slow(0.45), slow(0.5)])
def test_a_run_survives_the_end_of_the_server_that_forks_its_workers(job, delay):
    """The kernel kills what takes memory; this once made the run wait for ever."""
    process = started(job, "-q")
    server = wait_for(lambda: fork_server_of(process.pid))
    time.sleep(delay)
    if process.poll() is None:
        os.kill(server, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


# Results that are none


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.slow
def test_a_group_that_only_holds_a_result_is_not_overwritten(job):
    """Its metadata, when consolidated, contains that of its members."""
    assert typed(job, "$T run job.yaml -q --set output=project.zarr/fit").returncode == 0
    zarr.create_array(job / "project.zarr" / "raw", data=np.arange(5.0))
    zarr.open_group(job / "project.zarr", mode="a")
    zarr.consolidate_metadata(job / "project.zarr")
    done = typed(job, "$T run job.yaml -q --set output=project.zarr --set overwrite=true")
    assert done.returncode == 3
    assert "exists and is not a result of Tallgrass" in done.stderr
    assert zarr.open_array(job / "project.zarr" / "raw")[...].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", [
    lambda summary: 5,
    lambda summary: {},
    lambda summary: summary | {"certificate": "x"},
    lambda summary: summary | {"certificate": {"statement": 5}},
    lambda summary: {name: value for name, value in summary.items() if name != "certificate"},
])  # fmt: skip
@pytest.mark.slow
def test_show_says_that_an_edited_result_is_none(job, change):
    assert typed(job, "$T run job.yaml -q").returncode == 0
    edit(job, change)
    done = typed(job, "$T show out/r.zarr")
    assert (done.returncode, done.stdout) == (4, "")
    assert "is not a result of Tallgrass" in done.stderr


def edit(folder, change):
    path = folder / "out" / "r.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["tallgrass"] = change(root["attributes"]["tallgrass"])
    path.write_text(json.dumps(root))


@pytest.mark.slow
def test_show_names_the_version_that_it_cannot_read(job):
    assert typed(job, "$T run job.yaml -q").returncode == 0
    edit(job, lambda summary: summary | {"schema": "result/99"})
    assert (
        "is of the form result/99, and this version of Tallgrass reads result/1"
        in typed(job, "$T show out/r.zarr").stderr
    )


@pytest.mark.slow
def test_show_names_the_place_that_it_was_given(job):
    done = typed(job, "$T run job.yaml -q && mv out/r.zarr out/moved.zarr && $T show out/moved.zarr")
    assert done.stdout.count('open_result("out/moved.zarr").x') == 1


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_a_letter():
    from pipelines.result import read_summary

    with pytest.raises(BadData, match=r"http://127\.0\.0\.1:1/x cannot be read"):
        read_summary("http://127.0.0.1:1/x")


# What a user can cause


@pytest.mark.parametrize(("words", "code", "message"), [
    ("plan job.yaml --set 'method={name: tsqr, span_seconds: 0}'", 2, "method.span_seconds: found 0"),
    ("check job.yaml --set output=/", 2, "needed an output with a name"),
    ("check job.yaml --set 'output=\"a\\0b\"'", 2, "needed a path without a NUL character"),
    ("plan job.yaml --memory ''", 2, "--memory:"),
    ("plan job.yaml --set dtype=float32 --set matrix=complex", 3, "`dtype: float32` has no room for imaginary parts"),
    ("run job.yaml --set weights=complex_weights", 4, "The weights are complex; they have to be real"),
])  # fmt: skip
def test_what_was_not_foreseen_once_is_a_letter(job, words, code, message):
    A = np.asarray(zarr.open_array(job / "data" / "A")[...])
    zarr.create_array(job / "complex", data=A * (1 + 2j))
    zarr.create_array(job / "complex_weights", data=np.full(200, 1 + 5j))
    done = typed(job, f"$T {words}")
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_complex_answer_is_never_cast_to_real_numbers():
    A = np.eye(3) * 1j
    for dtype in ("float32", "float64"):
        with pytest.raises(PlanRefused, match="The answer is complex"):
            run(LeastSquares(matrix=A, rhs=np.ones(3), dtype=dtype))
    assert run(LeastSquares(matrix=A, rhs=np.ones(3), dtype="complex64")).x.dtype == np.complex64


@pytest.mark.parametrize("shape", [(20, 3), (3, 20)])
def test_an_answer_to_no_rows_at_all_is_not_certified(shape):
    with pytest.raises(BadData, match=rf"All {shape[0]} rows hold NaN or infinity, so `nan: omit_rows` leaves nothing"):
        run(LeastSquares(matrix=np.full(shape, np.nan), rhs=np.ones(shape[0]), nan="omit_rows"))


def test_rows_whose_weight_is_infinite_are_left_out_like_others():
    rng = np.random.default_rng(0)
    A, b, w = rng.standard_normal((30, 3)), rng.standard_normal(30), np.ones(30)
    w[[4, 7]] = np.inf, np.nan
    result = run(LeastSquares(matrix=A, rhs=b, weights=w, nan="omit_rows"))
    keep = np.isfinite(w)
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A[keep], b[keep])[0], atol=1e-14)
    assert result.certificate.rows_omitted == 2


def test_no_columns_at_all_do_what_numpy_does(save):
    A = save("A", np.ones((6, 3)), (2, 3))
    result = run(LeastSquares(matrix={"url": A, "columns": []}, rhs=np.arange(6.0)))
    assert result.x.shape == (0,)
    assert result.residual_norm == pytest.approx(np.linalg.norm(np.arange(6.0)))


def test_a_tilde_is_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert LeastSquares(matrix="~/A", rhs="~/b", output="~/r").output == "/somewhere/r"


def test_a_columns_attribute_that_lists_no_names_is_left_alone(save):
    A = save("A", np.eye(3), (3, 3))
    zarr.open_array(A, mode="a").attrs["columns"] = 5
    assert run(LeastSquares(matrix=A, rhs=np.ones(3))).x.tolist() == [1, 1, 1]


def test_an_overflow_is_not_given_a_number_that_was_not_measured():
    with pytest.raises(BadData, match=r"The norm of the matrix is 1e\+154 or more"):
        run(LeastSquares(matrix=np.eye(3) * 1e200, rhs=np.ones(3)))
