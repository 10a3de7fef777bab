"""Matrices from a seed: the same bits in any cut, on any cluster; the condition that was asked for; x near ones."""

import sys

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import LeastSquares, make_plan, open_result, operator_of, run, verify
from pipelines.errors import BadData, JobFileError, PlanRefused
from pipelines.load import job_of, load_job
from pipelines.plan import Resources
from pipelines.rates import NOMINAL
from pipelines.report import render_plan
from pipelines.synthetic import FEW_COLUMNS, Synthetic, SyntheticRhs, numbers
from tests.conftest import ROOT
from tests.test_resume import interrupted, once
from workers.clusters import Local, open_cluster
from workers.places import check_places

FINE = {"name": "tsqr", "span_seconds": 1e-9}
M, N = 100_000, 16
"""Seven spans, when they are as fine as can be."""


def matrix(rows=M, columns=N, **more):
    return {"synthetic": {"rows": rows, "columns": columns} | more}


def job(kind="least_squares", **fields):
    """A job on a synthetic matrix; without an output its result lives in memory."""
    rhs = {"rhs": {"synthetic": {"noise": 0.1}}} if kind == "least_squares" else {}
    given = ({} if kind == "apply" else {"matrix": matrix()}) | rhs | {"output": "memory"} | fields
    found = job_of({"kind": kind} | given)
    return found if "output" in fields else found.model_copy(update={"output": None})


def tall(rows=M, columns=N, condition=1000.0, seed=0, dtype="float64"):
    return Synthetic(rows, columns, condition, seed, np.dtype(dtype))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3, 16, 65]), st.sampled_from(["float64", "float32"]), st.integers(0, 2**40), st.data())
def test_any_cut_of_the_rows_gives_the_same_bits(columns, dtype, first, data):
    A, height = tall(2**41, columns, dtype=dtype), data.draw(st.integers(1, 3000))
    whole, b = A.read(first, first + height).copy(), SyntheticRhs(A, 0.1).read(first, first + height)
    low = data.draw(st.integers(0, height - 1))
    high = data.draw(st.integers(low + 1, height))
    part = SyntheticRhs(A, 0.1).read(first + low, first + high)
    assert part.tobytes() == b[low:high].tobytes()
    assert A.read(first + low, first + high).tobytes() == whole[low:high].tobytes()  # as made for b
    assert A.read(first + low, first + high).tobytes() == whole[low:high].tobytes()  # as made anew


def test_rows_wider_than_a_buffer_of_numpy_are_cut_alike_too():
    A = tall(30_000, 2 * FEW_COLUMNS + 1)
    whole = A.read(0, 24)
    assert all(A.read(row, row + 1).tobytes() == whole[row : row + 1].tobytes() for row in range(24))


def test_the_entries_are_those_of_the_formula():
    A = tall(40, 8, condition=10.0, seed=5)
    G = (np.random.Generator(np.random.Philox(key=np.array([5, 0], np.uint64))).random((40, 8)) - 0.5) * 12**0.5
    v = np.random.Generator(np.random.Philox(key=np.array([5, 2], np.uint64))).random(8) - 0.5
    v /= np.linalg.norm(v)
    expected = G @ np.diag(10.0 ** -np.linspace(0, 1, 8)) @ (np.eye(8) - 2 * np.outer(v, v))
    np.testing.assert_allclose(A.read(0, 40), expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(tall(40, 8, 10.0, 5, "float32").read(0, 40), A.read(0, 40).astype("float32"))


def test_random_numbers_are_counted_from_the_first():
    whole = numbers(7, 0, 0).random(50)
    assert all(numbers(7, 0, first).random() == whole[first] for first in range(50))
    assert numbers(7, 0, 2**70).random() != numbers(7, 0, 2**70 + 1).random()


def test_b_is_the_sum_of_each_row_with_noise_of_the_spread_that_was_asked_for():
    A = tall()
    b = SyntheticRhs(A, 0.25).read(0, M)[:, 0]
    noise = b - A.read(0, M) @ np.ones(N)
    assert noise.std() == pytest.approx(0.25, rel=0.01)
    assert abs(noise.mean()) < 5 * 0.25 / M**0.5
    assert abs(np.corrcoef(noise, A.read(0, M)[:, 0])[0, 1]) < 5 / M**0.5
    exact = SyntheticRhs(A, 0.0).read(0, 100)[:, 0]
    np.testing.assert_allclose(exact, A.read(0, 100) @ np.ones(N), rtol=0, atol=1e-14)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e10])
