"""The result: a Zarr group that others can open, that reads back as it was, and that appears whole or not at all."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipelines import LeastSquares, open_result, run
from pipelines.errors import BadData, PlanRefused
from pipelines.result import read_summary
from pipelines.storage import Staging, Writer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def out(tmp_path):
    return f"{tmp_path}/out"


def job(out, k=None, **fields):
    random = np.random.default_rng(4)
    A = random.standard_normal((50, 4))
    b = random.standard_normal(50 if k is None else (50, k))
    return LeastSquares(**{"matrix": A, "rhs": b, "output": out} | fields)


def beside(out):
    """What lies beside a result, hidden or not."""
    return sorted(name for name in os.listdir(Path(out).parent) if name != Path(out).name)


# What it holds


def test_others_can_open_the_result_as_a_zarr_group_with_named_axes(out):
    run(job(out, k=2, arrays=["R", "singular_values"]))
    group = zarr.open_group(out, mode="r")
    names = {name: (array.shape, array.metadata.dimension_names) for name, array in group.arrays()}
    assert names["x"] == ((4, 2), ("column", "rhs"))
    assert names["R"] == ((4, 4), ("row_of_R", "column"))
    assert names["singular_values"] == ((4,), ("value",))
    assert {names[name] for name in ("residual_norm", "backward_error", "forward_error_bound")} == {((2,), ("rhs",))}


def test_axes_of_one_name_have_one_length_as_xarray_needs_it(out):
    run(job(out, k=3, arrays=["R", "singular_values"]))
    lengths = {}
    for _, array in zarr.open_group(out, mode="r").arrays():
        for name, length in zip(array.metadata.dimension_names, array.shape, strict=True):
            assert lengths.setdefault(name, length) == length


def test_a_result_opens_as_it_was_returned(out):
    made = run(job(out, k=2, arrays=["R", "singular_values"]))
    found = open_result(out)
    for name, array in made.arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert found.certificate == made.certificate
    assert found.summary == json.loads(json.dumps(made.summary))


@pytest.mark.parametrize(("k", "shape", "norms"), [(None, (4,), ()), (1, (4, 1), (1,)), (3, (4, 3), (3,))])
def test_a_vector_gives_vectors_and_a_matrix_gives_matrices(out, k, shape, norms):
    run(job(out, k=k))
    found = open_result(out)
    assert (found.x.shape, found.residual_norm.shape) == (shape, norms)


def test_the_answer_has_the_type_that_the_job_asks_for(out):
    run(job(out, dtype="float32"))
    assert open_result(out).x.dtype == np.float32


def test_the_summary_says_job_plan_versions_input_and_certificate(out, problem):
    made = problem()
    run(LeastSquares(**made.fields, output=out, ridge=0.5))
    summary = read_summary(out)
    assert (summary["schema"], summary["status"]) == ("result/1", "complete")
    assert summary["job"]["ridge"] == 0.5
    assert summary["plan"]["shape"] == [60, 3, 1]
    assert set(summary["versions"]) >= {"python", "tallgrass", "numpy", "scipy", "zarr", "dask"}
    assert summary["input"]["matrix"]["url"] == made.matrix
    assert summary["certificate"]["statement"].startswith("These coefficients are the exact")


def test_the_fingerprint_changes_with_the_input_and_only_then(out, problem):
    made = problem()

    def fingerprints():
        return {name: said["fingerprint"] for name, said in run(LeastSquares(**made.fields)).summary["input"].items()}

    before = fingerprints()
    assert fingerprints() == before
    zarr.open_array(made.rhs)[17] = 5
    after = fingerprints()
    assert after["matrix"] == before["matrix"]
    assert after["rhs"] != before["rhs"]


def test_names_of_columns_go_with_the_answer(out, save):
    A = save("A", np.random.default_rng(4).standard_normal((9, 3)), attributes={"columns": ["a", "b", "c"]})
    run(LeastSquares(matrix={"url": A, "columns": [2, 0]}, rhs=save("b", np.ones(9)), output=out))
    assert zarr.open_array(f"{out}/x").attrs["columns"] == ["c", "a"]


def test_an_array_that_the_result_does_not_hold_is_a_key_error_that_lists_those_it_holds(out):
    made = run(job(out))
    for result in (made, open_result(out)):
        with pytest.raises(KeyError, match=r"R; this result holds backward_error, .*residual_norm, .*x"):
            result["R"]


def test_what_is_no_result_is_said(tmp_path, save):
    with pytest.raises(BadData, match=r"There is no result at .*/none\. Check the path"):
        open_result(f"{tmp_path}/none")
    with pytest.raises(BadData, match=r"What is at .*/A is not a result of Tallgrass"):
        open_result(save("A", np.ones(3)))


# Whole or not at all: a script that does one job again and again, and comes to grief at the n-th change of a file

SCRIPT = """
import os, sys, _thread
import numpy as np
import pipelines.execute
from pipelines import LeastSquares, open_result, run
from pipelines.errors import TallgrassError
from pipelines.storage import Staging, Writer, clean, folders

