"""QR, SVD and the pseudoinverse: against NumPy, by LAPACK's ratios, and held to what their certificates say."""

import json

import numpy as np
import pytest
import scipy.linalg
import zarr
from zarr.codecs import Crc32cCodec

from pipelines import PCA, QR, SVD, Apply, LowRank, Pseudoinverse, make_plan, open_result, run
from pipelines.errors import BadData, PlanRefused
from pipelines.kernels.gaussian import gaussian
from pipelines.plan import Resources
from workers.clusters import Local, open_cluster

EPS = np.finfo(np.float64).eps / 2
CONDITIONS = (1e0, 1e2, 1e6, 1e10, 1e14)
SHAPES = {"tall": (900, 30), "square": (40, 40), "wide": (30, 900)}


def randsvd(rng, m, n, condition, dtype=float):
    def orthogonal(rows, columns):
        G = rng.standard_normal((rows, columns)).astype(dtype)
        if dtype is complex:
            G += 1j * rng.standard_normal((rows, columns))
        return np.linalg.qr(G)[0]

    k = min(m, n)
    return orthogonal(m, k) * np.geomspace(1, 1 / condition, k) @ orthogonal(n, k).conj().T


def deficient(rng, m, n, rank=12, dtype=float):
    return randsvd(rng, m, rank, 1e3, dtype) @ randsvd(rng, rank, n, 1e2, dtype)


def penrose(A, X):
    """The four residuals, in the certificate's order and scale."""
    norm = np.linalg.norm
    skew = [norm(M - M.conj().T) for M in (A @ X, X @ A)]
    return np.array([norm(A @ X @ A - A) / norm(A), norm(X @ A @ X - X) / norm(X), *skew])


def close(certified, true, *, probed=3.0):
    """A certificate may be too careful, and by its probes a little too kind; never below the truth by more."""
    return certified >= true / probed - 1e-15


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))


# QR


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("condition", [*CONDITIONS, 1e15])
def test_q_is_orthonormal_and_qr_is_a_at_every_condition_number(rng, condition, dtype):
    m, n = SHAPES["tall"]
    A = randsvd(rng, m, n, condition, dtype)
    result = run(QR(matrix=A, form="explicit"))
    Q, R, c = result["Q"], result["R"], result.certificate
    # LAPACK's dqrt02 and dqrt01, whose threshold is 30.
    assert np.linalg.norm(Q.conj().T @ Q - np.eye(n), 1) / (m * EPS) < 30
    assert np.linalg.norm(R - Q.conj().T @ A, 1) / (m * np.linalg.norm(A, 1) * EPS) < 30
    assert np.array_equal(R, np.triu(R))
    assert (R.diagonal().real >= 0).all()
    assert not R.diagonal().imag.any()
    assert c.orthogonality == pytest.approx(np.linalg.norm(Q.conj().T @ Q - np.eye(n)), rel=0.5)
    assert c.reconstruction_error == pytest.approx(np.linalg.norm(A - Q @ R) / np.linalg.norm(A), rel=0.01)
    assert c.verified


def test_r_alone_takes_one_read_and_is_numpys_up_to_signs(rng):
    A = rng.standard_normal((300, 20))
    result = run(QR(matrix=A))
    theirs = np.linalg.qr(A, mode="r")
    np.testing.assert_allclose(result["R"], np.sign(theirs.diagonal())[:, None] * theirs, atol=1e-12)
    assert list(result.summary["timings"]) == ["factor", "total"]
    assert set(result.arrays) == {"R", "singular_values"}
    assert not result.certificate.verified


def test_dependent_columns_have_no_explicit_q():
    A = np.random.default_rng(0).standard_normal((100, 5))
    A[:, 3] = 0
    with pytest.raises(BadData, match=r"The 5 columns of the matrix are not independent.*set `pivoting: true`"):
        run(QR(matrix=A, form="explicit"))


