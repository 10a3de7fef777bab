"""Where dask.array.linalg.lstsq fails or is silently wrong, and what is right.

Each case shows first that the Dask that is installed still does so: if a newer one is right, the test says it,
and the case can go from the documentation too.
"""

import dask.array as da
import numpy as np
import pytest

from pipelines import LeastSquares, run
from pipelines.errors import BadData

M, N = 1000, 10


@pytest.fixture
def clean():
    rng = np.random.default_rng(0)
    return rng.standard_normal((M, N)), rng.standard_normal(M)


def dask_lstsq(A, b, chunks):
    """What Dask answers, x, residuals, rank and singular values, or the error that it raises."""
    with np.errstate(all="ignore"):
        found = da.linalg.lstsq(da.from_array(A, chunks=chunks), da.from_array(b, chunks=chunks[0]))
        return tuple(np.asarray(part.compute(scheduler="sync")) for part in found)


def ours(A, b, chunks, **fields):
    """The same matrix as a dask array, which the product takes where its blocks are rows, or as it is in memory."""
    return run(LeastSquares(matrix=da.from_array(A, chunks=chunks), rhs=da.from_array(b, chunks=chunks[0]), **fields))


def assert_agrees(result, A, b):
    x, _, rank, _ = np.linalg.lstsq(A, b, rcond=None)
    assert result.certificate.rank == rank
    # Both are backward stable, and the condition numbers here are below 100.
    assert np.linalg.norm(result.x - x) <= 1e-12 * np.linalg.norm(x)
    assert float(result.residual_norm) == pytest.approx(np.linalg.norm(b - A @ x), rel=1e-12, abs=1e-12)


def dask_fails(A, b, chunks, *errors):
    """Dask raises one of these errors."""
    try:
        dask_lstsq(A, b, chunks)
    except errors:
        return
    pytest.fail(STILL)


STILL = "dask.array.linalg.lstsq is right in this case now: take it off the list of what Dask gets wrong"


def test_a_duplicate_column_gives_the_shortest_solution(clean):
    A, b = clean
    A[:, 9] = A[:, 0]
    shortest = np.linalg.norm(np.linalg.lstsq(A, b, rcond=None)[0])
    least = np.linalg.norm(b - A @ np.linalg.lstsq(A, b, rcond=None)[0]) ** 2
    x, residual, rank, _ = dask_lstsq(A, b, (250, N))
    assert rank == 9
    assert np.linalg.norm(x) > 1e6 * shortest, STILL  # 1e14 too long, and the rank that it reports is not used
    assert abs(residual - least) > 1e-6 * least, STILL
    assert_agrees(ours(A, b, (250, N)), A, b)


def test_a_zero_column_is_no_error(clean):
    A, b = clean
    A[:, 9] = 0
    dask_fails(A, b, (250, N), np.linalg.LinAlgError)
    assert_agrees(ours(A, b, (250, N)), A, b)


@pytest.mark.parametrize("chunks", [(10, 40), (5, 40), (10, 7)])
def test_a_wide_matrix_gives_the_minimum_norm_solution(chunks):
    rng = np.random.default_rng(1)
    A, b = rng.standard_normal((10, 40)), rng.standard_normal(10)
    dask_fails(A, b, chunks, ValueError, NotImplementedError)
    assert_agrees(ours(A, b, chunks), A, b)


@pytest.mark.parametrize("chunks", [(250, 5), (1000, 3), (333, 1)])
def test_chunks_in_both_directions_are_read(clean, save, chunks):
    A, b = clean
    dask_fails(A, b, chunks, ValueError, NotImplementedError)
    assert_agrees(ours(A, b, chunks), A, b)
    assert_agrees(run(LeastSquares(matrix=save("A", A, chunks), rhs=save("b", b))), A, b)


def test_chunks_with_fewer_rows_than_columns_are_read(clean):
    """Dask refuses them or needs much memory; here they are as any other."""
    A, b = clean
    assert_agrees(ours(A, b, (4, N)), A, b)


def graded():
    """Singular values 1, 1e-2, 1e-4, 1e-7, 1e-9, 1e-11."""
    rng = np.random.default_rng(2)
    s = 10.0 ** -np.array([0, 2, 4, 7, 9, 11])
    Q, V = np.linalg.qr(rng.standard_normal((M, 6)))[0], np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return Q * s @ V.T, rng.standard_normal(M), s


def test_small_singular_values_are_right():
    """Dask takes them from RᵀR, which squares the condition number: noise from 1e-8 on, and NaN."""
    A, b, s = graded()
    _, _, rank, theirs = dask_lstsq(A, b, (250, 6))
    theirs = np.sort(np.nan_to_num(theirs, nan=-1.0))[::-1]
    assert rank == 6
    assert np.abs(theirs[4:] / s[4:] - 1).max() > 0.01, STILL
    result = ours(A, b, (250, 6))
    assert result.certificate.rank == 6
    # Absolute errors are about u: the smallest, 1e-11, keeps five digits.
    np.testing.assert_allclose(result["singular_values"], s, rtol=1e-4)


def test_one_nan_is_found_and_named(clean):
    A, b = clean
    A[613, 4] = np.nan
    dask_fails(A, b, (250, N), np.linalg.LinAlgError, ValueError)  # neither says where it is
    with pytest.raises(BadData, match=r"1 entry .* at row 613, column 4 of the matrix"):
        ours(A, b, (250, N))
    keep = np.arange(M) != 613
    assert_agrees(ours(A, b, (250, N), nan="omit_rows"), A[keep], b[keep])


def test_a_complex_problem_is_solved_as_numpy_does(clean):
    """dask/dask#7053, mended since: no reason not to look."""
    A, b = clean
    A, b = A + 1j * A[::-1], b - 1j
    assert_agrees(ours(A, b, (250, N)), A, b)


def test_several_right_hand_sides_have_a_residual_each(clean):
    """dask/dask#6516, mended since."""
    A, b = clean
    B = np.column_stack([b, b[::-1], np.ones(M)])
    result = ours(A, B, (250, N))
    expected = np.sqrt(np.linalg.lstsq(A, B, rcond=None)[1])
    np.testing.assert_allclose(result.residual_norm, expected, rtol=1e-12)
