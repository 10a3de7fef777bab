"""LAPACK's own test ratios, through the whole product: dqrt12, dqrt14, dqrt16, dqrt17, threshold 30.

Reference-LAPACK, TESTING/LIN: ddrvls drives its least-squares solvers with them.  A ratio is an error in units of
rounding, times the size of the problem: about 1 is as good as it gets, and above 30 LAPACK calls a solver broken.
"""

import numpy as np
import pytest
from scipy.linalg import lstsq

from pipelines import LeastSquares, run

EPS = np.finfo(np.float64).eps / 2
"""dlamch('Epsilon') = 2⁻⁵³."""
THRESHOLD = 30
MODES = ("one large", "one small", "geometric", "arithmetic", "random")
QUICK = ("one small", "geometric")
"""Modes that are tried in every run; the others find the same."""


# The ratios


def qrt12(s, expected):
    """Singular values: ‖s − s*‖₁ / (‖s*‖₁ min(m, n) eps), as ddrvls takes it for gelsd."""
    return np.abs(s - expected).sum() / ((np.abs(expected).sum() or 1) * len(s) * EPS) if len(s) else 0.0


def qrt14(A, x, rank):
    """Minimum norm: the part of x outside the row space of A, for x and A scaled to largest entry one.

    LAPACK takes the trailing triangle of a QR of [Aᴴ x], which is empty unless A is wide and of full rank; the
    right singular vectors of the rank of A say the same, and for deficient matrices too.
    """
    k = x.shape[1]
    V = np.linalg.svd(A)[2][:rank].conj().T
    scaled = x / (np.abs(x).max() or 1)
    return np.abs(scaled - V @ (V.conj().T @ scaled)).max() / (max(*A.shape, k) * EPS)


def qrt16(A, x, B):
    """Consistent problems: ‖B − A x‖₁ / (max(m, n) ‖A‖₁ ‖x‖₁ eps) of the worst right-hand side."""
    norms = np.abs(A).sum(axis=0).max() * np.abs(x).sum(axis=0) * max(A.shape) * EPS
    return (np.abs(B - A @ x).sum(axis=0) / np.where(norms > 0, norms, 1)).max()


def qrt17(A, x, B, *, consistent):
    """Least squares: ‖rᴴA‖₁ / (‖A‖₁ α max(m, n, k) eps), α = ‖B‖₁ when r should be zero, else the largest |r|."""
    r = B - A @ x
    alpha = np.abs(B).sum(axis=0).max() if consistent else np.abs(r).max()
    if alpha == 0:
        return 0.0
    one = np.abs(r.conj().T @ A).sum(axis=0).max()
    return one / (np.abs(A).sum(axis=0).max() * alpha * max(*A.shape, B.shape[1]) * EPS)


# The matrices


def randsvd(rng, m, n, condition, mode, dtype=float):
    """Random singular vectors, and min(m, n) singular values of a mode (N. J. Higham's gallery, dlatms)."""
    k = min(m, n)
    s = {
        "one large": np.r_[1, np.full(k - 1, 1 / condition)],
        "one small": np.r_[np.ones(k - 1), 1 / condition],
        "geometric": np.geomspace(1, 1 / condition, k),
        "arithmetic": np.linspace(1, 1 / condition, k),
        "random": np.sort(np.exp(-rng.random(k) * np.log(condition)))[::-1],
    }[mode]
    return orthogonal(rng, m, k, dtype) * s @ orthogonal(rng, n, k, dtype).conj().T, s


def orthogonal(rng, m, k, dtype):
    G = rng.standard_normal((m, k))
    return np.linalg.qr(G + 1j * rng.standard_normal((m, k)) if dtype is complex else G)[0]


def deficient(rng, m, n, rank, dtype=float):
    """dqrt15: exactly `rank` singular values, from 1 down to 0.1, the others zero up to rounding."""
    s = np.linspace(1, 0.1, rank)
    return orthogonal(rng, m, rank, dtype) * s @ orthogonal(rng, n, rank, dtype).conj().T, s