def test_the_condition_number_is_about_the_one_that_was_asked_for(condition):
    result = run(job("svd", matrix=matrix(condition=condition)))
    s = result["s"]
    ratio = (N / M) ** 0.5
    assert condition * (1 - 3 * ratio) < s[0] / s[-1] < condition * (1 + 3 * ratio)
    assert s[0] == pytest.approx(M**0.5, rel=3 * ratio)


def test_x_is_near_ones_by_as_much_as_noise_and_condition_allow():
    result = run(job(matrix=matrix(condition=10)))
    assert 0 < np.abs(result.x - 1).max() < 5 * 0.1 * 10 / M**0.5
    exact = run(job(rhs={"synthetic": {"noise": 0}}))
    np.testing.assert_allclose(exact.x, 1, rtol=1e-10)
    assert result.certificate.residual_norm[0] == pytest.approx(0.1 * M**0.5, rel=0.02)


def test_rows_are_made_once_in_a_pass_for_both_sides(monkeypatch):
    made, make = [], Synthetic._make
    monkeypatch.setattr(Synthetic, "_make", lambda *args: made.append(args[1:3]) or make(*args))
    result = run(job(method=FINE), resources=Resources(1, 1, 2**40))
    assert list(result.summary["timings"]) == ["factor", "verify", "total"]
    assert sum(stop - start for start, stop in made) == 2 * M


def test_another_seed_gives_another_matrix_and_other_noise():
    first, second = (tall(seed=seed).read(0, M)[:, 0] for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / M**0.5
    noise = [SyntheticRhs(tall(seed=seed), 1.0).read(0, M)[:, 0] - tall(seed=seed).row_sums(0, M) for seed in (0, 1)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 5 / M**0.5


def test_a_wide_matrix_is_the_transpose_of_the_tall_one():
    s = [run(job("svd", matrix=matrix(*shape)))["s"] for shape in ((N, M), (M, N))]
    np.testing.assert_array_equal(*s)
    result = run(job(matrix=matrix(3, 2000)))
    A = tall(2000, 3).read(0, 2000).T
    b = SyntheticRhs(tall(2000, 3).transposed, 0.1).read(0, 3)[:, 0]
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, b)[0], rtol=1e-9)


@pytest.mark.parametrize(("kind", "fields"), [
    ("qr", {"form": "explicit"}), ("svd", {"vectors": "both"}), ("pca", {"scores": True}), ("low_rank", {"rank": 3}),
    ("svd", {"values": 3, "method": {"name": "block_krylov"}}), ("pseudoinverse", {"form": "explicit"}),
])  # fmt: skip
def test_each_kind_of_job_gives_what_it_gives_for_the_same_rows_in_memory(kind, fields):
    """Up to roundings: rows in memory are cut otherwise."""
    made = run(job(kind, matrix=matrix(5000, 8), **fields))
    same = run(job(kind, matrix=tall(5000, 8).read(0, 5000), **fields))
    for name in made.names:
        if made[name].dtype.kind == "f":
            np.testing.assert_allclose(np.abs(made[name]), np.abs(same[name]), atol=1e-10 * np.abs(same[name]).max())


def test_an_operator_makes_the_rows_again_that_it_was_factored_from(tmp_path):
    run(job("pseudoinverse", form="operator", matrix=matrix(5000, 8), output=f"{tmp_path}/operator"))
    held, exact = {"operator": f"{tmp_path}/operator"}, {"rhs": {"synthetic": {"noise": 0}}}
    assert run(job("apply", compute="leverage", **held))["leverage"].sum() == pytest.approx(8)
    x = run(job("apply", compute="pinv", **held, **exact))["pinv"]
    np.testing.assert_allclose(x, 1, rtol=1e-9)
    A = tall(5000, 8).read(0, 5000)
    np.testing.assert_allclose(operator_of(f"{tmp_path}/operator") @ A, np.eye(8), atol=1e-9)
    with pytest.raises(BadData, match=r"made from a synthetic matrix of seed 0 \(now 1\). Give the same, or leave"):
        run(job("apply", compute="leverage", **held, matrix=matrix(5000, 8, seed=1)))
    with pytest.raises(BadData, match="rhs has 5,000 rows, and `compute: project_null` takes 8"):
        run(job("apply", compute="project_null", **held, **exact))