def test_columns_that_depend_on_others_up_to_rounding_have_one_as_in_numpy():
    A = np.random.default_rng(0).standard_normal((100, 5))
    A[:, 3] = A[:, 1]
    result = run(QR(matrix=A, form="explicit"))
    assert result.certificate.rank == 4
    assert result.certificate.orthogonality < 1e-14
    assert result.certificate.reconstruction_error < 1e-15


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("form", ["r", "explicit", "implicit"])
def test_pivoted_columns_reveal_the_rank_and_need_no_independence(rng, form, dtype):
    A = deficient(rng, 300, 20, rank=7, dtype=dtype)
    A[:, 3] *= 1e-9  # in other units it is as independent as before
    result = run(QR(matrix=A, form=form, pivoting=True))
    R, P = result["R"], result["P"]
    assert R.shape == (7, 20)
    assert sorted(P) == list(range(20))
    diagonal = np.abs(R.diagonal() / np.linalg.norm(A[:, P[:7]], axis=0))
    assert (diagonal[1:] <= 2.1 * diagonal[:-1]).all()  # scaled by powers of two, so up to a factor of two
    np.testing.assert_allclose(R.conj().T @ R, A[:, P].conj().T @ A[:, P], atol=1e-10 * np.linalg.norm(A) ** 2)
    if form == "explicit":
        Q = result["Q"]
        assert np.linalg.norm(Q.conj().T @ Q - np.eye(7)) < 1e-14 * 300
        np.testing.assert_allclose(Q @ R, A[:, P], atol=1e-12 * np.linalg.norm(A))
        assert result.certificate.reconstruction_error < 1e-14
    if form == "implicit":
        C = rng.standard_normal((7, 2))
        Q = run(QR(matrix=A, form="explicit", pivoting=True))["Q"]
        np.testing.assert_allclose(run(Apply(operator=result, matrix=A, rhs=C, compute="Q"))["Q"], Q @ C, atol=1e-12)


def test_the_order_of_independent_columns_is_scipys_where_they_are_of_one_length(rng):
    A = rng.standard_normal((400, 12))
    A /= np.linalg.norm(A, axis=0)
    theirs = scipy.linalg.qr(A, mode="economic", pivoting=True)
    ours = run(QR(matrix=A, form="explicit", pivoting=True))
    assert np.array_equal(ours["P"], theirs[2])
    np.testing.assert_allclose(np.abs(ours["R"]), np.abs(theirs[1]), atol=1e-13)


def test_a_wide_matrix_is_refused_before_reading():
    with pytest.raises(PlanRefused, match="The matrix is 5 × 100, and kind: qr needs at least as many rows"):
        make_plan(QR(matrix=np.ones((5, 100))))


# SVD


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_svd_is_numpys_at_every_condition_number(rng, shape, condition, dtype):
    m, n = shape
    A = randsvd(rng, m, n, condition, dtype)
    result = run(SVD(matrix=A, vectors="both", rtol=1e-18))
    U, s, Vt, c = result["U"], result["s"], result["Vt"], result.certificate
    k = min(m, n)
    assert (U.shape, s.shape, Vt.shape) == ((m, k), (k,), (k, n))
    assert np.abs(s - np.linalg.svd(A, compute_uv=False)).max() <= 10 * k * 2 * EPS
    for Q in (U, Vt.conj().T):
        assert np.linalg.norm(Q.conj().T @ Q - np.eye(k), 1) / (max(m, n) * EPS) < 30
    assert np.linalg.norm(A - U * s @ Vt, 1) / (max(m, n) * np.linalg.norm(A, 1) * EPS) < 30
    assert (np.diff(s) <= 0).all()
    assert c.reconstruction_error == pytest.approx(np.linalg.norm(A - U * s @ Vt) / np.linalg.norm(A), rel=0.1)
    large = U if m >= n else Vt.conj().T
    assert c.orthogonality == pytest.approx(np.linalg.norm(large.conj().T @ large - np.eye(k)), rel=0.5)


def test_values_alone_are_numpys_where_the_gram_matrix_would_lose_half_the_digits(rng, shape):
    A = randsvd(rng, *shape, 1e13)
    s = run(SVD(matrix=A))["s"]
    theirs = np.linalg.svd(A, compute_uv=False)
    assert np.abs(s - theirs).max() <= 10 * min(shape) * 2 * EPS * theirs[0]


def test_no_vectors_are_written_for_zeros(rng, shape):
    A = deficient(rng, *shape)
    result = run(SVD(matrix=A, vectors="both"))
    assert result.certificate.rank == 12
    assert result["U"].shape == (shape[0], 12)
    assert result["singular_values"].shape == (min(shape),)
    assert np.linalg.norm(A - result["U"] * result["s"] @ result["Vt"]) < 1e-12 * np.linalg.norm(A)