def right_hand_sides(rng, A, k, *, consistent):
    n = A.shape[1]
    return A @ rng.standard_normal((n, k)) if consistent else rng.standard_normal((A.shape[0], k)).astype(A.dtype)


SHAPES = [(60, 20), (50, 50), (20, 60), (200, 7), (7, 200)]


def limits(A, B, rank, *, consistent):
    """30 each, except where even the best solver must exceed it because the condition number κ is large.

    14: an x that is exact for a matrix u ‖A‖ away lies u κ ‖x‖ outside the row space of A.
    17: it leaves Aᴴr of about u κ ‖A‖ ‖r‖; there gelsd's own ratio reaches 1e7, and 30 times it is the limit.
    LAPACK tests neither with large κ.
    """
    s = np.linalg.svd(A, compute_uv=False)
    x = lstsq(A, B, cond=1e-3 * EPS if rank == min(A.shape) else 1e-10, lapack_driver="gelsd")[0]
    tilt, gelsd = s[0] / s[rank - 1] / max(A.shape), qrt17(A, x, B, consistent=consistent)
    return dict.fromkeys(("qrt12", "qrt16"), THRESHOLD) | {
        "qrt14": THRESHOLD * max(1, tilt),
        "qrt17": THRESHOLD * max(1, gelsd),
    }


def check(A, B, *, rank, s=None, consistent, job=None, **fields):
    """All ratios that apply, by name; `job` says where the arrays are stored, when they are."""
    result = run(LeastSquares(**({"matrix": A, "rhs": B} | (job or {}) | fields)))
    x, found = result.x, {}
    assert result.certificate.rank == rank
    if s is not None:
        found["qrt12"] = qrt12(result["singular_values"][: len(s)], s)
    if rank < A.shape[1]:
        found["qrt14"] = qrt14(A, x, rank)
    if consistent:
        found["qrt16"] = qrt16(A, x, B)
    if A.shape[0] > rank:
        found["qrt17"] = qrt17(A, x, B, consistent=consistent)
    most = limits(A, B, rank, consistent=consistent)
    assert {name: (value, most[name]) for name, value in found.items() if not value <= most[name]} == {}
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODES])
@pytest.mark.parametrize("power", range(16))
def test_randsvd_matrices_of_every_condition(shape, mode, power):
    rng = np.random.default_rng([*shape, power, MODES.index(mode)])
    A, s = randsvd(rng, *shape, 10.0**power, mode)
    for k, consistent in ((1, False), (2, True), (15, False)):
        B = right_hand_sides(rng, A, k, consistent=consistent)
        # rtol: nothing is cut, so that the ratios speak of the solver and not of the rank rule.
        check(A, B, rank=min(shape), s=s, consistent=consistent, rtol=0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [0, 6, 12])
