"""The certificate's bound against exact arithmetic, where units, ridges and zeros make it hard to be right."""

from fractions import Fraction

import numpy as np
import pytest

from pipelines import LeastSquares, open_result, run
from pipelines.errors import BadData


def exact(A, b, ridge=0.0):
    """The solution of (AᵀA + λI) x = Aᵀb in rational arithmetic, rounded once."""
    m, n = A.shape
    rows = [[Fraction(float(value)) for value in (*A[i], b[i])] for i in range(m)]
    M = [[sum(row[i] * row[j] for row in rows) for j in range(n + 1)] for i in range(n)]
    for i in range(n):
        M[i][i] += Fraction(ridge)
    for i in range(n):
        pivot = next(r for r in range(i, n) if M[r][i])
        M[i], M[pivot] = M[pivot], M[i]
        M[i] = [value / M[i][i] for value in M[i]]
        for r in range(n):
            if r != i:
                M[r] = [x - M[r][i] * y for x, y in zip(M[r], M[i], strict=True)]
    return np.array([float(row[n]) for row in M])


def error_and_bound(A, b, **fields):
    result = run(LeastSquares(matrix=A, rhs=b, **fields))
    x = exact(A, b, fields.get("ridge", 0.0))
    return np.linalg.norm(result.x - x) / np.linalg.norm(x), result.certificate.forward_error_bound


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-10, 1e-12, 1e-14, 1e-20])
@pytest.mark.parametrize("seed", range(5))
def test_columns_that_are_nearly_one_in_units_of_their_own(scale, seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((8, 4))
    A[:, 2] = A[:, 1] + 1e-8 * A[:, 2]
    A[:, 1:3] *= scale
    error, bound = error_and_bound(A, rng.standard_normal(8))
    assert error <= bound < 1e-4


def test_a_block_of_columns_in_units_of_its_own():
    t = np.linspace(1, 2, 20)
    error, bound = error_and_bound(np.column_stack([1e-20 * np.vander(t, 10), np.sin(50 * t)]), np.cos(9 * t))
    assert error <= bound < 1e-3


@pytest.mark.parametrize("ridge", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("case", ["integers", "equations twice"])
def test_a_ridge_on_a_wide_deficient_matrix_with_equations_that_contradict_each_other(case, ridge):
    A, b = np.array([[1.0, 2, 3, 4], [2, 4, 6, 8], [1, 0, 1, 0]]), np.array([1.0, 0, 0])
    if case == "equations twice":
        rng = np.random.default_rng(0)
        A = rng.standard_normal((6, 9))
        A[3:], b = A[:3], rng.standard_normal(6)
    error, bound = error_and_bound(A, b, ridge=ridge)
    assert error <= bound


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12, 1e-20, 1e20])
def test_a_zero_column_beside_columns_in_any_units(scale):
    A = np.random.default_rng(0).standard_normal((50, 6)) * scale
    A[:, 2] = 0
    result = run(LeastSquares(matrix=A, rhs=A @ np.ones(6)))
    assert np.abs(result.x - [1, 1, 0, 1, 1, 1]).max() < 1e-14
    assert result.certificate.correct_digits >= 13


def test_an_x_below_the_smallest_float_has_no_correct_digits():
    A = 1e-30 * np.array([[1.0, 2], [3, 4], [5, 7]])
    assert run(LeastSquares(matrix=A, rhs=np.ones(3), ridge=1.0)).certificate.correct_digits == 0


@pytest.mark.parametrize("b", [[0.0, 0, 0], [0.0, 0, 1]])
def test_an_x_that_is_zero_for_good_reason_has_all_of_them(b):
    A = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert run(LeastSquares(matrix=A, rhs=np.array(b))).certificate.correct_digits == 15


def test_single_rows_or_columns_too_small_for_their_square_are_refused():
    column = np.random.default_rng(0).standard_normal((30, 4)) * [1, 1e-165, 1, 1]
    with pytest.raises(
        BadData, match=r"The norm of column 1 of the matrix .* is 5\.0e-165, .* Multiply the column by 1e\+164"
    ):
        run(LeastSquares(matrix=column, rhs=np.ones(30)))
    row = np.array([[1.0, 2, 3], [4e-155, 5e-155, 7e-155]])
    with pytest.raises(BadData, match=r"The norm of row 1 of the matrix .* is 9\.5e-155"):
        run(LeastSquares(matrix=row, rhs=np.ones(2)))