folder, how, exchange = sys.argv[1:]
out, A = folder + "/out", np.vstack([np.eye(2), np.eye(2)])
CHANGES = ["open", "os.rename", "os.mkdir"]  # a disk that is full lets one remove what is there
if how != "full":
    CHANGES += ["os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlopen"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
if exchange == "no":
    folders._exchanged = lambda new, final: False  # a file system that cannot

def state():
    '''The number that is stored; None when there is no result.'''
    if not os.path.exists(out):
        return None
    found = open_result(out)
    assert found.x[0] == found.x[1] and found["residual_norm"] < 1e-9 and found.certificate.rank == 2
    return round(found.x[0])

def solve(number):
    return run(LeastSquares(matrix=A, rhs=np.full(4, float(number)), output=out, overwrite=True, verify=False))

def grief(nth):
    left = [nth]
    def hook(event, args):
        if event in CHANGES and (event != "open" or (args[2] or 0) & WRITES):
            left[0] -= 1
            if left[0] == 0:
                if how == "kill":
                    os._exit(9)
                if how == "full":
                    raise OSError(28, "No space left on device")
                _thread.interrupt_main()
    sys.addaudithook(hook)
    return left

def attempt(nth):
    '''In a process of its own: what the one before has left, then a job that breaks off. Gives 0 when it does not.'''
    before = state()
    if how != "kill" or exchange == "yes":
        assert before is not None or nth == 1
    Staging(out, Writer("100c100c100c"), overwrite=True).discard()  # sweeps
    before = state()
    assert before is not None or nth == 1
    assert nth == 1 or before in (nth - 1, int(open(folder + "/last").read()))
    if nth == 1:
        solve(0)
    open(folder + "/last", "w").write(str(state()))
    kept = {".out.checkpoints", ".out.partial-kept", ".out.partial-kept.lock"}
    assert set(os.listdir(folder)) - kept == {"last", "out"}, os.listdir(folder)
    if nth % 2:  # the others go on from what is there
        clean(out)
        assert sorted(os.listdir(folder)) == ["last", "out"], os.listdir(folder)
    left = grief(nth)
    try:
        solve(nth)
    except (TallgrassError, KeyboardInterrupt) as error:
        assert how == "stop" or "No space is left" in str(error), repr(error)
    return 9 if left[0] <= 0 else 0

for nth in range(1, 1000):
    child = os.fork()
    if child == 0:
        try:
            os._exit(attempt(nth))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 9:
        sys.exit(f"attempt {nth} ended with {code}" if code else None) if code else print(nth)
        break
"""


def break_off(folder, how, exchange="yes"):
    """How many moments there are to break off at, after finding a whole result after each."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    typed = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), str(folder), how, exchange]
    done = subprocess.run(typed, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_a_crash_at_any_moment_leaves_the_old_result_or_the_new_one_and_never_half_of_one(tmp_path):
    assert break_off(tmp_path, "kill") > 30


@pytest.mark.slow
def test_a_crash_where_names_cannot_be_exchanged_is_repaired_by_the_next_run(tmp_path):
    assert break_off(tmp_path, "kill", exchange="no") > 30


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "stop"])
def test_a_full_disk_or_an_interrupt_at_any_moment_leaves_the_old_result_or_the_new_one(tmp_path, how):
    assert break_off(tmp_path, how) > 25


# Two at a time


def test_what_a_killed_run_has_left_is_removed_by_the_next_one(out):
    code = f"""import os
from pipelines.storage import Staging, Writer
Staging({out!r}, Writer("dead0000dead"), overwrite=False)
os._exit(9)"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert beside(out) == [".out.partial-dead0000dead", ".out.partial-dead0000dead.lock"]
    run(job(out))
    assert beside(out) == []


def test_a_folder_that_a_late_write_brought_back_is_removed_by_the_next_run(out):
    Path(f"{out[:-3]}.out.partial-1a7e1a7e1a7e/x").mkdir(parents=True)
    run(job(out))
    assert beside(out) == []


def written_by(name):
    return {"schema": "result/1", "certificate": {"statement": name}}


def test_a_run_that_goes_on_is_left_alone_and_the_first_to_finish_wins(out):
    first, second = (Staging(out, Writer(run), overwrite=False) for run in ("111111111111", "222222222222"))
    for staging in (first, second):
        staging.put("x", np.ones(3), ("column",))
    second.commit({"tallgrass": written_by("second")})
    with pytest.raises(PlanRefused, match="holds a result already"):
        first.commit({"tallgrass": written_by("first")})
    first.discard()
    assert read_summary(out) == written_by("second")
    assert beside(out) == []


def test_an_output_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far/result")
    for k in (1, 2):
        run(job(f"{tmp_path}/link", k=k, overwrite=True))
        assert (tmp_path / "link").is_symlink()
        assert open_result(f"{tmp_path}/far/result").x.shape == (4, k)


def test_no_descriptor_stays_open(out):
    run(job(out))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run(job(out, overwrite=True))
    assert len(os.listdir("/proc/self/fd")) <= before