@pytest.mark.parametrize(("values", "k"), [(5, 5), ({"tolerance": 0.2}, None), ("all", 30)])
def test_as_many_values_as_asked_for_and_the_best_error_of_that_rank(rng, values, k):
    A = randsvd(rng, *SHAPES["tall"], 1e2)
    theirs = np.linalg.svd(A, compute_uv=False)
    k = k or int((theirs > 0.2 * theirs[0]).sum())
    result = run(SVD(matrix=A, values=values, vectors="both"))
    assert len(result["s"]) == k
    best = np.linalg.norm(theirs[k:]) / np.linalg.norm(theirs)
    assert result.certificate.best_error == pytest.approx(best, abs=1e-14)
    assert result.certificate.reconstruction_error == pytest.approx(best, rel=1e-10, abs=1e-14)


def test_right_vectors_of_a_tall_matrix_take_one_read_and_those_of_a_wide_one_are_written(rng):
    A = randsvd(rng, *SHAPES["tall"], 1e3)
    tall, wide = run(SVD(matrix=A, vectors="right")), run(SVD(matrix=A.T, vectors="right"))
    assert "write" not in tall.summary["timings"]
    assert "write" in wide.summary["timings"]
    assert set(tall.arrays) == set(wide.arrays) == {"s", "singular_values", "Vt"}
    V = tall["Vt"].T
    assert np.linalg.norm(A.T @ (A @ V) - V * tall["s"] ** 2) < 1e-13


def test_more_values_than_there_are_is_refused_before_reading():
    with pytest.raises(PlanRefused, match="21 singular values are asked for, and the matrix has 20"):
        make_plan(SVD(matrix=np.ones((100, 20)), values=21))


# Pseudoinverse


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_penrose_conditions_are_met_as_well_as_numpy_meets_them(rng, shape, condition, dtype):
    A = randsvd(rng, *shape, condition, dtype)
    result = run(Pseudoinverse(matrix=A))
    X, c = result["pinv"], result.certificate
    ours, theirs = penrose(A, X), penrose(A, np.linalg.pinv(A, rtol=c.rtol))
    assert (ours <= 10 * theirs + 1e-14).all()
    assert all(map(close, c.penrose.values(), ours))
    assert (np.array(list(c.penrose.values())) <= 30 * ours + 1e-13).all()


def test_rows_that_are_well_conditioned_are_not_made_orthonormal_by_another_read(rng):
    well, ill = (run(Pseudoinverse(matrix=randsvd(rng, 600, 12, condition, float))) for condition in (1.2, 1e3))
    assert list(well.summary["timings"]) == ["factor", "write", "verify", "total"]
    assert list(ill.summary["timings"]) == ["factor", "orthogonalise", "write", "verify", "total"]
    assert max(well.certificate.penrose.values()) < 1e-14


@pytest.mark.parametrize("dtype", [float, complex])
def test_the_pseudoinverse_of_a_deficient_matrix_is_numpys(rng, shape, dtype):
    A = deficient(rng, *shape, dtype=dtype)
    result = run(Pseudoinverse(matrix=A))
    theirs = np.linalg.pinv(A, rtol=1e-10)
    assert result.certificate.rank == 12
    assert np.linalg.norm(result["pinv"] - theirs) < 1e-9 * np.linalg.norm(theirs)
    assert (penrose(A, result["pinv"]) < 1e-11).all()


def test_columns_of_all_sizes(rng):
    A = rng.standard_normal((500, 20)) * 10.0 ** rng.uniform(-6, 6, 20)
    result = run(Pseudoinverse(matrix=A))
    assert result.certificate.rank == 20
    ours, theirs = penrose(A, result["pinv"]), penrose(A, np.linalg.pinv(A, rtol=1e-15))
    assert (ours <= 10 * theirs + 1e-14).all()


def test_the_semi_normal_shortcut_would_not_do(rng):
    """The reason for the second factor: (RᴴR) X = Aᴴ takes one read less, and fails the fourth condition."""
    A = randsvd(rng, *SHAPES["tall"], 1e10)
    R = np.linalg.qr(A, mode="r")
    shortcut = np.linalg.solve(R, np.linalg.solve(R.T, A.T))
    assert penrose(A, shortcut)[3] > 1e3 * penrose(A, run(Pseudoinverse(matrix=A))["pinv"])[3]


