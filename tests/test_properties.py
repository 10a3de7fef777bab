"""The product agrees with numpy.linalg.lstsq, whatever the shape, the type, the rank and the chunks."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, run
from pipelines.errors import BadData

U = np.finfo(np.float64).eps / 2
DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int32",
    "int64",
    "uint8",
    "uint64",
    "bool",
    "complex64",
    "complex128",
]

few = settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 40))


def numbers(shape, dtype, rng):
    """Numbers of a type that it holds exactly, with a good spread."""
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind in "iu":
        return rng.integers(0 if kind == "u" else -100, 100, shape).astype(dtype)
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if kind == "c" else real).astype(dtype)


@st.composite
def problems(draw, dtypes=DTYPES, sizes=SIZES):
    """(A, b): of full rank, or with a rank that has a clear gap below it."""
    m, n = draw(sizes), draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    A = numbers((m, n), dtype, rng)
    if draw(st.booleans()) and min(m, n) > 1 and np.dtype(dtype).itemsize >= 8 and np.dtype(dtype).kind in "fci":
        rank = draw(st.integers(0, min(m, n) - 1))
        left, right = numbers((m, rank), dtype, rng), numbers((rank, n), dtype, rng)
        A = (left @ right).astype(dtype)
    b_dtype = draw(st.sampled_from(["float64", dtype]))
    k = draw(st.sampled_from([None, 0, 1, 2, 7]))
    return A, numbers((m,) if k is None else (m, k), b_dtype, rng)


@st.composite
def ways_to_store(draw, shape):
    """Keywords of zarr.create_array: 2-D chunk grids, ragged last chunks, shards, v2 and v3, compressed or not."""
    chunks = tuple(draw(st.one_of(st.just(1), st.just(max(1, size)), st.integers(1, max(1, size)))) for size in shape)
    version = draw(st.sampled_from([2, 3]))
    options = {"chunks": chunks, "zarr_format": version}
    if version == 3:
        options["compressors"] = draw(st.sampled_from([None, [ZstdCodec()], [Crc32cCodec()]]))
        if draw(st.booleans()):
            options["shards"] = tuple(c * draw(st.integers(1, 3)) for c in chunks)
    else:
        options["compressors"] = draw(st.sampled_from([None, "auto"]))
    return options


def store(folder, name, array, options):
    made = zarr.create_array(
        Path(folder) / name, shape=array.shape, dtype=array.dtype, config={"write_empty_chunks": True}, **options
    )
    made[...] = array
    return str(Path(folder) / name)


def reference(A, b, ridge=0.0):
    """NumPy's answer in double precision, with its rank and singular values; NumPy's rule of rank for both."""
    A, b = wide_enough(A), wide_enough(b)
    m, n = A.shape
    k = b.reshape(m, -1).shape[1] if m else int(np.prod(b.shape[1:]))
    if ridge:
        A = np.vstack([A, np.sqrt(ridge) * np.eye(n)])
        b = np.concatenate([b, np.zeros((n, *b.shape[1:]), b.dtype)])
    if not (k and A.size):
        return np.zeros((n, *b.shape[1:]), np.result_type(A, b)), 0, np.zeros(0)
    x, _, rank, s = np.linalg.lstsq(A, b, rcond=None)
    return x, int(rank), s


def wide_enough(a):
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def tolerance(A, x, b, s, rank):
    """What rounding allows between two backward stable answers: u (κ + κ² ‖r‖/(‖A‖‖x‖)), times the size."""
    if not rank:
        return 0.0
    kappa, A = s[0] / s[rank - 1], wide_enough(A)
    r = np.linalg.norm(wide_enough(b) - A @ x)
    return 100 * U * sum(A.shape) * (kappa * np.linalg.norm(x) + kappa**2 * r / s[0])


def check(A, b, result, expected=None, ridge=0.0):
    """x, rank and residual norm are those of NumPy, up to what rounding allows."""
    x, rank, s = expected or reference(A, b, ridge)
    full = np.vstack([wide_enough(A), np.sqrt(ridge) * np.eye(A.shape[1])]) if ridge else A
    target = np.concatenate([b, np.zeros((A.shape[1], *b.shape[1:]))]) if ridge else b
    assert result.x.shape == x.shape
    assert result.x.dtype == x.dtype
    assert np.isfinite(result.x).all()
    if x.size and A.size:
        assert result.certificate.rank == (min(A.shape) if ridge else rank)
        assert np.linalg.norm(result.x - x) <= tolerance(full, x, target, s, rank)
    r = wide_enough(b) - wide_enough(A) @ result.x
    norms = np.sqrt((np.abs(r) ** 2).sum(axis=0)) if A.shape[0] else np.zeros(b.shape[1:])
    size = np.linalg.norm(wide_enough(A)) * np.linalg.norm(result.x) + np.linalg.norm(wide_enough(b))
    np.testing.assert_allclose(result.residual_norm, norms, rtol=1e-10, atol=100 * U * size)


@few
@given(problems())
def test_arrays_in_memory_are_solved_as_numpy_does(problem):
    A, b = problem
    check(A, b, run(LeastSquares(matrix=A, rhs=b)))


@settings(few, max_examples=40)
@given(problems(), st.data())
def test_stored_arrays_are_solved_as_numpy_does(problem, data):
    A, b = problem
    folder = tempfile.mkdtemp()
    try:
        matrix = store(folder, "A", A, data.draw(ways_to_store(A.shape)))
        rhs = store(folder, "b", b, data.draw(ways_to_store(b.shape)))
        check(A, b, run(LeastSquares(matrix=matrix, rhs=rhs)))
        cut = {"name": "tsqr", "span_seconds": 1e-9, "slab_bytes": 512}  # as many tasks and slabs as can be
        check(A, b, run(LeastSquares(matrix=matrix, rhs=rhs, method=cut)))
    finally:
        shutil.rmtree(folder)


DOUBLES = ["float64", "complex128"]
SOME = st.integers(1, 30)


@few
@given(problems(DOUBLES, SOME), st.data())
def test_weights_are_square_roots_on_rows(problem, data):
    """Weights 0 and 1e8 apart: NumPy gets rows times √w, and without those of weight 0."""
    A, b = problem
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    w = 10.0 ** rng.integers(-4, 5, len(A)) * (rng.random(len(A)) < data.draw(st.sampled_from([0.5, 1.0])))
    rows = (np.sqrt(w)[:, None] * A)[w > 0], (np.sqrt(w).reshape(-1, *[1] * (b.ndim - 1)) * b)[w > 0]
    result = run(LeastSquares(matrix=A, rhs=b, weights=w))
    check_rows(result, *rows)


def check_rows(result, A, b):
    """The solution of a problem that differs from A by rows that do not count."""
    x, rank, s = reference(A, b)
    if x.size and A.size and clear(s, rank):
        assert result.certificate.rank == rank
        assert np.linalg.norm(result.x - x) <= 100 * tolerance(A, x, b, s, rank)
    if result.x.size:
        r = b - A @ result.x
        size = np.linalg.norm(A) * np.linalg.norm(result.x) + np.linalg.norm(b)
        norms = np.sqrt((np.abs(r) ** 2).sum(axis=0))
        np.testing.assert_allclose(result.residual_norm, norms, rtol=1e-8, atol=1000 * U * size)


def clear(s, rank):
    """There is no singular value in the grey zone of the rank rules."""
    return rank and s[rank - 1] > 1e-10 * s[0] and (rank == len(s) or s[rank] < 1e-14 * s[0])


@few
@given(problems(DOUBLES, SOME), st.sampled_from([1e-6, 1e-2, 1.0, 1e6]))
def test_a_ridge_is_numpy_on_the_augmented_system(problem, ridge):
    A, b = problem
    check(A, b, run(LeastSquares(matrix=A, rhs=b, ridge=ridge)), ridge=ridge)


@few
@given(problems(DOUBLES, SOME), st.data())
def test_rows_with_nan_are_left_out(problem, data):
    """NumPy gets the clean rows; with a wide A, rows are equations all the same."""
    A, b = problem
    A, b = A.copy(), b.copy()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bad = rng.random(len(A)) < 0.3
    for row in np.flatnonzero(bad):
        A[row, rng.integers(A.shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    if b.size and rng.random() < 0.5:
        row = rng.integers(len(A))
        b[row], bad[row] = np.nan, True
    job = LeastSquares(matrix=A, rhs=b, nan="omit_rows")
    if bad.all() and len(A):
        with pytest.raises(BadData, match="leaves nothing"):
            run(job)
        return
    result = run(job)
    assert result.certificate.rows_omitted == bad.sum()
    assert result.certificate.rows_used == (~bad).sum()
    check_rows(result, A[~bad], b[~bad])


@few
@given(problems(DOUBLES, SOME))
def test_the_answer_satisfies_the_conditions_of_penrose(problem):
    """Aᴴ(b − A x) = 0 and x in the range of Aᴴ: together they say minimum-norm least squares, without NumPy's help."""
    A, b = problem
    result = run(LeastSquares(matrix=A, rhs=b))
    x, rank = result.x.reshape(A.shape[1], -1), result.certificate.rank
    if not (rank and x.size):
        return
    _, s, Vh = np.linalg.svd(A)
    r = b.reshape(len(A), -1) - A @ x
    kappa, size = s[0] / s[rank - 1], np.linalg.norm(b) + s[0] * np.linalg.norm(x)
    limit = 100 * U * sum(A.shape) * kappa
    assert np.linalg.norm(A.conj().T @ r) <= limit * s[0] * size
    assert np.linalg.norm(Vh[rank:] @ x) <= limit * (np.linalg.norm(x) + np.linalg.norm(r) / s[rank - 1])


@pytest.mark.parametrize("b_shape", [(0,), (0, 2)])
def test_no_rows_give_zeros_as_in_numpy(b_shape):
    result = run(LeastSquares(matrix=np.zeros((0, 3)), rhs=np.zeros(b_shape)))
    assert np.array_equal(result.x, np.linalg.lstsq(np.zeros((0, 3)), np.zeros(b_shape), rcond=None)[0])
    assert np.array_equal(result.residual_norm, np.zeros(b_shape[1:]))


def test_no_columns_give_an_empty_answer_and_the_norm_of_b():
    b = np.array([3.0, 4.0])
    result = run(LeastSquares(matrix=np.zeros((2, 0)), rhs=b))
    assert result.x.shape == (0,)
    assert result.residual_norm == 5


def test_equations_left_out_of_a_wide_system_do_not_lower_what_full_rank_means():
    rng = np.random.default_rng(1)
    A, b = rng.standard_normal((5, 40)), rng.standard_normal(5)
    A[2, 3] = np.nan
    certificate = run(LeastSquares(matrix=A, rhs=b, nan="omit_rows")).certificate
    assert (certificate.rank, certificate.n, certificate.full_rank) == (4, 4, True)
