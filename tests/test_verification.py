"""A stored result held against its input again: what is right still holds, and what was spoilt is found."""

import json

import numpy as np
import pytest
import zarr

from pipelines import open_result, run, verify
from pipelines.errors import BadData, PlanRefused
from pipelines.load import job_of
from tests.conftest import stored

M, N = 900, 12
KINDS = {
    "least_squares": {"rhs": "b"},
    "least_squares, weighted, with a ridge": {"rhs": "b", "weights": "w", "ridge": 3.0},
    "least_squares, deficient": {"matrix": "deficient", "rhs": "b"},
    "least_squares, in few digits": {"rhs": "b", "dtype": "float32"},
    "least_squares, a vector": {"rhs": "w"},
    "least_squares, rows left out": {"matrix": "gaps", "rhs": "b", "nan": "omit_rows"},
    "least_squares, wide": {"matrix": "wide", "rhs": "wide_b"},
    "qr": {"form": "explicit"},
    "qr, pivoted": {"form": "explicit", "pivoting": True},
    "qr, rows left out": {"matrix": "gaps", "form": "explicit", "nan": "omit_rows"},
    "svd": {"vectors": "both"},
    "svd, wide": {"matrix": "wide", "vectors": "both"},
    "svd, in few digits": {"vectors": "both", "dtype": "float32"},
    "svd, randomized": {"vectors": "both", "values": 5, "method": {"name": "block_krylov"}},
    "low_rank": {"rank": 4},
    "low_rank, wide": {"matrix": "wide", "rank": 4},
    "pseudoinverse": {"form": "explicit"},
    "pseudoinverse, wide": {"matrix": "wide", "form": "explicit"},
    "pseudoinverse, deficient": {"matrix": "deficient", "form": "explicit"},
    "pseudoinverse, of lower rank": {"form": "explicit", "rank": 5},
    "pseudoinverse, with a ridge": {"form": "explicit", "ridge": 2.0},
}
LARGE = {"least_squares": "x", "qr": "Q", "svd": "U", "svd, wide": "Vt", "low_rank": "L", "pseudoinverse": "pinv"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Matrices of every shape that matters."""
    folder, random = tmp_path_factory.mktemp("verification"), np.random.default_rng(11)
    A = random.standard_normal((M, N)) @ np.diag(np.logspace(0, -4, N))
    gaps, deficient = A.copy(), A.copy()
    gaps[[5, 300, 899], 2] = np.nan
    deficient[:, 7] = deficient[:, 1] - deficient[:, 3]
    arrays = {"A": A, "b": random.standard_normal((M, 3)), "w": random.uniform(0.5, 2, M), "gaps": gaps,
              "deficient": deficient, "wide_b": random.standard_normal((N, 2))}  # fmt: skip
    for name, array in arrays.items():
        stored(folder / name, array, (100, *array.shape[1:]))
    stored(folder / "wide", np.ascontiguousarray(A.T), (N, 100))
    return folder


def job(data, name, output, **more):
    fields = {"matrix": "A"} | KINDS[name] | more
    paths = {key: str(data / fields[key]) for key in ("matrix", "rhs", "weights") if key in fields}
    return job_of({"kind": name.partition(",")[0], "output": str(output)} | fields | paths)


@pytest.mark.parametrize("name", KINDS)
def test_a_result_that_nobody_touched_holds_with_the_numbers_that_it_has(data, tmp_path, name):
    made = run(job(data, name, tmp_path / "out"))
    found = verify(f"{tmp_path}/out")
    assert found.holds
    assert found.changed == ()
    assert found.rank == (made.certificate.rank,) * 2
    assert len(found.numbers) > 0
    for number in found.numbers:
        if number.stored is None:  # an array that the certificate has no number for
            assert number.now <= number.most <= 1e-6
            continue
        assert number.now <= 10 * number.stored + 1e-13
        assert number.now >= number.stored / 10 - 1e-13


def spoil(url, name, factor, place=0.3):
    """One chunk of an array is multiplied by a factor."""
    array = zarr.open_array(f"{url}/{name}", mode="r+")
    axis = int(np.argmax(array.shape))
    start = int(place * array.shape[axis]) // array.chunks[axis] * array.chunks[axis]
    part = [slice(None)] * array.ndim
    part[axis] = slice(start, start + array.chunks[axis])
    array[tuple(part)] = array[tuple(part)] * factor


@pytest.mark.parametrize("factor", [1 + 1e-9, 1.01, -1.0, 0.0, np.nan])
@pytest.mark.parametrize(("name", "array"), LARGE.items())
def test_a_result_that_was_spoilt_does_not_hold(data, tmp_path, name, array, factor):
    run(job(data, name, tmp_path / "out"))
    spoil(tmp_path / "out", array, factor)
    assert verify(f"{tmp_path}/out").holds is False


@pytest.mark.parametrize(("name", "array"), [("qr", "R"), ("svd", "s"), ("svd", "Vt")])
def test_a_small_factor_that_was_spoilt_does_not_hold(data, tmp_path, name, array):
    run(job(data, name, tmp_path / "out"))
    spoil(tmp_path / "out", array, 1 + 1e-6)
    assert not verify(f"{tmp_path}/out").holds


def test_a_factor_of_an_approximation_that_was_spoilt_does_not_hold(data, tmp_path):
    run(job(data, "low_rank", tmp_path / "out"))
    spoil(tmp_path / "out", "R", 1.01)
    assert not verify(f"{tmp_path}/out").holds


def test_a_wide_solution_that_is_not_the_shortest_does_not_hold(data, tmp_path):
    run(job(data, "least_squares, wide", tmp_path / "out"))
    array = zarr.open_array(f"{tmp_path}/out/x", mode="r+")
    _, _, Vh = np.linalg.svd(zarr.open_array(str(data / "wide"))[...])
    array[...] = array[...] + 1e-6 * np.linalg.norm(array[...]) * Vh[-1][:, None]  # A x stays as it is
    found = verify(f"{tmp_path}/out")
    assert not found.holds
    assert {number.name for number in found.numbers if not number.holds} == {"backward_error", "forward_error_bound"}


def wide_of(condition, seed=0):
    random = np.random.default_rng(seed)
    U, _, Vh = np.linalg.svd(random.standard_normal((8, 300)), full_matrices=False)
    return (U * np.geomspace(1, 1 / condition, 8)) @ Vh, random


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e10, 1e13])
def test_a_wide_solution_holds_at_any_condition_number_and_zeros_do_not(tmp_path, condition):
    A, random = wide_of(condition)
    fields = {"matrix": stored(tmp_path / "A", A, (8, 50)), "output": f"{tmp_path}/out",
              "rhs": stored(tmp_path / "b", A @ random.standard_normal((300, 2)))}  # fmt: skip
    run(job_of({"kind": "least_squares"} | fields))
    assert verify(f"{tmp_path}/out").holds
    array = zarr.open_array(f"{tmp_path}/out/x", mode="r+", config={"write_empty_chunks": True})
    array[:, 1] = 0
    assert not verify(f"{tmp_path}/out").holds
    array[...] = 0
    assert not verify(f"{tmp_path}/out").holds


def test_a_wide_deficient_solution_holds_and_a_longer_one_does_not(tmp_path):
    A, random = wide_of(1e3)
    A[5] = A[0] - 2 * A[3]
    fields = {"matrix": stored(tmp_path / "A", A, (8, 50)), "output": f"{tmp_path}/out",
              "rhs": stored(tmp_path / "b", random.standard_normal(8))}  # fmt: skip
    assert run(job_of({"kind": "least_squares"} | fields)).certificate.rank == 7
    assert verify(f"{tmp_path}/out").holds
    array = zarr.open_array(f"{tmp_path}/out/x", mode="r+")
    array[...] = array[...] * 1.0 + 1e-9 * np.abs(array[...]).max() * random.standard_normal(300)
    assert not verify(f"{tmp_path}/out").holds


@pytest.mark.parametrize("shape", [(20, 4), (4, 20)])
def test_the_solution_of_nothing_is_nothing(tmp_path, shape):
    fields = {"matrix": stored(tmp_path / "A", np.zeros(shape), shape), "output": f"{tmp_path}/out",
              "rhs": stored(tmp_path / "b", np.ones(shape[0]))}  # fmt: skip
    run(job_of({"kind": "least_squares"} | fields))
    assert verify(f"{tmp_path}/out").holds
    zarr.open_array(f"{tmp_path}/out/x", mode="r+")[...] = 5.0
    assert not verify(f"{tmp_path}/out").holds


def test_a_deficient_solution_that_is_not_the_shortest_does_not_hold(data, tmp_path):
    run(job(data, "least_squares, deficient", tmp_path / "out"))
    array = zarr.open_array(f"{tmp_path}/out/x", mode="r+")
    null = np.zeros(N)
    null[[1, 3, 7]] = 1.0, -1.0, -1.0  # A null = 0
    array[...] = array[...] + 1e-3 * np.abs(array[...]).max() * null[:, None]
    assert not verify(f"{tmp_path}/out").holds


@pytest.mark.parametrize("condition", [1e10, 1e13])
def test_a_bound_of_infinity_holds_when_it_was_one(tmp_path, condition):
    U, _, Vh = np.linalg.svd(np.random.default_rng(2).standard_normal((300, 6)), full_matrices=False)
    fields = {"matrix": stored(tmp_path / "A", (U * np.geomspace(1, 1 / condition, 6)) @ Vh, (50, 6)),
              "rhs": stored(tmp_path / "b", np.ones(300)), "output": f"{tmp_path}/out", "dtype": "float32"}  # fmt: skip
    run(job_of({"kind": "least_squares"} | fields))
    assert verify(f"{tmp_path}/out").holds


@pytest.mark.parametrize("seed", range(8))
def test_truncated_pseudoinverses_hold(tmp_path, seed):
    random = np.random.default_rng(seed)
    A = random.standard_normal((300, 4)) @ random.standard_normal((4, 9))
    output = f"{tmp_path}/out"
    run(job_of({"kind": "pseudoinverse", "form": "explicit", "matrix": stored(tmp_path / "A", A, (50, 9)),
                "output": output}))  # fmt: skip
    found = verify(output)
    assert found.holds
    assert all(number.now < 1e-12 for number in found.numbers)
    spoil(output, "pinv", 1 + 1e-9)
    assert not verify(output).holds


@pytest.mark.parametrize("shape", [(20_000, 6), (3000, 64), (6, 20_000)])
def test_factors_in_few_digits_hold_with_the_digits_that_they_have(tmp_path, shape):
    A = np.random.default_rng(3).standard_normal(shape)
    output = f"{tmp_path}/out"
    fields = {"matrix": stored(tmp_path / "A", A, (1000, shape[1]) if shape[0] > 6 else (6, 1000)), "output": output}
    made = run(job_of({"kind": "svd", "vectors": "both", "dtype": "float32"} | fields))
    assert verify(output).holds
    truth = [np.linalg.norm(Q.T @ Q - np.eye(Q.shape[1]))
             for Q in (made["U"].astype(float), made["Vt"].astype(float).T)]  # fmt: skip
    np.testing.assert_allclose(made.certificate.orthogonality, max(truth), rtol=1e-6)


@pytest.mark.parametrize(("name", "array", "place"), [
    ("qr, rows left out", "Q", (5, slice(None))),
    ("pseudoinverse, rows left out", "pinv", (slice(None), 5)),
])  # fmt: skip
def test_what_stands_where_rows_were_left_out_has_to_be_zero(data, tmp_path, monkeypatch, name, array, place):
    more = {"matrix": "gaps", "nan": "omit_rows", "form": "explicit"}
    monkeypatch.setitem(KINDS, "pseudoinverse, rows left out", more)
    run(job(data, name, tmp_path / "out"))
    assert verify(f"{tmp_path}/out").holds
    for value in (7.0, np.nan):
        zarr.open_array(f"{tmp_path}/out/{array}", mode="r+")[place] = value
        assert not verify(f"{tmp_path}/out").holds


def test_a_ridge_inverse_with_more_than_it_needs_does_not_hold(tmp_path):
    A = np.random.default_rng(3).standard_normal((60, 4))
    A[5] = 0
    output = f"{tmp_path}/out"
    run(job_of({"kind": "pseudoinverse", "form": "explicit", "ridge": 1.0, "output": output,
                "matrix": stored(tmp_path / "A", A, (20, 4))}))  # fmt: skip
    assert verify(output).holds
    zarr.open_array(f"{output}/pinv", mode="r+")[:, 5] = 7.0  # X A stays as it is
    assert not verify(output).holds


def test_where_nothing_was_measured_there_is_nothing_to_hold(data, tmp_path, command):
    run(job(data, "qr", tmp_path / "out", verify=False))
    found = verify(f"{tmp_path}/out")
    assert found.holds is None
    assert {number.name for number in found.numbers if number.holds is None} == {
        "reconstruction_error",
        "orthogonality",
    }
    assert all(number.now < 1e-13 for number in found.numbers)
    done = command("verify", "out")
    assert done.returncode == 0
    assert done.stdout.startswith("The job measured nothing (`verify: false`); these are the numbers now.")


def test_arrays_that_live_elsewhere_now_are_given_with_a_job(tmp_path):
    import dask.array

    A, b = np.random.default_rng(3).standard_normal((60, 4)), np.ones(60)
    made = job_of({"kind": "least_squares", "matrix": A, "rhs": b, "output": f"{tmp_path}/out"})
    run(made)
    lazy = {"matrix": dask.array.from_array(A, (20, 2)), "rhs": dask.array.from_array(b, 7)}
    for again in (made, made.model_copy(update=lazy)):
        assert verify(f"{tmp_path}/out", job=again).holds


def test_an_input_that_was_written_since_is_told_and_measured(data, tmp_path):
    A = np.random.default_rng(1).standard_normal((200, 3))
    fields = {"kind": "least_squares", "matrix": stored(tmp_path / "A", A, (50, 3)), "output": f"{tmp_path}/out",
              "rhs": stored(tmp_path / "b", A @ np.ones(3) + 1, (50,))}  # fmt: skip
    run(job_of(fields))
    zarr.open_array(fields["matrix"], mode="r+")[...] = A
    found = verify(f"{tmp_path}/out")
    assert (found.holds, found.changed) == (True, ("matrix",))
    zarr.open_array(fields["matrix"], mode="r+")[:50] = 2 * A[:50]
    found = verify(f"{tmp_path}/out")
    assert (found.holds, found.changed) == (False, ("matrix",))


def test_what_cannot_be_measured_is_refused_with_what_to_do(data, tmp_path):
    random = np.random.default_rng(0)
    run(job_of({"kind": "least_squares", "matrix": random.standard_normal((9, 2)), "rhs": np.ones(9),
                "output": f"{tmp_path}/memory"}))  # fmt: skip
    with pytest.raises(BadData, match=r"The matrix of this result was an array in the memory .*shape \(9, 2\)"):
        verify(f"{tmp_path}/memory")
    with pytest.raises(PlanRefused, match="lives in memory only"):
        verify(run(job(data, "qr", "x").model_copy(update={"output": None})))
    with pytest.raises(BadData, match="There is no result at"):
        verify(f"{tmp_path}/nowhere")


def test_a_matrix_of_another_length_is_told(data, tmp_path):
    stored(tmp_path / "A", np.random.default_rng(1).standard_normal((90, 3)), (30, 3))
    run(job_of({"kind": "qr", "form": "explicit", "matrix": f"{tmp_path}/A", "output": f"{tmp_path}/out"}))
    stored(tmp_path / "A", np.ones((60, 3)), (30, 3), overwrite=True)
    with pytest.raises(BadData, match=r"The Q of this result belongs to a matrix of 90 rows, and the .* 60 now"):
        verify(f"{tmp_path}/out")


def test_the_command_prints_then_and_now_and_ends_with_8_when_it_does_not_hold(data, tmp_path, command):
    run(job(data, "qr", tmp_path / "out"))
    done = command("verify", "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "The certificate holds."
    assert [line.split()[0] for line in lines[2:]] == [
        "stored", "rank", "reconstruction", "orthogonality", "R", "singular",
    ]  # fmt: skip
    spoil(tmp_path / "out", "Q", 1.01)
    done = command("verify", "out", "--json")
    assert done.returncode == 8
    document = json.loads(done.stdout)
    assert (document["schema"], document["holds"]) == ("verification/1", False)
    assert open_result(f"{tmp_path}/out").certificate.rank == document["rank"][0]
    said = command("verify", "out").stdout
    assert said.startswith("The certificate does not hold any more.")
    assert said.count("does not hold") == 3