@pytest.mark.filterwarnings("error")
def test_a_column_that_is_tiny_at_first_raises_no_warning():
    A = np.random.default_rng(0).standard_normal((4000, 40))
    A[:1500, 3] *= 1e-300
    result = run(LeastSquares(matrix=A, rhs=np.ones(4000), method={"name": "tsqr", "slab_bytes": 30_000}))
    assert result.certificate.backward_error < 1e-15


def test_many_nearly_equal_pairs_of_columns_lose_nothing_to_products():
    rng = np.random.default_rng(1)
    G, b = rng.standard_normal((20_000, 63)), rng.standard_normal(20_000)
    A = G.copy()
    A[:, 1::2] = A[:, 0:-1:2] + 2e-3 * G[:, 1::2]
    assert run(LeastSquares(matrix=A, rhs=b)).certificate.backward_error < 4e-16


@pytest.mark.parametrize("shape", [(300, 6), (6, 300)])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("condition", [1e1, 1e5])
def test_digits_that_a_narrower_number_type_takes_are_not_promised(tmp_path, shape, dtype, condition):
    random = np.random.default_rng(8)
    U, _, Vh = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    A = (U * np.geomspace(1, 1 / condition, 6)) @ Vh
    b = A @ random.standard_normal((shape[1], 2)) + (shape[0] > 6) * random.standard_normal((shape[0], 2))
    if dtype == "complex64":
        A, b = A * (1 + 1j), b * (2 - 1j)
    exact = np.linalg.lstsq(A, b)[0]
    for output in (None, f"{tmp_path}/out"):
        result = run(LeastSquares(matrix=A, rhs=b, dtype=dtype, output=output))
        x = result["x"] if output is None else open_result(output).x
        assert x.dtype == dtype
        error = np.linalg.norm(x - exact, axis=0) / np.linalg.norm(exact, axis=0)
        assert (error > 1e-9).all()
        assert (error <= result["forward_error_bound"]).all()
        assert (result["forward_error_bound"] < 1e-6 * condition**2).all()
        assert result.certificate.correct_digits <= 7
        assert result.certificate.backward_error > 1e-12


def test_an_answer_that_does_not_fit_into_its_type_is_refused():
    A, b = np.eye(5, 3), np.full(5, 1e39)
    with pytest.raises(BadData, match=r"An entry of the answer is 1.0e\+39, and `dtype: float32` has room .*3.4e\+38"):
        run(LeastSquares(matrix=A, rhs=b, dtype="float32"))
    with pytest.raises(BadData, match=r"An entry of the answer is 1.0e\+39"):
        run(LeastSquares(matrix=A.T, rhs=b[:3], dtype="float32"))


@pytest.mark.parametrize(("rank", "n"), [(1, 20), (1, 300), (2, 200)])
def test_digits_taken_outside_the_span_of_the_rows_are_not_promised(rank, n):
    random = np.random.default_rng(rank + n)
    A = random.standard_normal((max(400, n + 100), rank)) @ random.standard_normal((rank, n))
    b = random.standard_normal(len(A))
    result = run(LeastSquares(matrix=A, rhs=b, dtype="float32"))
    exact = np.linalg.pinv(A, rcond=1e-10) @ b
    error = np.linalg.norm(result.x - exact) / np.linalg.norm(exact)
    assert 1e-9 < error <= result.certificate.forward_error_bound < 1e-6


def test_an_answer_that_vanishes_in_its_type_promises_nothing():
    A = np.full((3, 300), 1e30) * np.random.default_rng(0).uniform(0.5, 1, (3, 300))
    result = run(LeastSquares(matrix=A, rhs=np.array([1.0, 2.0, 3.0]) * 1e-30, dtype="float32"))
    assert not result.x.any()
    assert result.certificate.correct_digits == 0
    assert result.certificate.forward_error_bound == np.inf