def test_a_truncated_pseudoinverse_is_that_of_the_nearest_matrix_of_its_rank(rng, shape):
    A = randsvd(rng, *shape, 1e4)
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    nearest = U[:, :7] * s[:7] @ Vh[:7]
    result = run(Pseudoinverse(matrix=A, rank=7))
    assert result.certificate.rank == 7
    np.testing.assert_allclose(result["pinv"], np.linalg.pinv(nearest, rtol=1e-8), atol=1e-12)
    assert max(result.certificate.penrose.values()) < 1e-12


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 10])
def test_a_ridge_is_tikhonovs(rng, shape, ridge):
    A = randsvd(rng, *shape, 1e2)
    result = run(Pseudoinverse(matrix=A, ridge=ridge))
    m, n = shape
    theirs = np.linalg.solve(A.T @ A + ridge * np.eye(n), A.T) if m >= n else A.T @ np.linalg.inv(
        A @ A.T + ridge * np.eye(m)
    )  # fmt: skip
    np.testing.assert_allclose(result["pinv"], theirs, rtol=1e-9, atol=1e-11)
    assert result.certificate.penrose is None
    assert result.certificate.ridge_error < 1e-10


def test_a_side_needs_independence(rng):
    A = deficient(rng, 100, 20)
    with pytest.raises(BadData, match="side: left needs independent columns, and of the 20 columns only 12 are"):
        run(Pseudoinverse(matrix=A, side="left"))
    with pytest.raises(BadData, match="side: right needs independent rows, and of the 20 rows only 12 are"):
        run(Pseudoinverse(matrix=A.T, side="right"))
    with pytest.raises(PlanRefused, match="100 rows of length 20 cannot be"):
        make_plan(Pseudoinverse(matrix=A, side="right"))
    B = rng.standard_normal((100, 20))
    assert np.linalg.norm(run(Pseudoinverse(matrix=B, side="left"))["pinv"] @ B - np.eye(20)) < 1e-12
    assert np.linalg.norm(B.T @ run(Pseudoinverse(matrix=B.T, side="right"))["pinv"] - np.eye(20)) < 1e-12


def test_a_rank_above_the_shape_is_refused_before_reading():
    with pytest.raises(PlanRefused, match="rank 21 is asked for, and a matrix of 100 × 20 has at most rank 20"):
        make_plan(Pseudoinverse(matrix=np.ones((100, 20)), rank=21))


# From storage to storage

