"""Randomized SVD and low-rank pairs: near the optimum, and held to the errors that they state."""

import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from pipelines import SVD, LowRank, make_plan, open_result, run
from pipelines.errors import BadData, JobFileError, PlanRefused
from pipelines.kinds import spectral
from pipelines.layout import Shape
from pipelines.load import load_job
from pipelines.methods.randomized import orthonormal_columns
from pipelines.plan import Resources
from workers.clusters import Local, open_cluster

M, N, K = 800, 400, 20
NUMBER = np.arange(1, N + 1)
SPECTRA = {
    "1/i": 1 / NUMBER,
    "1/i^2": 1.0 / NUMBER**2,
    "0.7^i": 0.7**NUMBER,
    "rank 20 plus noise": np.r_[np.ones(K), np.full(N - K, 1e-2)],
    "flat": 1 + 1e-3 * np.linspace(1, 0, N),
}
ITERATED = ("block_krylov", "subspace_iteration")


def with_values(s, m=M, n=N, dtype=float, seed=0):
    rng = np.random.default_rng(seed)

    def orthonormal(rows):
        G = rng.standard_normal((rows, len(s))).astype(dtype)
        if np.dtype(dtype).kind == "c":
            G += 1j * rng.standard_normal(G.shape)
        return np.linalg.qr(G)[0]

    return orthonormal(m) * s @ orthonormal(n).conj().T


def errors(A, result):
    """‖A − U S Vᴴ‖, the optimum of that rank, and NumPy's singular values."""
    s = np.linalg.svd(A, compute_uv=False)
    k = len(result["s"])
    return np.linalg.norm(A - result["U"] * result["s"] @ result["Vt"]), np.linalg.norm(s[k:]), s


@pytest.fixture
def A():
    return with_values(SPECTRA["1/i"])


# Accuracy


@pytest.mark.parametrize("orientation", ["tall", "wide"])
@pytest.mark.parametrize("stored", [np.float32, np.float64])
@pytest.mark.parametrize("name", ITERATED)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_default_is_within_a_hundredth_of_the_optimum_and_knows_its_error(spectrum, name, stored, orientation):
    A = with_values(SPECTRA[spectrum]).astype(stored)
    A = A if orientation == "tall" else np.ascontiguousarray(A.T)
    result = run(SVD(matrix=A, values=K, vectors="both", method=name))
    A = A.astype(float)
    error, optimum, s = errors(A, result)
    c = result.certificate
    assert error <= 1.01 * optimum
    assert c.reconstruction_error * np.linalg.norm(A) == pytest.approx(error, rel=1e-6)
    assert c.best_error * np.linalg.norm(A) == pytest.approx(optimum, rel=0.01)
    assert (np.abs(result["s"] - s[:K]) <= result["error_bound"] + 1e-14).all()
    assert c.values_error == pytest.approx(result["error_bound"].max() / result["s"][0])
    for vectors in (result["U"].conj().T, result["Vt"]):
        assert np.linalg.norm(vectors @ vectors.conj().T - np.eye(K)) < 1e-12


@pytest.mark.parametrize("orientation", ["tall", "wide", "columns backwards"])
@pytest.mark.parametrize("name", ITERATED)
def test_complex_values_are_numpys(name, orientation):
    """dask's svd_compressed transposes without the conjugate, and its values are wrong by 70 %."""
    A = with_values(SPECTRA["1/i^2"], dtype=complex)
    A = {"tall": A, "wide": np.ascontiguousarray(A.T), "columns backwards": A[:, ::-1]}[orientation]
    result = run(SVD(matrix=A, values=K, vectors="both", method=name))
    error, optimum, s = errors(A, result)
    assert error <= 1.01 * optimum
    np.testing.assert_allclose(result["s"], s[:K], rtol=1e-2)