def test_a_synthetic_rhs_of_an_operator_on_stored_rows_is_refused(tmp_path, save):
    A = save("A", tall(500, 4).read(0, 500), (100, 4))
    run(job("pseudoinverse", form="operator", matrix=A, output=f"{tmp_path}/operator"))
    with pytest.raises(BadData, match=r"the operator was made from a matrix that is not. Give b itself"):
        run(job("apply", operator=f"{tmp_path}/operator", compute="pinv", rhs={"synthetic": {"noise": 0}}))


@pytest.mark.skipif(sys.platform != "linux", reason="workers fork")
def test_one_worker_and_two_give_the_bits_of_threads():
    fine, here = job(method=FINE, arrays=["R"]), None
    for processes in (1, 2):
        with open_cluster(Local(processes=processes, memory="300 MiB", dashboard=False)) as client:
            result = run(fine, client=client)
        here = here or run(fine, resources=Resources(1, 3, 2**40))
        assert result.summary["plan"]["spans"] == 7
        assert [result[name].tobytes() for name in ("x", "R")] == [here[name].tobytes() for name in ("x", "R")]


def test_an_interrupted_run_is_gone_on_with(tmp_path, monkeypatch):
    wanted = job(method=FINE, output=f"{tmp_path}/x")
    interrupted(monkeypatch, wanted, spans=4)
    result = once(wanted)
    assert result.summary["resumed_spans"] == 4
    assert result.x.tobytes() == once(job(method=FINE)).x.tobytes()


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"condition": 999}, {"dtype": "float32"}, {"rows": M - 1}, {"columns": N + 1},
])  # fmt: skip
def test_a_run_on_another_matrix_finds_nothing_of_an_interrupted_one(change, tmp_path, monkeypatch):
    interrupted(monkeypatch, job("svd", method=FINE, output=f"{tmp_path}/x"), spans=4)
    assert once(job("svd", method=FINE, output=f"{tmp_path}/x", matrix=matrix() | {"synthetic":
        matrix()["synthetic"] | change})).summary["resumed_spans"] == 0  # fmt: skip


def test_a_run_with_other_noise_finds_nothing_of_an_interrupted_one(tmp_path, monkeypatch):
    interrupted(monkeypatch, job(method=FINE, output=f"{tmp_path}/x"), spans=4)
    other = job(method=FINE, output=f"{tmp_path}/x", rhs={"synthetic": {"noise": 0.2}})
    assert once(other).summary["resumed_spans"] == 0


def test_a_stored_result_is_verified_without_an_input(tmp_path):
    run(job(matrix=matrix(5000, 8), output=f"{tmp_path}/x"))
    found = verify(f"{tmp_path}/x")
    assert found.holds
    assert found.changed == ()
    zarr.open_array(f"{tmp_path}/x/x", mode="r+")[...] = open_result(f"{tmp_path}/x").x + 0.5
    assert not verify(f"{tmp_path}/x").holds


def test_a_trillion_rows_are_planned_at_the_rate_at_which_they_are_made():
    wanted = job(matrix=matrix(10**12, N))
    plan = make_plan(wanted, Resources(1000, 1, 2**34), NOMINAL)
    assert plan.tasks < 10_000
    assert plan.bytes == 2 * 8 * 10**12 * N
    text = render_plan(plan.to_dict())
    assert "A is 1,000,000,000,000 × 16 synthetic float64, tall" in text
    assert "pass       makes" in text
    assert {one.limit for one in plan.passes} == {"making rows"}
    least = 2 * 10**12 * N * 8 / NOMINAL.made_gigabytes / 1e9 / 1000
    assert least < plan.seconds < 2 * least