JOBS = {
    "qr": (lambda **given: QR(form="explicit", **given), "Q"),
    "svd": (lambda **given: SVD(vectors="both", **given), "U"),
    "pseudoinverse": (Pseudoinverse, "pinv"),
}
LAYOUTS = {
    "full-width chunks": {"chunks": (64, 12)},
    "a grid": {"chunks": (50, 5)},
    "one chunk": {"chunks": (1000, 12)},
    "one compressed chunk, larger than the array": {"chunks": (16_000, 20), "compressors": "auto"},
    "chunks of one row": {"chunks": (1, 12)},
    "compressed": {"chunks": (64, 12), "compressors": "auto"},
    "shards": {"chunks": (32, 12), "shards": (256, 12)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", JOBS)
def test_each_chunk_of_a_makes_one_chunk_of_the_result(save, tmp_path, kind, layout, rng):
    rows = 40 if layout == "chunks of one row" else 1000
    A = rng.standard_normal((rows, 12))
    make, name = JOBS[kind]
    matrix = save("A", A, **LAYOUTS[layout])
    result = run(make(matrix=matrix, output=f"{tmp_path}/result"))
    stored = zarr.open_array(f"{tmp_path}/result/{name}", mode="r")
    in_memory = run(make(matrix=A))
    np.testing.assert_allclose(stored[...], in_memory[name], atol=1e-12)
    chunk = min(rows, LAYOUTS[layout]["chunks"][0])
    assert stored.chunks == ((12, chunk) if name == "pinv" else (chunk, 12))
    assert np.array_equal(open_result(f"{tmp_path}/result")[name], stored[...])
    assert result.certificate == open_result(f"{tmp_path}/result").certificate


@pytest.mark.parametrize("compressor", ["none", "zstd", "blosc", "gzip"])
def test_large_results_are_compressed_as_asked_and_checked(save, tmp_path, compressor, rng):
    matrix = save("A", rng.integers(0, 3, (1000, 12)), (100, 12))
    result = run(Pseudoinverse(matrix=matrix, output=f"{tmp_path}/result", compressor=compressor))
    stored = zarr.open_array(f"{tmp_path}/result/pinv", mode="r")
    written = json.loads((tmp_path / "result/pinv/zarr.json").read_text())["codecs"]
    names = [codec["name"] for codec in written if codec["name"] != "bytes"]
    assert names == [*([] if compressor == "none" else [compressor]), "crc32c"]
    np.testing.assert_allclose(stored[...], run(Pseudoinverse(matrix=matrix))["pinv"], atol=1e-14)
    assert max(result.certificate.penrose.values()) < 1e-13


@pytest.mark.parametrize("kind", ["svd", "pseudoinverse"])
def test_a_wide_matrix_is_written_by_its_columns(save, tmp_path, kind, rng):
    A = rng.standard_normal((12, 1000))
    make, name = JOBS[kind]
    name = "Vt" if kind == "svd" else name
    matrix = save("A", A, (12, 64))
    run(make(matrix=matrix, output=f"{tmp_path}/result"))
    stored = zarr.open_array(f"{tmp_path}/result/{name}", mode="r")
    np.testing.assert_allclose(stored[...], run(make(matrix=A))[name], atol=1e-12)
    assert stored.chunks == ((12, 64) if kind == "svd" else (64, 12))


@pytest.mark.parametrize(
    "kind", [kind if kind == "svd" else pytest.param(kind, marks=pytest.mark.slow) for kind in JOBS]
)
def test_any_number_of_threads_and_workers_gives_the_same_bits(save, tmp_path, kind, rng):
    matrix = save("A", randsvd(rng, 5000, 12, 1e6), (100, 12), compressors=[Crc32cCodec()])
    make, name = JOBS[kind]

    def found(output, *where, **resources):
        method = {"name": "tsqr", "span_seconds": 1e-6}
        result = run(make(matrix=matrix, output=f"{tmp_path}/{output}", method=method), *where, **resources)
        assert result.summary["plan"]["spans"] == 50
        return open_result(f"{tmp_path}/{output}")[name].tobytes(), result.summary["certificate"]

    bits = [found(threads, resources=Resources(1, threads, 2**32)) for threads in (1, 2, 8)]
    with open_cluster(Local(processes=2, threads=1, memory="400 MiB")) as client:
        bits += [found("cluster", client), found("again", client)]
    assert all(one == bits[0] for one in bits)


@pytest.mark.parametrize("kind", JOBS)
def test_dask_arrays_are_taken_as_they_are(kind, rng, tmp_path):
    da = pytest.importorskip("dask.array")
    A = rng.standard_normal((1000, 8))
    make, name = JOBS[kind]
    chunks = ((300, 1, 499, 200), 8)
    result = run(make(matrix=da.from_array(A, chunks=chunks), output=f"{tmp_path}/result"))
    np.testing.assert_allclose(result[name], run(make(matrix=A))[name], atol=1e-12)


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (1, 1), (5, 1)])
def test_degenerate_shapes_do_what_numpy_does(kind, shape):
    make, _ = JOBS[kind]
    A = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    if kind == "qr" and shape == (0, 4):
        pytest.skip("wide")
    result = run(make(matrix=A))
    if kind == "pseudoinverse":
        np.testing.assert_allclose(result["pinv"], np.linalg.pinv(A), atol=1e-15)
    elif kind == "qr":
        np.testing.assert_allclose(result["Q"] @ result["R"], A, atol=1e-14)
    else:
        np.testing.assert_allclose(result["U"] * result["s"] @ result["Vt"], A, atol=1e-14)


@pytest.mark.parametrize("kind", JOBS)
def test_rows_with_nan_are_an_error_or_zeros(save, kind, rng):
    A = rng.standard_normal((300, 6))
    A[17, 2] = np.nan
    make, name = JOBS[kind]
    matrix = save("A", A, (50, 6))
    with pytest.raises(BadData, match=r"1 entry .* the first is at row 17, column 2"):
        run(make(matrix=matrix))
    result = run(make(matrix=matrix, nan="omit_rows"))
    A[17] = 0
    np.testing.assert_allclose(result[name], run(make(matrix=A))[name], atol=1e-12)
    assert (result.certificate.rows_used, result.certificate.rows_omitted) == (299, 1)


def test_rows_of_a_wide_matrix_are_not_left_out():
    with pytest.raises(PlanRefused, match=r"nan: omit_rows needs at least as many rows as columns.*5 × 100"):
        make_plan(Pseudoinverse(matrix=np.ones((5, 100)), nan="omit_rows"))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("kind", [*JOBS, "low_rank", "randomized", "pca", "wide pca"])