def test_where_dasks_default_is_wrong_by_half_ours_is_not():
    A = with_values(1 / np.arange(1, 1001) ** 0.3, 2000, 1000)
    truth = np.linalg.svd(A, compute_uv=False)[:10]
    theirs = da.linalg.svd_compressed(da.from_array(A, chunks=(500, 1000)), 10, seed=1)[1].compute()
    ours = run(SVD(matrix=A, values=10, method="block_krylov"))
    assert np.abs(theirs / truth - 1).max() > 0.3
    assert np.abs(ours["s"] / truth - 1).max() < 0.05
    assert (np.abs(ours["s"] - truth) <= ours["error_bound"]).all()


@pytest.mark.parametrize(("power", "dtype"), [(1, np.float32), (2, np.float64)])
def test_where_dasks_power_iteration_loses_modes_ours_finds_them(power, dtype):
    """It never makes the block orthonormal, so what lies below ε^(1/(2q+1)) is gone: 0.17 of σ₁ in float32."""
    A = with_values(1 / np.arange(1, 201.0) ** power).astype(dtype)
    truth = np.linalg.svd(A.astype(float), compute_uv=False)[:30]
    theirs = da.linalg.svd_compressed(da.from_array(A, chunks=(200, 400)), 30, n_power_iter=4, seed=1)[1].compute()
    ours = run(SVD(matrix=A, values=30, method={"name": "subspace_iteration", "steps": 4}))["s"]
    assert np.abs(theirs / truth - 1).max() > 0.3
    assert np.abs(ours / truth - 1).max() < 0.01


def test_the_flat_spectrum_that_dask_misses_by_a_fifth():
    A = np.random.default_rng(4).standard_normal((2000, 400))
    truth = np.linalg.svd(A, compute_uv=False)[:10]
    theirs = da.linalg.svd_compressed(da.from_array(A, chunks=(500, 400)), 10, seed=1)[1].compute()
    found = run(SVD(matrix=A, values=10, method={"name": "block_krylov", "steps": 6}))
    assert np.abs(theirs / truth - 1).max() > 0.15
    assert np.abs(found["s"] / truth - 1).max() < 0.01
    assert (np.abs(found["s"] - truth) <= found["error_bound"]).all()


def test_values_below_the_root_of_roundoff_are_found():
    """From R of A K, and not from a Gram matrix."""
    s = np.geomspace(1, 1e-12, 13)
    A = with_values(s)
    found = run(SVD(matrix=A, values=13, method="block_krylov"))["s"]
    assert np.abs(found - s).max() < 1e-14
    np.testing.assert_allclose(found, s, rtol=1e-2)


def test_more_steps_bring_the_values_nearer(A):
    truth = np.linalg.svd(A, compute_uv=False)[:K]
    found = [
        np.abs(run(SVD(matrix=A, values=K, method={"name": "block_krylov", "steps": q}))["s"] - truth).max()
        for q in (1, 2, 3)
    ]
    assert found[0] > 5 * found[1] > 25 * found[2]


def test_a_block_as_wide_as_the_matrix_finds_everything(A):
    small = A[:, :25]
    for name in ITERATED:
        found = run(SVD(matrix=small, values=25, method=name))
        np.testing.assert_allclose(found["s"], np.linalg.svd(small, compute_uv=False), rtol=1e-12)


def test_a_matrix_of_low_rank_has_no_vectors_beyond_it():
    A = with_values(np.ones(5))
    result = run(SVD(matrix=A, values=K, vectors="both", method="block_krylov"))
    assert result["U"].shape == (M, 5)
    assert result.certificate.rank == 5
    assert result.certificate.reconstruction_error < 1e-14


def test_new_directions_are_orthogonal_to_old_ones_even_where_nothing_is_left():
    rng = np.random.default_rng(3)
    K_ = np.linalg.qr(rng.standard_normal((50, 10)))[0]
    for W in (K_ @ rng.standard_normal((10, 8)), np.zeros((50, 8)), rng.standard_normal((50, 45))):
        Q = orthonormal_columns(W, K_)
        assert Q.shape[1] == min(W.shape[1], 40)
        assert np.abs(np.c_[K_, Q].T @ np.c_[K_, Q] - np.eye(10 + Q.shape[1])).max() < 1e-12


# The sketch


