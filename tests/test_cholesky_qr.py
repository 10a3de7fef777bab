"""Cholesky QR with the triangle of a sample: as good as reflectors where it is taken, and told where it is not."""

import numpy as np
import pytest

from pipelines import PCA, QR, SVD, LeastSquares, LowRank, Pseudoinverse, make_plan, run
from pipelines.errors import BadData
from pipelines.kernels import panels
from pipelines.methods import cholesky_qr
from pipelines.methods.cholesky_qr import condition
from pipelines.passes.gram import Gram, packed, unpacked
from pipelines.plan import Resources
from tests.test_factors import deficient, penrose, randsvd
from tests.test_growth import MATRICES, RESIDUALS, M, backward_error
from workers.clusters import Local, open_cluster

U = np.finfo(np.float64).eps / 2
CHOLESKY, TSQR = {"method": "cholesky_qr"}, {"method": "tsqr"}
DIVIDED = {
    "condition 1e+02",
    "condition 1e+08",
    "heavy last rows",
    "one small singular value",
    "columns of all sizes",
    "rare indicators",
    "a direction that comes late",
}
"""Matrices of MATRICES that sums serve, if not for every right-hand side."""


def triangle(A, b, **method):
    """R of [A b], as a job leaves it: R, Qᴴb from x, and the norm of what is left."""
    result = run(LeastSquares(matrix=A, rhs=b, arrays=("R",), **method))
    R, x = result["R"], result.x
    return np.block([[R, (R @ x)[:, None]], [np.zeros((1, len(x))), result["residual_norm"]]]), result


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_backward_error_is_that_of_reflectors(name, residual):
    rng = np.random.default_rng(sum(map(ord, name)))
    A = MATRICES[name](rng)
    fit, noise = A @ rng.standard_normal(A.shape[1]), rng.standard_normal(M)
    b = fit + residual * noise * np.linalg.norm(fit) / np.linalg.norm(noise)
    ours, theirs = (backward_error(A, b, triangle(A, b, **method)[0]) for method in (CHOLESKY, TSQR))
    assert ours <= 4 * theirs + 4


@pytest.mark.parametrize("name", MATRICES)
def test_the_triangle_is_that_of_the_rows(name):
    """RᴴR − AᴴA, columns scaled to norm one: reflectors leave 5 to 20 u of that."""
    rng = np.random.default_rng(sum(map(ord, name)))
    A = MATRICES[name](rng)
    result = run(QR(matrix=A, **CHOLESKY))
    R, exact = result["R"].astype(np.longdouble), A.astype(np.longdouble)
    G = exact.T @ exact
    d = np.sqrt(G.diagonal())
    assert float((np.abs(R.T @ R - G) / np.outer(d, d)).max()) < 150 * U
    assert bool(result.certificate.warnings) == (name not in DIVIDED)


def test_dividing_by_a_triangle_that_amplifies_errors_would_spoil_r(monkeypatch):
    """The reason for MOST_AMPLIFIED; when this fails, it can go."""
    A = MATRICES["nearly one column"](np.random.default_rng(0))
    monkeypatch.setattr(cholesky_qr, "MOST_AMPLIFIED", np.inf)
    result = run(QR(matrix=A, **CHOLESKY))
    assert not result.certificate.warnings
    R, d = result["R"], np.linalg.norm(A, axis=0)
    assert (np.abs(R.T @ R - A.T @ A) / np.outer(d, d)).max() > 1e6 * U