def test_a_matrix_that_cannot_be_held_is_refused_with_numbers():
    with pytest.raises(PlanRefused, match=r"A worker would need .* and has 16\.0 GiB"):
        make_plan(job("svd", matrix=matrix(10**9, 10**7)), Resources(1000, 1, 2**34), NOMINAL)


def test_rows_wider_than_long_are_refused_where_they_are_taken_as_they_are(tmp_path):
    run(job("pca", matrix=matrix(50, 8), output=f"{tmp_path}/pca"))
    with pytest.raises(PlanRefused, match=r"synthetic matrix of 7 rows and 8 columns is made column by column"):
        run(job("pca_transform", pca=f"{tmp_path}/pca", matrix=matrix(7, 8)))
    assert run(job("pca_transform", pca=f"{tmp_path}/pca", matrix=matrix(60, 8)))["scores"].shape == (60, 8)


def test_a_synthetic_rhs_needs_a_synthetic_matrix():
    with pytest.raises(JobFileError, match=r"rhs: found a mapping; needed b itself: .* and the matrix is data/A"):
        job(matrix="data/A")
    with pytest.raises(ValueError, match=r"and the matrix is an array of shape 4 × 2"):
        LeastSquares(matrix=np.zeros((4, 2)), rhs={"synthetic": {"noise": 0}})
    with pytest.raises(JobFileError, match=r"matrix: found a mapping; needed b itself: .* and the matrix is data/A"):
        job("apply", operator="o", compute="pinv", matrix={"url": "data/A"}, rhs={"synthetic": {"noise": 0}})


def test_a_stored_rhs_of_another_length_is_refused(save):
    with pytest.raises(BadData, match="rhs has 99 rows and the matrix has 100,000 rows"):
        run(job(rhs=save("b", np.zeros(99))))


@pytest.mark.parametrize(("fields", "letter"), [
    ({"matrix": {"synthetic": {"rows": 0, "columns": 1}}}, "matrix.synthetic.rows: found 0; needed a number of at"),
    ({"matrix": {"synthetic": {"rows": 9}}}, "matrix.synthetic.columns: is missing; needed: n;"),
    ({"matrix": {"synthetic": {"rows": 9, "columns": 3, "condition": 0.5}}}, "found 0.5; needed a number of at least"),
    ({"matrix": {"synthetic": {"rows": 9, "columns": 3, "sed": 1}}}, 'no such field. Did you mean "seed"?'),
    ({"matrix": {"synthetic": {"rows": 9, "columns": 3, "seed": -1}}}, "seed: found -1; needed a number of at least 0"),
    ({"matrix": {"synthetic": {"rows": 9, "columns": 3, "dtype": "int8"}}}, "needed float64 or float32"),
    ({"matrix": {"synthetic": {"noise": 1}}}, "matrix.synthetic.noise: there is no such field. Known: rows, columns"),
    ({"rhs": {"synthetic": {"noise": -1}}}, "rhs.synthetic.noise: found -1; needed a number of at least 0"),
    ({"weights": {"synthetic": {"noise": 1}}}, "weights: found a mapping; needed a path or URL, or {url: ..."),
    ({"matrix": 5}, "or {synthetic: {rows: ..., columns: ...}}"),
])  # fmt: skip
def test_what_a_job_may_not_say_of_a_seed(fields, letter):
    with pytest.raises(JobFileError) as caught:
        job(**fields)
    assert letter in str(caught.value)


def test_a_confined_server_takes_a_job_that_reads_nothing():
    fields = job(output="/data/x").model_dump(mode="json")
    check_places(fields, ["/data"])
    assert job_of(fields) == job(output="/data/x")


def test_the_example_runs():
    example = load_job(ROOT / "configs" / "jobs" / "rehearsal.yaml", ["matrix.synthetic.rows=20000"])
    assert example.matrix.synthetic.model_dump() == job(matrix=matrix(20_000)).matrix.synthetic.model_dump()
    assert run(example.model_copy(update={"output": None})).certificate.rank == 16