@pytest.mark.parametrize("spectrum", ["1/i", "1/i^2", "rank 20 plus noise"])
def test_a_sketch_takes_one_read_and_calls_itself_an_estimate(spectrum):
    A = with_values(SPECTRA[spectrum])
    alone = run(SVD(matrix=A, values=K, method="sketch", verify=False))
    assert list(alone.summary["timings"]) == ["multiply", "total"]
    assert "estimate" in alone.certificate.statement
    measured = run(SVD(matrix=A, values=K, vectors="right", method="sketch"))
    truth = np.linalg.svd(A, compute_uv=False)
    assert np.abs(measured["s"] - truth[:K]).max() <= measured["error_bound"].max()
    assert "An estimate." in measured.certificate.statement
    both = run(SVD(matrix=A, values=K, vectors="both", method="sketch"))
    assert both.certificate.orthogonality < 1e-12
    error, optimum, _ = errors(A, both)
    assert error < 1.5 * optimum
    assert both.certificate.reconstruction_error * np.linalg.norm(A) == pytest.approx(error, rel=1e-6)


# A tolerance


@pytest.mark.parametrize("name", ITERATED)
def test_a_tolerance_widens_the_block_until_all_values_above_it_are_found(name):
    s = np.r_[np.geomspace(1, 1e-2, 150), np.full(250, 1e-4)]
    result = run(SVD(matrix=with_values(s), values={"tolerance": 1e-3}, method=name, vectors="right"))
    assert len(result["s"]) == 150
    assert result["Vt"].shape == (150, N)
    np.testing.assert_allclose(result["s"], s[:150], rtol=1e-6)
    assert not result.shortfalls


def test_a_tolerance_that_the_widest_block_does_not_reach_is_said(command, save):
    matrix = save("A", with_values(SPECTRA["1/i"]))
    job = {
        "kind": "svd", "matrix": matrix, "output": "result", "values": {"tolerance": 1e-3},
        "method": {"name": "subspace_iteration", "most_columns": 80},
    }  # fmt: skip
    done = command("run", "job.yaml", job=job)
    assert done.returncode == 8
    assert "the tolerance is not reached: a random block of 80 columns found 80 values" in done.stderr
    assert "raise method.most_columns (at most 400)" in done.stderr


def test_that_nothing_was_missed_is_proven_where_the_rest_is_small_enough():
    found = run(SVD(matrix=with_values(np.ones(5)), values={"tolerance": 1e-3}, method="block_krylov"))
    assert "No value above the tolerance was missed." in found.certificate.statement
    noisy = with_values(np.r_[1.0, np.full(N - 1, 1e-4)])
    found = run(SVD(matrix=noisy, values={"tolerance": 1e-3}, method="block_krylov"))
    assert "likely, and not proven" in found.certificate.statement


@pytest.mark.parametrize("method", [{"name": "block_krylov", "steps": 1}, {"name": "sketch", "seed": 2}])
def test_a_value_just_below_the_tolerance_may_stand_for_one_above(method):
    t = 1e-2
    s = np.r_[np.ones(58), np.full(3, 1.01 * t), np.linspace(0.7, 0.01, 69) * t]
    found = run(SVD(matrix=with_values(s, 400, 130, seed=1), values={"tolerance": t}, method=method))
    assert len(found["s"]) < 61
    assert "likely, and not proven" in found.certificate.statement


@pytest.mark.parametrize("method", [*ITERATED, "sketch"])
def test_a_matrix_whose_squares_vanish_is_refused_and_not_called_zero(method):
    A = 1e-170 * np.random.default_rng(0).standard_normal((100, 20))
    for job in (SVD(matrix=A, values=3, method=method), LowRank(matrix=A, rank=3, method=method)):
        with pytest.raises(BadData, match=r"norm of the matrix is .*e-170, .* Divide it by"):
            run(job)


def test_a_sketch_finds_no_rank_in_its_noise():
    A = with_values(np.array([5, 4, 3, 2, 1.0]), 200, 40)
    c = run(SVD(matrix=A, values=20, method="sketch", vectors="both")).certificate
    assert c.rank == 5
    assert c.condition_number == pytest.approx(5)