def test_accepting_any_sum_would_spoil_x(monkeypatch):
    """The reason for MOST_ACCEPTED and MOST_NEW: rows that dwarf the sample, in one direction each."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((M, 40))
    A[3000] *= 1e8
    b = A @ np.linspace(-1, 1, 40) + rng.standard_normal(M)
    assert backward_error(A, b, triangle(A, b, **CHOLESKY)[0]) < 20
    monkeypatch.setattr(cholesky_qr, "MOST_ACCEPTED", np.inf)
    monkeypatch.setattr(cholesky_qr, "MOST_NEW", np.inf)
    R, result = triangle(A, b, verify=False, **CHOLESKY)
    assert not [note for note in result.certificate.warnings if "TSQR" in note]
    assert backward_error(A, b, R) > 1e4


def test_a_few_heavy_rows_go_through_reflectors_and_the_others_are_summed():
    rng = np.random.default_rng(2)
    A = rng.standard_normal((M, 40))
    A[5000] *= 1e6
    result = run(QR(matrix=A, **CHOLESKY))
    assert not result.certificate.warnings
    d = np.linalg.norm(A, axis=0)
    R = result["R"]
    assert (np.abs(R.T @ R - A.T @ A) / np.outer(d, d)).max() < 100 * U


@pytest.mark.parametrize(
    ("A", "said"),
    [
        (np.ones((M, 3)) * [1, 2, 3], "the triangle of a sample of 32 rows is too ill-conditioned to divide by"),
        (np.eye(300)[:, :40], "a sample of 328 rows is not much less than all 300"),
    ],
)
def test_what_is_not_accepted_is_said(A, said):
    result = run(LeastSquares(matrix=A, rhs=np.ones(len(A)), **CHOLESKY))
    assert f"R is TSQR's and not from sums of products: {said}" in result.certificate.warnings


def test_a_direction_that_the_sample_lacks_costs_a_read_and_is_said():
    rng = np.random.default_rng(3)
    A = rng.standard_normal((40_000, 30))
    A[:, 7] = A[:, 6] + 1e-3 * rng.standard_normal(40_000)
    rows = slice(10_000, 10_400)  # between the pieces of the sample
    A[rows, 7] += 0.5 * rng.standard_normal(400)
    A[rows, 7] *= 1.0
    result = run(LeastSquares(matrix=A, rhs=np.ones(40_000), **CHOLESKY))
    notes = [note for note in result.certificate.warnings if "TSQR" in note]
    assert not notes or "a condition number of" in notes[0]
    x = np.linalg.lstsq(A, np.ones(40_000))[0]
    np.testing.assert_allclose(result.x, x, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128, np.int16])
@pytest.mark.parametrize("k", [None, 1, 3, 60])
def test_every_type_and_number_of_right_hand_sides(dtype, k):
    rng = np.random.default_rng(4)
    A, b = rng.standard_normal((6000, 20)), rng.standard_normal((6000, k or 1))
    if np.dtype(dtype).kind == "c":
        A, b = A + 1j * rng.standard_normal(A.shape), b + 1j * rng.standard_normal(b.shape)
    A = (A * 100).astype(dtype)
    b = b if k else b[:, 0]
    w = rng.random(6000)
    for weights in (None, w):
        result = run(LeastSquares(matrix=A, rhs=b, weights=weights, **CHOLESKY))
        root = np.ones(6000) if weights is None else np.sqrt(w)
        x = np.linalg.lstsq(root[:, None] * A.astype(np.result_type(dtype, float)), (root * b.T).T)[0]
        np.testing.assert_allclose(result.x, x, rtol=1e-10, atol=1e-13)
        assert not [note for note in result.certificate.warnings if "TSQR" in note]


def test_every_kind_of_job_can_use_it():
    rng = np.random.default_rng(5)
    A = randsvd(rng, 6000, 24, 1e3)
    s = np.linalg.svd(A, compute_uv=False)
    Q = run(QR(matrix=A, form="explicit", **CHOLESKY))["Q"]
    assert np.linalg.norm(Q.T @ Q - np.eye(24)) < 1e-13
    np.testing.assert_allclose(run(SVD(matrix=A, **CHOLESKY))["s"], s, rtol=0, atol=100 * U * s[0])
    X = run(Pseudoinverse(matrix=A, **CHOLESKY))["pinv"]
    assert penrose(A, X).max() < 1e-11
    low = run(LowRank(matrix=A, rank=5, **CHOLESKY))
    assert np.linalg.norm(A - low["L"] @ low["R"]) == pytest.approx(np.linalg.norm(s[5:]), rel=1e-9)
    centred = np.linalg.svd(A + 3 - (A + 3).mean(axis=0), compute_uv=False)
    pca = run(PCA(matrix=A + 3, **CHOLESKY))
    np.testing.assert_allclose(pca["explained_variance"], centred**2 / 5999, rtol=0, atol=1e-13 * centred[0] ** 2)
    wide = run(LeastSquares(matrix=np.ascontiguousarray(A.T), rhs=np.ones(24), **CHOLESKY))
    np.testing.assert_allclose(wide.x, np.linalg.lstsq(A.T, np.ones(24))[0], rtol=1e-9, atol=1e-8)
    assert wide.certificate.rank == 24


def test_the_rank_of_a_deficient_matrix_is_found():
    A = deficient(np.random.default_rng(6), 6000, 30)
    result = run(LeastSquares(matrix=A, rhs=np.ones(6000), **CHOLESKY))
    assert result.certificate.rank == 12
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, np.ones(6000), rcond=1e-12)[0], rtol=1e-8)


@pytest.mark.parametrize("method", ["cholesky_qr", "gram"])
def test_all_that_is_not_finite_is_counted_wherever_it_lies(method):
    A = np.random.default_rng(7).standard_normal((20_000, 20))
    A[[0, 10_001, 19_999], [3, 5, 7]] = np.nan, np.inf, np.nan
    with pytest.raises(BadData, match=r"3 entries of the matrix .* the first is at row 0, column 3"):
        run(LeastSquares(matrix=A, rhs=np.ones(20_000), method=method))
    result = run(LeastSquares(matrix=A, rhs=np.ones(20_000), method=method, nan="omit_rows"))
    kept = np.isfinite(A).all(axis=1)
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A[kept], np.ones(19_997))[0], rtol=1e-9)
    assert result.certificate.rows_omitted == 3


def test_any_number_of_workers_gives_the_same_bits(save):
    rng = np.random.default_rng(8)
    stored = {"matrix": save("A", rng.standard_normal((20_000, 24)), (500, 24)),
              "rhs": save("b", rng.standard_normal(20_000), (500,))}  # fmt: skip
    method = {"name": "cholesky_qr", "span_seconds": 1e-9}
    job = LeastSquares(**stored, method=method)
    expected = run(job, resources=Resources(1, 1, 2**40)).x
    assert np.array_equal(run(job, resources=Resources(1, 8, 2**40)).x, expected)
    with open_cluster(Local(processes=2, memory="300 MiB", dashboard=False)) as client:
        assert np.array_equal(run(job, client).x, expected)


# Which method


@pytest.mark.parametrize(
    ("shape", "method"),
    [((10**7, 127), "tsqr"), ((10**6, 128), "cholesky_qr"), ((30_000, 512), "tsqr"), ((10**8, 4000), "cholesky_qr")],
)
def test_the_shape_decides(declared, shape, method):
    fields = declared(*shape, (1000, shape[1]))
    plan = make_plan(LeastSquares(**fields), Resources(4, 1, 2**40))
    assert plan.method == method
    assert [one.name for one in plan.passes] == ["sample"] * (method == "cholesky_qr") + ["factor", "verify"]
    if method == "cholesky_qr":
        assert plan.passes[0].bytes < plan.passes[1].bytes / 4
        assert "comes first, so that products of all others can be summed" in plan.reason


# Gram


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize(("kappa", "tsqr"), [(1, False), (1e2, False), (1e4, False), (1e7, True), (1e13, True)])
def test_gram_refines_x_until_it_is_as_good_as_any_other_or_leaves_it_to_tsqr(kappa, tsqr, noise):
    rng = np.random.default_rng(9)
    A = randsvd(rng, M, 40, kappa)
    b = A @ rng.standard_normal(40)
    b += noise * np.linalg.norm(b) / M**0.5 * rng.standard_normal(M)
    R, result = triangle_of_x(A, b)
    assert result.certificate.backward_error < 8 * U * 40**0.5
    assert backward_error(A, b, R) < 8 * 40**0.5
    assert any("TSQR" in note for note in result.certificate.warnings) == tsqr


def triangle_of_x(A, b):
    """[R Rx; 0 ρ] of the x that gram finds, R being LAPACK's."""
    result = run(LeastSquares(matrix=A, rhs=b, method="gram"))
    R = np.linalg.qr(A, mode="r")
    return np.block([[R, (R @ result.x)[:, None]], [np.zeros((1, 40)), result["residual_norm"]]]), result


