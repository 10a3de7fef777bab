"""Bad input, as a user meets it: `tallgrass run` says what is wrong in its own words, with its exit code, and
leaves nothing behind."""

import ctypes
import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, open_result, run
from pipelines.errors import BadData, PlanRefused, RunFailed
from pipelines.progress import PassStarted
from workers.clusters import Local, open_cluster

LIBC = ctypes.CDLL(None, use_errno=True)
ROOT_OVERRIDES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root pass the permissions of files."""


@pytest.fixture
def refused(command, tmp_path):
    """What `tallgrass run` says about a job, after seeing to it that it is a letter and that nothing is left."""

    def run(job, code, *words, **options):
        before = names(tmp_path)
        done = command("run", "job.yaml", "--quiet", *words, job={"output": "out/x.zarr"} | job, **options)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "did not foresee" not in done.stderr
        assert done.stdout == ""
        assert names(tmp_path) - before <= {"job.yaml", "out"}  # an empty folder is not half a result
        return done.stderr.strip()

    return run


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def with_entry(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


# The arrays


def test_a_matrix_that_is_not_there(problem, refused):
    said = refused(problem().fields | {"matrix": "data/C"}, 4)
    assert said.startswith("There is no Zarr array at data/C: nothing is there. Relative paths start from")


def test_a_group_in_place_of_a_matrix(problem, refused):
    made = problem()
    zarr.create_group(Path(made.matrix).parent)
    said = refused(made.fields | {"matrix": "data"}, 4)
    assert said.endswith("It is a group; its arrays are: A, b. Give the path of one of them.")


@pytest.mark.parametrize("shape", [(60,), (60, 3, 1)])
def test_a_matrix_that_is_not_two_dimensional(problem, save, refused, shape):
    said = refused(problem().fields | {"matrix": save("C", np.ones(shape))}, 4)
    assert f"has {len(shape)} dimensions, shape {shape}; it needs 2 dimensions (m, n). Reshape it" in said


def test_a_right_hand_side_of_three_dimensions(problem, save, refused):
    said = refused(problem().fields | {"rhs": save("c", np.ones((60, 1, 1)))}, 4)
    assert "has 3 dimensions, shape (60, 1, 1); it needs shape (m,) or (m, k)." in said


def test_a_right_hand_side_of_another_length(problem, save, refused):
    said = refused(problem().fields | {"rhs": save("c", np.ones(59))}, 4)
    assert said.startswith("The rhs has 59 rows and the matrix has 60 rows; they have to be the same.")
    assert "`rhs: {url: …, rows: [0, 59]}`" in said


def test_weights_of_another_length(problem, save, refused):
    said = refused(problem().fields | {"weights": save("w", np.ones(61))}, 4)
    assert said.startswith("The weights have 61 entries and the matrix has 60 rows; they have to be the same.")


def test_rows_that_the_matrix_does_not_have(problem, refused):
    made = problem()
    said = refused(made.fields | {"matrix": {"url": made.matrix, "rows": [10, 61]}}, 4)
    assert said == "Rows 10 to 61 of the matrix are asked for, but it has 60 rows. Correct `matrix.rows`."


def test_columns_that_the_matrix_does_not_have(problem, refused):
    made = problem()
    said = refused(made.fields | {"matrix": {"url": made.matrix, "columns": [0, 3]}}, 4)
    assert said.startswith("Column 3 of the matrix at ")
    assert said.endswith("is asked for, but it has 3 columns (0 to 2). Correct `matrix.columns`.")


@pytest.mark.parametrize("dtype", ["U3", "O"])
def test_a_matrix_of_text_or_objects(problem, refused, tmp_path, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these types are not in the Zarr specification yet
        kind = {"dtype": "U3"} if dtype == "U3" else {"dtype": "O", "zarr_format": 2, "filters": "auto"}
        if dtype == "O":
            write_objects(tmp_path / "C")
        else:
            zarr.create_array(tmp_path / "C", shape=(60, 3), chunks=(60, 3), **kind)
    said = refused(problem().fields | {"matrix": "C"}, 4)
    assert "which is not a number that can be computed with; needed is bool, an integer, or a real" in said


def write_objects(folder: Path) -> None:
    folder.mkdir()
    metadata = {"zarr_format": 2, "shape": [60, 3], "chunks": [60, 3], "dtype": "|O", "fill_value": None, "order": "C",
                "compressor": None, "filters": [{"id": "vlen-utf8"}]}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(metadata))


# The numbers in them


@pytest.mark.parametrize(
    "value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow), pytest.param(-np.inf, marks=pytest.mark.slow)]
)
def test_numbers_that_are_not_finite_in_a_tall_matrix(problem, save, refused, value):
    made = problem()
    bad = with_entry(with_entry(made.A, (17, 2), value), (41, 0), np.nan)
    said = refused(made.fields | {"matrix": save("C", bad, (10, 3))}, 4)
    assert said.startswith(
        "2 entries of the matrix and the right-hand side are NaN or infinite; the first is at row 17, column 2 of the "
        "matrix (counted from 0). Set `nan: omit_rows` in the job file to leave such rows out, or clean the data."
    )


def test_numbers_that_are_not_finite_in_a_wide_matrix(problem, save, refused):
    made = problem(m=4, n=60, rows=4)
    bad = with_entry(with_entry(made.A, (1, 33), np.nan), (3, 12), np.inf)
    said = refused(made.fields | {"matrix": save("C", bad, (4, 10))}, 4)
    assert said.startswith("2 entries of the matrix and the right-hand side are NaN or infinite; the first is at row")
    assert "row 3, column 12 of the matrix" in said or "row 1, column 33 of the matrix" in said


@pytest.mark.parametrize("m", [60, 4])
def test_numbers_that_are_not_finite_in_the_right_hand_side(problem, save, refused, m):
    made = problem(m=m, n=3 if m == 60 else 60, rows=4)
    said = refused(made.fields | {"rhs": save("c", with_entry(made.b, 2, np.nan))}, 4)
    assert said.startswith("1 entry of the matrix and the right-hand side")
    assert "the first is at row 2, column 0 of the rhs" in said


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
@pytest.mark.parametrize("m", [60, 4])
def test_weights_that_are_negative_or_not_finite(problem, save, m, value):
    made = problem(m=m, n=3 if m == 60 else 60, rows=4)
    weights = save("w", with_entry(np.ones(m), 3, value))
    with pytest.raises(BadData, match=rf"The weight of row 3 is {value}; weights have to be finite and not negative"):
        run(LeastSquares(**made.fields, weights=weights))


@pytest.mark.parametrize("m", [60, 4])
def test_rows_with_numbers_that_are_not_finite_are_left_out_when_the_job_says_so(problem, save, m):
    made = problem(m=m, n=3 if m == 60 else 60, rows=4)
    A, b, w = with_entry(made.A, (1, 2), np.nan), with_entry(made.b, 2, np.inf), with_entry(np.ones(m), 0, np.nan)
    fields = {"matrix": save("C", A, (4, 3)), "rhs": save("c", b), "weights": save("w", w)}
    result = run(LeastSquares(**fields, nan="omit_rows"))
    expected = np.linalg.lstsq(np.delete(A, [0, 1, 2], 0), np.delete(b, [0, 1, 2]))[0]
    np.testing.assert_allclose(result.x, expected, rtol=1e-10, atol=1e-14)
    assert (result.certificate.rows_used, result.certificate.rows_omitted) == (m - 3, 3)


@pytest.mark.parametrize("orientation", ["tall", "wide"])
@pytest.mark.parametrize("factor", [1e-300, 1e-90, 1e90, 1e153, 1e300])
@pytest.mark.parametrize("name", ["matrix", "rhs"])
def test_numbers_whose_squares_no_float_can_hold_get_no_certificate_but_a_letter(orientation, factor, name):
    random = np.random.default_rng(1)
    fields = {"matrix": random.standard_normal((60, 3) if orientation == "tall" else (3, 60))}
    fields["rhs"] = random.standard_normal(len(fields["matrix"]))
    with pytest.raises(BadData, match=r"squares .*(leave the range of 64-bit floats|overflow 64-bit floats)\. Divide"):
        run(LeastSquares(**fields | {name: fields[name] * factor}))


@pytest.mark.parametrize("orientation", ["tall", "wide"])
@pytest.mark.parametrize(("of_A", "of_b"), [(1e60, 1e-60), (1e-60, 1e60), (1e60, 1e60), (1e-60, 1e-60)])
def test_numbers_of_any_likely_size_are_solved_and_certified(orientation, of_A, of_b):
    random = np.random.default_rng(1)
    A = random.standard_normal((60, 3) if orientation == "tall" else (3, 60))
    b = random.standard_normal(len(A))
    result = run(LeastSquares(matrix=A * of_A, rhs=b * of_b))
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, b)[0] * (of_b / of_A), rtol=1e-12)
    assert result.certificate.backward_error < 1e-14
    assert result.certificate.correct_digits >= 12


# The chunks


@pytest.mark.parametrize("options", [{"compressors": [Crc32cCodec()]}, {"compressors": [ZstdCodec(checksum=True)]}])
def test_a_damaged_chunk(problem, refused, options):
    made = problem(**options)
    file = Path(made.matrix) / "c/3/0"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 16
    file.write_bytes(raw)
    said = refused(made.fields, 4)
    assert said.startswith(f"The chunk {file} is damaged: ")
    assert "Write this chunk again from its source, or restore it from a copy, and run the job again." in said


def test_a_missing_chunk(problem, refused):
    made = problem()
    (Path(made.matrix) / "c/3/0").unlink()
    said = refused(made.fields, 4)
    assert said.startswith(f"The chunk c/3/0 of {made.matrix} is not in the store (1 of its 6 chunks are missing).")


def test_a_missing_chunk_of_the_right_hand_side(problem, refused):
    made = problem()
    (Path(made.rhs) / "c/5").unlink()
    assert f"The chunk c/5 of {made.rhs} is not in the store" in refused(made.fields, 4)


def test_a_missing_chunk_counts_as_fill_values_when_the_job_says_so(problem):
    made = problem()
    (Path(made.matrix) / "c/3/0").unlink()
    made.A[30:40] = 0
    result = run(LeastSquares(**made.fields, missing_chunks="fill"))
    np.testing.assert_allclose(result.x, np.linalg.lstsq(made.A, made.b)[0], rtol=1e-10)


# Permissions


@pytest.fixture
def plain_user():
    """Options of subprocess.run for a child that is bound by the permissions of files, also where tests run as root."""

    def drop() -> None:
        for capability in ROOT_OVERRIDES:
            if LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno())

    if os.geteuid() != 0:
        return {}
    try:
        subprocess.run(["true"], preexec_fn=drop, check=True)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("this root may not give up its power over the permissions of files")
    return {"preexec_fn": drop}


@contextmanager
def mode(path: str | Path, bits: int):
    before = os.stat(path).st_mode
    os.chmod(path, bits)
    try:
        yield
    finally:
        os.chmod(path, before)


def test_errors_that_nobody_waited_for_are_not_printed():
    """Zarr looks for several names at once; when two of them fail, asyncio reports the second as it is collected."""
    code = (
        "import logging, pipelines.storage\n"
        "logging.getLogger('asyncio').error('Future exception was never retrieved')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_matrix_that_may_not_be_read(problem, refused, plain_user):
    made = problem()
    with mode(f"{made.matrix}/zarr.json", 0):
        said = refused(made.fields, 4, **plain_user)
    assert said.startswith(f"{made.matrix} cannot be read: permission denied for {made.matrix}/zarr.json.")


@pytest.mark.parametrize("compressor", [Crc32cCodec(), ZstdCodec()])
def test_a_chunk_that_may_not_be_read(problem, refused, plain_user, compressor):
    made = problem(compressors=[compressor])
    with mode(f"{made.matrix}/c/2/0", 0):
        said = refused(made.fields, 4, **plain_user)
    assert said.startswith(f"The chunk {made.matrix}/c/2/0 cannot be read: ")
    assert "Permission denied" in said


def test_an_output_that_may_not_be_written(problem, refused, plain_user, tmp_path):
    made = problem()
    (tmp_path / "locked").mkdir()
    with mode(tmp_path / "locked", 0o555):
        said = refused(made.fields | {"output": "locked/x"}, 3, **plain_user)
    assert said.startswith("The output locked/x cannot be written: permission denied for ")
    assert said.endswith("Choose another output, or give this user the right to write there.")


def test_an_output_below_a_file(problem, refused, tmp_path):
    (tmp_path / "notes").write_text("mine")
    said = refused(problem().fields | {"output": "notes/x"}, 3)
    assert said.startswith("The output notes/x cannot be written: ")
    assert said.endswith("Choose another output.")


# The output's place


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("data/A/x", "an output outside the input; data/A/x lies inside matrix"),
        ("data", "lies inside data and would be replaced"),
        ("data/../data/b", "an output outside the input; data/../data/b lies inside rhs"),
    ],
)
def test_an_output_inside_the_input_or_around_it(problem, refused, output, says):
    problem()
    assert says in refused({"matrix": "data/A", "rhs": "data/b", "output": output}, 2)


def test_an_output_that_exists_is_not_overwritten(problem, refused, tmp_path):
    made = problem()
    result = run(LeastSquares(**made.fields, output=f"{tmp_path}/old"))
    said = refused(made.fields | {"output": "old", "ridge": 5}, 3)
    assert said == (
        "The output old holds a result already. Nothing was changed; choose another output, or set `overwrite: true` "
        "in the job file."
    )
    np.testing.assert_array_equal(open_result(f"{tmp_path}/old").x, result.x)


def test_a_foreign_folder_is_never_replaced(problem, refused, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_text("me")
    said = refused(problem().fields | {"output": "photos", "overwrite": True}, 3)
    assert said.startswith("The output photos exists and is not a result of Tallgrass. Nothing was changed")
    assert (tmp_path / "photos/1.jpg").read_text() == "me"


def test_an_old_result_stays_until_the_new_one_is_complete(problem, tmp_path):
    made, seen = problem(), []
    fields = made.fields | {"output": f"{tmp_path}/out"}
    old = run(LeastSquares(**fields)).x
    job = LeastSquares(**fields, ridge=100, overwrite=True)
    new = run(job, listener=lambda event: seen.append(open_result(f"{tmp_path}/out").x)).x
    assert len(seen) >= 4
    np.testing.assert_array_equal(seen, [old] * len(seen))
    np.testing.assert_array_equal(open_result(f"{tmp_path}/out").x, new)
    assert names(tmp_path) & {"out", ".out"} == {"out"}


def test_a_failed_run_keeps_the_old_result(problem, refused, tmp_path):
    made = problem()
    fields = made.fields | {"output": f"{tmp_path}/old", "overwrite": True}
    old = run(LeastSquares(**fields)).x
    (Path(made.matrix) / "c/3/0").unlink()
    refused(fields, 4)
    np.testing.assert_array_equal(open_result(f"{tmp_path}/old").x, old)


# Space


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_result_that_will_not_fit_is_refused_before_anything_is_read(save, refused, small_disk):
    fields = {"matrix": save("A", np.ones((2, 300_000)), (2, 50_000)), "rhs": save("b", np.ones(2))}
    (Path(fields["matrix"]) / "c/0/5").unlink()  # reading would find this
    said = refused(fields | {"output": "disk/out"}, 3)
    assert said.startswith("The result needs 3.3 MiB and ")
    assert "are free at " in said
    assert os.listdir(small_disk) == []


def fill(disk: Path) -> None:
    """Another program takes the rest of the disk."""
    with (disk / "other").open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("shape", [(60_000, 2), (2, 60_000)])
def test_a_disk_that_fills_up_during_the_run_leaves_nothing_half_written(save, small_disk, shape):
    A = np.random.default_rng(3).standard_normal(shape)
    fields = {"matrix": save("A", A, (min(shape[0], 9000), min(shape[1], 9000))), "rhs": save("b", A[:, 0])}

    def listener(event) -> None:
        if isinstance(event, PassStarted) and event.number == 1:
            fill(small_disk)

    with pytest.raises(RunFailed, match=r"No space is left for the output .*/out: 0 B are free at .*/disk.* Free some"):
        run(LeastSquares(**fields, output=f"{small_disk}/out"), listener=listener)
    assert os.listdir(small_disk) == ["other"]


def test_a_disk_that_fills_up_under_the_workers_leaves_no_result_and_the_run_can_be_gone_on_with(save, small_disk):
    A = np.random.default_rng(3).standard_normal((2, 60_000))
    fields = {"matrix": save("A", A, (2, 9000)), "rhs": save("b", A[:, 0]), "output": f"{small_disk}/out"}

    def listener(event) -> None:
        if isinstance(event, PassStarted) and event.number == 2:
            fill(small_disk)

    with (
        open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client,
        pytest.raises(RunFailed, match="No space is left for the output"),
    ):
        run(LeastSquares(**fields), client=client, listener=listener)
    assert not (small_disk / "out").exists()
    (small_disk / "other").unlink()
    result = run(LeastSquares(**fields))
    assert result.summary["resumed_spans"] > 0
    np.testing.assert_allclose(A @ result.x, A[:, 0], rtol=1e-9)
    assert os.listdir(small_disk) == ["out"]


def test_a_place_that_is_not_a_disk_is_said(problem):
    with pytest.raises(PlanRefused, match=r"The output /proc/out cannot be written: "):
        run(LeastSquares(**problem().fields, output="/proc/out"))