def test_bounds_of_a_sketch_hold_for_values_that_it_takes_for_zero():
    s = np.logspace(0, -10, 40)
    found = run(SVD(matrix=with_values(s, 300, 40), values=40, method="sketch"))
    assert (found["s"] == 0).any()
    assert (np.abs(found["s"][:, None] - s).min(axis=1) <= found["error_bound"]).all()
    alone = run(SVD(matrix=with_values(s, 300, 40), values=40, method="sketch", verify=False))
    assert "known to about 1e-8 of the largest" in alone.certificate.statement


def test_the_best_error_is_not_overstated_where_nothing_is_known_to_follow():
    s = np.r_[np.ones(20), np.full(20, 0.5)]
    method = {"name": "subspace_iteration", "steps": 1, "oversampling": 0}
    c = run(SVD(matrix=with_values(s, 200, 40), values=20, method=method)).certificate
    best = np.linalg.norm(s[20:]) / np.linalg.norm(s)
    assert c.best_error <= 1.15 * best
    assert c.best_error < c.reconstruction_error


@pytest.mark.parametrize("orientation", ["tall", "wide"])
@pytest.mark.parametrize("method", ["tsqr", *ITERATED])
def test_what_is_measured_is_what_is_stored_in_single_precision(method, orientation):
    A = with_values(np.logspace(0, -7, 40), 300, 40)
    A = A if orientation == "tall" else A.T
    svd = run(SVD(matrix=A, values=30, vectors="both", dtype="float32", method=method))
    pair = run(LowRank(matrix=A, rank=30, dtype="float32", method=method))
    for result, made in (
        (svd, (svd["U"].astype(float) * svd["s"]) @ svd["Vt"].astype(float)),
        (pair, pair["L"].astype(float) @ pair["R"].astype(float)),
    ):
        error = np.linalg.norm(A - made) / np.linalg.norm(A)
        assert result.certificate.reconstruction_error == pytest.approx(error, rel=1e-6)


# Low rank


def test_a_tolerance_that_the_rank_rule_cuts_short_is_said():
    A = with_values(np.logspace(0, -3, 40), 300, 40)
    for verify in (True, False):
        result = run(LowRank(matrix=A, tolerance=1e-3, rtol=0.1, verify=verify))
        assert "a tolerance of 0.001 is asked for" in result.shortfalls[0]


@pytest.mark.parametrize("orientation", ["tall", "wide"])
@pytest.mark.parametrize("weight", ["both", "left", "right"])
@pytest.mark.parametrize("method", ["tsqr", *ITERATED, "sketch"])
def test_a_pair_of_factors_is_as_near_as_its_certificate_says(method, weight, orientation):
    A = with_values(SPECTRA["1/i"])
    A = A if orientation == "tall" else A.T
    result = run(LowRank(matrix=A, rank=K, weight=weight, method=method))
    L, R, c = result["L"], result["R"], result.certificate
    assert L.shape == (A.shape[0], K)
    assert R.shape == (K, A.shape[1])
    norm, s = np.linalg.norm(A), np.linalg.svd(A, compute_uv=False)
    assert c.reconstruction_error * norm == pytest.approx(np.linalg.norm(A - L @ R), rel=1e-6)
    assert np.linalg.norm(A - L @ R) <= (1.2 if method == "sketch" else 1.01) * np.linalg.norm(s[K:])
    if method == "tsqr":
        assert c.best_error * norm == pytest.approx(np.linalg.norm(s[K:]))
    left, right = np.linalg.norm(L, axis=0), np.linalg.norm(R, axis=1)
    one, other = {"both": (left, right), "left": (right, 1), "right": (left, 1)}[weight]
    if method != "sketch":
        np.testing.assert_allclose(one / other, 1, rtol=1e-6)