def test_an_x_that_refinement_does_not_save_is_found_again_by_tsqr(monkeypatch):
    monkeypatch.setattr(cholesky_qr, "MOST_REFINED", 1e8)
    A = randsvd(np.random.default_rng(10), M, 40, 3e7)
    result = run(LeastSquares(matrix=A, rhs=A @ np.ones(40), method="gram"))
    notes = [note for note in result.certificate.warnings if "TSQR" in note]
    assert (
        "x is TSQR's: with `method: gram` its backward error was " in notes[0]
        or "came out for what was summed" in notes[0]
    )
    assert result.certificate.backward_error < 8 * U * 40**0.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"verify": False}, "verify: true with `method: gram`, whose x counts only as far as a read has measured"),
        ({"arrays": ("R",)}, "another method than gram for R, which it finds to half of the digits only"),
    ],
)
def test_gram_promises_nothing_that_it_does_not_measure(fields, said):
    with pytest.raises(ValueError, match=said):
        LeastSquares(matrix=np.ones((9, 2)), rhs=np.ones(9), method="gram", **fields)


# Parts


def test_a_packed_triangle_is_one():
    G = np.triu(np.random.default_rng(11).standard_normal((7, 7)))
    assert packed(G + np.tril(np.ones((7, 7)), -1)).shape == (28,)
    assert np.array_equal(unpacked(packed(G), 7), G)
    assert packed(np.zeros((0, 0))).shape == (0,)