def test_complex_matrices(shape, power):
    rng = np.random.default_rng([*shape, power])
    A, s = randsvd(rng, *shape, 10.0**power, "geometric", complex)
    for consistent in (False, True):
        B = right_hand_sides(rng, A, 3, consistent=consistent)
        check(A, B, rank=min(shape), s=s, consistent=consistent)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("percent", [30, 50, 90])
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_deficient_matrices(shape, percent, dtype):
    rng = np.random.default_rng([*shape, percent])
    rank = max(1, min(shape) * percent // 100)
    A, s = deficient(rng, *shape, rank, dtype)
    for k, consistent in ((1, False), (2, True), (15, False)):
        check(A, right_hand_sides(rng, A, k, consistent=consistent), rank=rank, s=s, consistent=consistent)


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e30, 1e60])
@pytest.mark.parametrize("shape", SHAPES)
def test_very_small_and_very_large_matrices(shape, scale):
    """ddrvls scales to near underflow and overflow; what is beyond 1e±70 is refused here, with a letter."""
    rng = np.random.default_rng([*shape])
    A, s = randsvd(rng, *shape, 100.0, "geometric")
    for consistent in (False, True):
        B = right_hand_sides(rng, A, 2, consistent=consistent)
        check(A * scale, B * scale, rank=min(shape), s=s * scale, consistent=consistent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("largest_first", [True, False])
def test_graded_columns(shape, largest_first):
    rng = np.random.default_rng([*shape, largest_first])
    n = min(shape)
    grades = np.geomspace(1, 1e-12, n)[:: 1 if largest_first else -1]
    A = rng.standard_normal((max(shape), n)) * grades
    A = A.T if shape[0] < shape[1] else A
    for consistent in (False, True):
        check(A, right_hand_sides(rng, A, 2, consistent=consistent), rank=n, consistent=consistent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["heavy first", "heavy last", "mixed"])
def test_rows_scaled_1e8_apart(shape, order):
    rng = np.random.default_rng([*shape, len(order)])
    m, n = shape
    scales = {"heavy first": np.geomspace(1e8, 1, m), "heavy last": np.geomspace(1, 1e8, m)}.get(
        order, 10.0 ** rng.integers(0, 9, m)
    )
    A = rng.standard_normal((m, n)) * scales[:, None]
    for consistent in (False, True):
        B = right_hand_sides(rng, A, 2, consistent=consistent) * (1 if consistent else scales[:, None])
        check(A, B, rank=min(m, n), consistent=consistent)


@pytest.mark.parametrize("k", [1, 2, 15])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 10, 50])
def test_the_sizes_of_lapacks_own_input_file(m, k):
    """dtest.in: M and N of 0, 1, 2, 3, 5, 10, 50; NRHS of 1, 2, 15."""
    for n in (1, 2, 3, 5, 10, 50):
        rng = np.random.default_rng([m, n, k])
        A, s = randsvd(rng, m, n, 100.0, "geometric")
        for consistent in (False, True):
            B = right_hand_sides(rng, A, k, consistent=consistent)
            check(A, B, rank=min(m, n), s=s, consistent=consistent)


@pytest.mark.parametrize("chunks", [(1, 20), (7, 3), (13, 20), (60, 1), (60, 20)])
@pytest.mark.parametrize("wide", [False, True])
def test_stored_matrices_in_odd_chunks(save, chunks, wide):
    rng = np.random.default_rng([*chunks, wide])
    for power in (0, 4, 8, 12, 15):
        A, s = randsvd(rng, 60, 20, 10.0**power, "geometric")
        A = A.T.copy() if wide else A
        for consistent in (False, True):
            B = right_hand_sides(rng, A, 2, consistent=consistent)
            matrix = save("A", A, chunks[::-1] if wide else chunks, overwrite=True)
            job = {"matrix": matrix, "rhs": save("B", B, (9, 1), overwrite=True)}
            check(A, B, rank=20, s=s, consistent=consistent, job=job, rtol=0.0)


def test_the_ratios_catch_normal_equations():
    """Known to be poor: at a condition of 1e6 their residual is not orthogonal to A."""
    rng = np.random.default_rng(1)
    A, _ = randsvd(rng, 60, 20, 1e6, "geometric")
    B = right_hand_sides(rng, A, 1, consistent=True)
    x = np.linalg.solve(A.T @ A, A.T @ B)
    assert qrt16(A, x, B) > THRESHOLD


def test_the_ratios_catch_a_solution_that_is_not_the_shortest():
    rng = np.random.default_rng(2)
    A, _ = deficient(rng, 60, 20, 10)
    B = right_hand_sides(rng, A, 1, consistent=False)
    x = np.linalg.pinv(A, rtol=1e-10) @ B
    assert qrt14(A, x, 10) <= THRESHOLD
    assert qrt14(A, x + 1e-10 * np.linalg.svd(A)[2][10:11].T, 10) > THRESHOLD