@pytest.mark.parametrize("method", ["tsqr", *ITERATED])
@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-2])
def test_the_smallest_rank_that_a_tolerance_needs(method, tolerance):
    A = with_values(SPECTRA["1/i^2"])
    result = run(LowRank(matrix=A, tolerance=tolerance, method=method))
    s = np.linalg.svd(A, compute_uv=False)
    tails = np.sqrt(np.cumsum(s[::-1] ** 2))[::-1] / np.linalg.norm(s)
    best = int((tails > tolerance).sum())
    assert result["L"].shape[1] == best
    assert result.certificate.reconstruction_error <= tolerance
    assert not result.shortfalls


def test_a_matrix_of_zeros_has_a_pair_of_rank_zero():
    result = run(LowRank(matrix=np.zeros((30, 5)), tolerance=0.1))
    assert result["L"].shape == (30, 0)
    assert result["R"].shape == (0, 5)
    assert result.certificate.reconstruction_error == 0


# From storage to storage


LAYOUTS = {
    "full-width chunks": {"chunks": (64, 40)},
    "a grid": {"chunks": (50, 7)},
    "compressed": {"chunks": (100, 40), "compressors": "auto"},
    "shards": {"chunks": (32, 40), "shards": (256, 40)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_chunking_gives_the_same_values_and_chunk_aligned_vectors(save, tmp_path, layout):
    A = with_values(1 / np.arange(1, 41), 1000, 40)
    matrix = save("A", A, **LAYOUTS[layout])
    run(SVD(matrix=matrix, values=8, vectors="both", method="block_krylov", output=f"{tmp_path}/svd"))
    run(LowRank(matrix=matrix, rank=8, method="block_krylov", output=f"{tmp_path}/pair"))
    result, pair = open_result(f"{tmp_path}/svd"), open_result(f"{tmp_path}/pair")
    np.testing.assert_allclose(result["s"], 1 / np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(result["U"] * result["s"] @ result["Vt"], pair["L"] @ pair["R"], atol=1e-10)
    assert zarr.open_array(f"{tmp_path}/svd/U", mode="r").chunks == (LAYOUTS[layout]["chunks"][0], 8)
    assert zarr.open_array(f"{tmp_path}/pair/L", mode="r").chunks == (LAYOUTS[layout]["chunks"][0], 8)
    assert result.certificate.method == "block_krylov"


@pytest.mark.parametrize("name", ["sketch", *(pytest.param(name, marks=pytest.mark.slow) for name in ITERATED)])
def test_any_number_of_threads_and_workers_gives_the_same_bits(save, tmp_path, name):
    A = with_values(1 / np.arange(1, 41), 3000, 40)
    matrix = save("A", A, (100, 40), compressors=[Crc32cCodec()])
    method = {"name": name, "span_seconds": 1e-5}

    def job(output):
        return SVD(matrix=matrix, values=8, vectors="both", method=method, output=f"{tmp_path}/{output}")

    bits = []
    for threads in (1, 2, 8):
        result = run(job(threads), resources=Resources(1, threads, 2**32))
        assert result.summary["plan"]["spans"] == 30
        bits.append([open_result(f"{tmp_path}/{threads}")[part].tobytes() for part in ("U", "s", "Vt")])
    with open_cluster(Local(processes=2, threads=1, memory="400 MiB")) as client:
        run(job("cluster"), client)
    bits.append([open_result(f"{tmp_path}/cluster")[part].tobytes() for part in ("U", "s", "Vt")])
    assert bits[0] == bits[1] == bits[2] == bits[3]


def test_the_seed_decides_the_bits(A):
    def found(seed):
        return run(SVD(matrix=A, values=5, method={"name": "block_krylov", "seed": seed}))["s"].tobytes()

    assert found(1) == found(1) != found(2)


def test_rows_with_nan_are_an_error_or_left_out(save):
    A = with_values(1 / np.arange(1, 41), 1000, 40)
    A[17, 2] = np.nan
    matrix = save("A", A, (100, 40))
    with pytest.raises(BadData, match=r"1 entry .* the first is at row 17, column 2"):
        run(SVD(matrix=matrix, values=3, method="block_krylov"))
    found = run(SVD(matrix=matrix, values=3, vectors="both", method="block_krylov", nan="omit_rows"))
    assert not found["U"][17].any()
    assert found.certificate.rows_omitted == 1
    A[17] = 0
    np.testing.assert_allclose(found["s"], np.linalg.svd(A, compute_uv=False)[:3], rtol=1e-6)


def test_memory_and_reads_are_planned_before_anything_is_read(A):
    plan = make_plan(SVD(matrix=A, values=K, method="block_krylov"))
    assert plan.method == "block_krylov"
    assert [one.name for one in plan.passes] == ["multiply", "multiply", "resolve", "verify"]
    assert plan.reason.startswith("randomized (asked for by the job file): 2 products with AᵀA, one read each")
    for verify, reads in ((False, ["multiply"]), (True, ["multiply", "verify"])):
        sketch = SVD(matrix=A, values=K, method="sketch", verify=verify)
        assert [one.name for one in make_plan(sketch).passes] == reads
        assert list(run(sketch).summary["timings"]) == [*reads, "total"]
    done = run(SVD(matrix=A, values=K, method="block_krylov"))
    assert list(done.summary["timings"]) == ["multiply", "multiply-2", "resolve", "verify", "total"]


# What is chosen, and what is refused


@pytest.mark.parametrize(
    ("shape", "values", "name"),
    [
        ((10**6, 100), 5, "tsqr"),  # R is small: exact, whatever is asked for
        ((10**6, 4096), 5, "cholesky_qr"),
        ((10**6, 10_000), 20, "block_krylov"),
        ((10**6, 10_000), 3000, "cholesky_qr"),  # a random block would take as many flops
        ((10**6, 10_000), {"tolerance": 1e-3}, "cholesky_qr"),
        ((10**5, 10**5), {"tolerance": 1e-3}, "block_krylov"),
        ((10**5, 10**5), 3000, "block_krylov"),
        ((10**6, 10_000), "all", "cholesky_qr"),
    ],
)
def test_auto_takes_the_exact_method_where_the_small_side_allows(shape, values, name):
    m, n = shape
    seen = Shape(m, n, 0, False, 8, np.dtype(float), (1000, n), 1000, True)
    assert spectral.method(SVD(matrix="A", values=values), seen).name == name


def test_what_cannot_be_is_refused_before_reading(A):
    with pytest.raises(PlanRefused, match=r"500 singular values are asked for, and the matrix has 400"):
        run(SVD(matrix=A, values=500, method="block_krylov"))
    with pytest.raises(PlanRefused, match=r"A pair of rank 401 is asked for, and the matrix has at most rank 400"):
        run(LowRank(matrix=A, rank=401))
    with pytest.raises(PlanRefused, match=r"The tolerance is 1.0e-08, .* at least 1e-06: .* or use `method: tsqr`"):
        run(LowRank(matrix=A, tolerance=1e-8, method="block_krylov"))


@pytest.mark.parametrize(
    ("fields", "letter"),
    [
        ("kind: low_rank\nrank: 3\ntolerance: 0.1", r"tolerance: .*a rank or a tolerance, not both"),
        ("kind: low_rank", r"tolerance: is missing; needed a rank or a tolerance"),
        ("kind: low_rank\ntolerance: 1.5", r"tolerance: found 1.5"),
        ("kind: low_rank\nrank: 0", r"rank: found 0"),
        ("kind: svd\nmethod: block_krylov", r"values: is missing; needed a number .* with a randomized method"),
        ("kind: svd\nvalues: 5\nmethod: {name: block_krylov, steps: 0}", r"method.*steps: found 0"),
        ("kind: svd\nvalues: 5\nmethod: krylov", r"block_krylov"),
        ("kind: qr\nmethod: block_krylov", r"method: found"),
    ],
)
def test_a_job_file_that_contradicts_itself(tmp_path, fields, letter):
    path = tmp_path / "job.yaml"
    path.write_text(f"matrix: A\noutput: result\n{fields}\n")
    with pytest.raises(JobFileError, match=letter):
        load_job(path)