def test_the_condition_is_of_scaled_columns():
    R = np.triu(np.random.default_rng(12).standard_normal((30, 30))) + 6 * np.eye(30)
    assert condition(R * 10.0 ** np.arange(-15, 15)) == pytest.approx(
        np.linalg.cond(R / np.linalg.norm(R, axis=0)), rel=0.5
    )
    assert condition(np.zeros((0, 0))) == 1


# Wide states


@pytest.fixture
def wide_states(monkeypatch):
    """Matrices of 40 columns are treated as those of thousands."""
    monkeypatch.setattr(panels, "FROM_COLUMNS", 40)
    monkeypatch.setattr(panels, "PANEL", 7)


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_one_state_in_a_process_gives_the_same_bits_on_any_number_of_threads(wide_states, condition, monkeypatch):
    at_once, most = [0], [0]
    absorb = Gram.absorb

    def counted(self, state, slab):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            return absorb(self, state, slab)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(Gram, "absorb", counted)
    A = randsvd(np.random.default_rng(13), 30_000, 40, condition)
    job = LeastSquares(matrix=A, rhs=A.sum(axis=1), method={"name": "cholesky_qr", "span_seconds": 1e-9})
    found = [run(job, resources=Resources(1, threads, 2**40)) for threads in (1, 2, 5)]
    assert all(np.array_equal(one.x, found[0].x) for one in found)
    assert not [note for note in found[0].certificate.warnings if "TSQR" in note]
    assert found[0].certificate.backward_error < 8 * U * 40**0.5
    assert most[0] == 1


def test_wide_states_are_planned_once_for_a_process(declared):
    job = LeastSquares(**declared(10**6, 5000, (400, 5000)))
    one, sixteen = (make_plan(job, Resources(1, threads, 2**40)).peak_bytes_per_worker for threads in (1, 16))
    assert one == sixteen
    assert one < 20 * 5001**2 * 8


def test_a_panel_is_a_product_of_its_own():
    rng = np.random.default_rng(14)
    W, P, G = rng.standard_normal((50, 1100)), np.asfortranarray(np.triu(rng.standard_normal((1100, 1100)))), None
    for threads in (1, 3):
        panels.use_threads(threads)
        G = np.zeros((1100, 1100), order="F")
        panels.add_gram(W, G)
        panels.add_gram(W, G)
        np.testing.assert_allclose(np.triu(G), np.triu(2 * W.T @ W), rtol=0, atol=1e-11)
        np.testing.assert_allclose(panels.divided(W, P, np.empty_like(W)), W @ P, rtol=0, atol=1e-10)