def test_a_real_matrix_has_a_complex_answer_where_that_is_asked_for(kind, dtype, rng):
    A = rng.standard_normal((60, 5))
    more = {
        "low_rank": (lambda **given: LowRank(rank=2, **given), "L"),
        "randomized": (lambda **given: SVD(values=2, vectors="both", method="block_krylov", **given), "U"),
        "pca": (lambda **given: PCA(scores=True, **given), "scores"),
        "wide pca": (PCA, "components"),
    }
    make, name = (JOBS | more)[kind]
    A = A.T if kind == "wide pca" else A
    asked, plain = run(make(matrix=A, dtype=dtype)), run(make(matrix=A))
    assert asked[name].dtype == dtype
    np.testing.assert_allclose(asked[name], plain[name], atol=1e-6)


@pytest.mark.parametrize("kind", [*JOBS, "low_rank", "truncated", "operator", "pivoted", "pca", "wide pca"])
def test_xarray_opens_every_kind_of_result(kind, rng, tmp_path):
    xarray = pytest.importorskip("xarray")
    A = deficient(rng, 60, 8, rank=4)
    more = {
        "low_rank": (lambda **given: LowRank(rank=2, **given), ""),
        "truncated": (lambda **given: SVD(values=3, vectors="both", **given), ""),
        "operator": (lambda **given: Pseudoinverse(form="operator", **given), ""),
        "pivoted": (lambda **given: QR(form="implicit", pivoting=True, **given), ""),
        "pca": (lambda **given: PCA(scores=True, n_components=2, **given), ""),
        "wide pca": (lambda **given: PCA(scores=True, scale=True, n_components=2, **given), ""),
    }
    A = A.T if kind == "wide pca" else rng.standard_normal((60, 8)) if kind == "qr" else A
    run((JOBS | more)[kind][0](matrix=A, output=f"{tmp_path}/result"))
    opened = xarray.open_zarr(f"{tmp_path}/result", consolidated=False)
    assert set(opened.data_vars) == set(open_result(f"{tmp_path}/result").names)


def test_integers_and_float32_answers(rng):
    A = rng.integers(-5, 6, (200, 5))
    result = run(Pseudoinverse(matrix=A, dtype="float32"))
    assert result["pinv"].dtype == np.float32
    np.testing.assert_allclose(result["pinv"], np.linalg.pinv(A), atol=1e-6)
    # The certificate is of what was stored.
    assert 1e-9 < result.certificate.penrose["AXA = A"] < 1e-5


@pytest.mark.parametrize("kind", JOBS)
def test_what_is_required_and_not_reached_is_said(kind, rng):
    make, _ = JOBS[kind]
    A = randsvd(rng, 200, 10, 1e4)
    result = run(make(matrix=A, require={"rank": 9, "condition_number": 10}))
    assert result.shortfalls == ("condition_number is 1e+04; at most 10 is required", "rank is 10; 9 is required")
    measure = "penrose" if kind == "pseudoinverse" else "orthogonality"
    short = run(make(matrix=A, require={measure: 1e-30})).shortfalls
    assert len(short) == 1
    assert short[0].startswith(f"{measure} is ")


@pytest.mark.parametrize("kind", JOBS)
def test_without_verify_nothing_is_claimed(kind, rng):
    make, _ = JOBS[kind]
    result = run(make(matrix=rng.standard_normal((200, 10)), verify=False))
    c = result.certificate
    assert not c.verified
    assert c.orthogonality is c.reconstruction_error is c.penrose is None
    assert "verify" not in result.summary["timings"]


def test_a_damaged_output_is_seen_by_the_verifying_read(save, tmp_path, rng, monkeypatch):
    """The last read holds what is stored against A, so a pseudoinverse that was not stored right is not certified."""
    from pipelines.passes import output

    def forgetful(url, start, block):
        write(url, start, block * (1 + 1e-3 * (start == 0)))

    write = output.storage.write_columns
    monkeypatch.setattr(output.storage, "write_columns", forgetful)
    matrix = save("A", rng.standard_normal((300, 6)), (100, 6))
    result = run(Pseudoinverse(matrix=matrix, output=f"{tmp_path}/result"))
    assert result.certificate.penrose["AXA = A"] > 1e-5


# Random blocks


def test_random_rows_depend_on_the_seed_and_their_place_alone():
    whole = gaussian(7, 0, 1000, 6)
    assert np.array_equal(whole[300:305], gaussian(7, 300, 305, 6))
    assert not np.array_equal(whole, gaussian(8, 0, 1000, 6))


def test_random_rows_are_standard_normal():
    from scipy.stats import kstest

    drawn = gaussian(1, 0, 20_000, 5)
    assert kstest(drawn.ravel(), "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.04
