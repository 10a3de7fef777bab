"""Rows added by products: as accurate as reflectors where they are taken, and not taken where they would not be."""

import pickle

import numpy as np
import pytest

from pipelines.kernels import growth, sweep
from pipelines.kernels.growth import Growth, amplification, inverse
from pipelines.kernels.lapack import Tpqrt
from pipelines.kernels.sweep import Sweep, Triangle, merge
from pipelines.matrix import Slab, Span
from pipelines.passes.factor import Factor
from pipelines.small.backward import optimal_backward_errors

U = np.finfo(np.float64).eps / 2
M, N, SLAB = 8000, 60, 400
RESIDUALS = (1.0, 1e-6, 1e-14)


def grown(A, rows, *, settle=True, rhs=0):
    """The triangle of A, by products where they are safe."""
    p = A.shape[1]
    work, triangle = Sweep(p, 0, A.dtype, rows), Triangle.empty(p, 0, A.dtype)
    triangle.growth = Growth(rhs)
    for start in range(0, len(A), rows):
        slab = Slab(A[start : start + rows], None, None, start)
        work.add(triangle, len(slab.a), slab.fill)
    return triangle.settle() if settle else triangle


def reflected(A, rows):
    work, triangle = Sweep(A.shape[1], 0, A.dtype, rows), Triangle.empty(A.shape[1], 0, A.dtype)
    for start in range(0, len(A), rows):
        slab = Slab(A[start : start + rows], None, None, start)
        work.add(triangle, len(slab.a), slab.fill)
    return triangle


@pytest.fixture
def by_reflectors(monkeypatch):
    """The rows that reflectors took, slab by slab."""
    rows, call = [], Tpqrt.__call__

    def counted(self, R, B):
        rows.append(B.shape[0])
        call(self, R, B)

    monkeypatch.setattr(Tpqrt, "__call__", counted)
    return rows


def with_singular_values(rng, s, m=M):
    Q, V = (np.linalg.qr(rng.standard_normal((size, len(s))))[0] for size in (m, len(s)))
    return Q * s @ V.T


def lagged(rng):
    """Two columns that are nearly one, and a third that hangs on their difference: R⁻¹ and R are both large there."""
    A = rng.standard_normal((M, N))
    difference = A[:, 1].copy()
    A[:, 1] = A[:, 0] + 1e-10 * difference
    A[:, 2] += difference
    return A


MATRICES = {
    **{
        f"condition {k:.0e}": lambda rng, k=k: with_singular_values(rng, np.geomspace(1, 1 / k, N))
        for k in (1e2, 1e8, 1e14)
    },
    "one small singular value": lambda rng: with_singular_values(rng, np.r_[np.ones(N - 1), 1e-13]),
    "columns of all sizes": lambda rng: rng.standard_normal((M, N)) * 10.0 ** rng.uniform(-8, 8, N),
    "rows of all sizes": lambda rng: rng.standard_normal((M, N)) * 10.0 ** rng.uniform(0, 8, (M, 1)),
    "rows that grow": lambda rng: rng.standard_normal((M, N)) * np.geomspace(1, 1e6, M)[:, None],
    "heavy last rows": lambda rng: np.r_[rng.standard_normal((M - 50, N)), 1e7 * rng.standard_normal((50, N))],
    "a direction that comes late": lambda rng: np.r_[
        rng.standard_normal((M - 50, N - 1)) @ rng.standard_normal((N - 1, N)), 1e3 * rng.standard_normal((50, N))
    ],
    "rare indicators": lambda rng: np.c_[np.ones(M), rng.random((M, N - 1)) < 0.01].astype(float),
    "random walks": lambda rng: np.cumsum(rng.standard_normal((M, N)), axis=0),
    "Vandermonde": lambda rng: np.vander(np.linspace(0, 1, M), 40),
    "nearly one column": lagged,
}


def backward_error(A, b, R):
    n = A.shape[1]
    x = np.linalg.lstsq(R[:n, :n], R[:n, n], rcond=None)[0]
    exact = A.astype(np.longdouble)
    r = b - exact @ x
    g, rss = (exact.T @ r).astype(float), float(r @ r)
    found = optimal_backward_errors(R[:n, :n], g[:, None], np.array([rss]), x[:, None])[0]
    return found / np.linalg.norm(A) / U


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_backward_error_is_that_of_reflectors(name, residual):
    rng = np.random.default_rng(sum(map(ord, name)))
    A = MATRICES[name](rng)
    fit, noise = A @ rng.standard_normal(A.shape[1]), rng.standard_normal(M)
    b = fit + residual * noise * np.linalg.norm(fit) / np.linalg.norm(noise)
    augmented = np.c_[A, b]
    ours = backward_error(A, b, np.triu(grown(augmented, SLAB, rhs=1).R))
    theirs = backward_error(A, b, np.triu(reflected(augmented, SLAB).R))
    assert ours <= 4 * theirs + 4


@pytest.mark.parametrize("dtype", [float, complex])
def test_the_triangle_is_that_of_the_rows(dtype):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3000, 50)).astype(dtype)
    if dtype is complex:
        A += 1j * rng.standard_normal(A.shape)
    R = np.triu(grown(A, 200).R)
    error = np.linalg.norm(R.conj().T @ R - A.conj().T @ A) / np.linalg.norm(A) ** 2
    assert error < 20 * U
    theirs = np.linalg.qr(A, mode="r")
    np.testing.assert_allclose(np.abs(R), np.abs(theirs), rtol=0, atol=1e-12 * np.linalg.norm(A))


def test_rows_that_are_alike_are_added_by_products(by_reflectors):
    A = np.random.default_rng(1).standard_normal((10_000, 50))
    grown(A, 200)
    assert sum(by_reflectors) == 200  # the first slab, which has more than twice as many rows as columns


def test_reflectors_take_over_where_the_triangle_would_amplify_errors(by_reflectors):
    rng = np.random.default_rng(2)
    grown(lagged(rng), SLAB)
    assert sum(by_reflectors) == M


def test_products_would_lose_the_digits_there(monkeypatch):
    """The reason for the first test; when this fails, it can go."""
    rng = np.random.default_rng(3)
    A = lagged(rng)
    b = A @ rng.standard_normal(N) + 1e-6 * rng.standard_normal(M)
    augmented = np.c_[A, b]
    monkeypatch.setattr(growth, "MOST_AMPLIFIED", np.inf)
    assert backward_error(A, b, np.triu(grown(augmented, SLAB).R)) > 1e4


@pytest.fixture
def ways(monkeypatch):
    """How each slab that products took was added: by a sum of SᴴS, or after a division."""
    found, take = [], Growth.take

    def seen(self, new, rows):
        found.append("summed" if self.squares is not None else "divided")
        return take(self, new, rows)

    monkeypatch.setattr(Growth, "take", seen)
    return found


@pytest.mark.parametrize(("condition", "way"), [(1.0, "summed"), (1e3, "divided")])
def test_only_well_conditioned_rows_are_summed_without_a_division(ways, condition, way):
    A = with_singular_values(np.random.default_rng(12), np.geomspace(1, 1 / condition, N))
    grown(A, 2 * SLAB)
    assert set(ways) == {way}
    assert len(ways) == 9


@pytest.mark.parametrize(("noise", "way"), [(1e-2, "summed"), (1e-5, "divided")])
def test_right_hand_sides_that_fit_well_are_summed_while_their_residual_keeps_its_digits(ways, noise, way):
    rng = np.random.default_rng(17)
    A = rng.standard_normal((M, N))
    x, r = rng.standard_normal(N) / N**0.5, noise * rng.standard_normal(M)
    R = np.triu(grown(np.c_[A, A @ x + r], SLAB, rhs=1).R)
    assert set(ways) == {way}
    exact = np.linalg.norm(r - A @ np.linalg.lstsq(A, r)[0])
    assert abs(R[N, N]) == pytest.approx(exact, rel=1e-9)
    np.testing.assert_allclose(np.linalg.solve(R[:N, :N], R[:N, N]), x + np.linalg.lstsq(A, r)[0], atol=1e-14)


def test_what_was_divided_at_first_is_summed_when_a_taller_triangle_allows_it(ways, monkeypatch):
    A = np.random.default_rng(13).standard_normal((M, N))
    monkeypatch.setattr(growth, "MOST_SQUARED", 4.0)
    grown(A, 130)
    assert ways[0] == "divided"
    assert ways[-1] == "summed"


def test_sums_would_lose_digits_of_an_ill_conditioned_matrix(monkeypatch):
    """The reason for the test before; a condition number that a division bears, and its square does not."""
    rng = np.random.default_rng(16)
    A = with_singular_values(rng, np.geomspace(1, 1e-3, N))
    b = A @ rng.standard_normal(N) + 1e-5 * rng.standard_normal(M)
    assert backward_error(A, b, np.triu(grown(np.c_[A, b], SLAB, rhs=1).R)) < 4
    monkeypatch.setattr(growth, "MOST_SQUARED", np.inf)
    monkeypatch.setattr(growth, "MOST_FITTED", np.inf)
    assert backward_error(A, b, np.triu(grown(np.c_[A, b], SLAB, rhs=1).R)) > 12


@pytest.mark.parametrize("name", ["drift", "one factor"])
def test_a_direction_that_dominates_is_no_reason_to_square(name):
    """Rows that drift, or hang on one factor, have scaled condition numbers near 100, and κ² u would show in x."""
    rng = np.random.default_rng(18)
    n, m = 100, 8000
    along = np.linspace(0, 30, m) if name == "drift" else 12 * rng.standard_normal(m)
    A = rng.standard_normal((m, n)) + along[:, None]
    x = np.where(np.arange(n) % 2, 1.0, -1.0)
    augmented = np.c_[A, A @ x + 0.1 * rng.standard_normal(m)]
    ours, theirs = (np.triu(f(augmented, 800).R) for f in (lambda M, r: grown(M, r, rhs=1), reflected))
    found = [np.linalg.solve(R[:n, :n], R[:n, n]) for R in (ours, theirs)]
    assert np.linalg.norm(found[0] - found[1]) / np.linalg.norm(x) < 1e-14


@pytest.mark.parametrize("scale", [1e-120, 1e120, 1e-30])
def test_squares_out_of_range_are_not_summed(ways, scale):
    A = np.random.default_rng(15).standard_normal((2000, 40))
    R = np.triu(grown(scale * A, SLAB).R) / scale
    np.testing.assert_allclose(np.linalg.norm(R.T @ R - A.T @ A) / np.linalg.norm(A) ** 2, 0, atol=20 * U)
    assert ("summed" in ways) == (scale == 1e-30)


def test_heavy_rows_go_to_reflectors_and_later_ones_to_products_again(by_reflectors):
    A = np.random.default_rng(4).standard_normal((20 * SLAB, N))
    A[5 * SLAB + 17] *= 1e6
    grown(A, SLAB)
    assert by_reflectors == [SLAB] * 4  # the first, the one with the heavy row, and two while waiting after it


def test_products_would_lose_digits_with_heavy_rows(monkeypatch):
    """The reason for the second test."""
    rng = np.random.default_rng(5)
    A = rng.standard_normal((M, N))
    A[-1] *= 1e8
    b = A @ np.linspace(-1, 1, N) + rng.standard_normal(M)
    for limits in (("MOST_NEW", "MOST_TALLER"), ("MOST_NEW", "MOST_TALLER", "MOST_SQUARED")):
        for limit in limits:
            monkeypatch.setattr(growth, limit, 0.0 if limit == "MOST_SQUARED" else np.inf)
        assert backward_error(A, b, np.triu(grown(np.c_[A, b], SLAB, rhs=1).R)) > 1e4, limits
        monkeypatch.undo()
    assert backward_error(A, b, np.triu(grown(np.c_[A, b], SLAB, rhs=1).R)) < 20


def test_the_wait_after_a_failure_doubles(by_reflectors):
    A = np.random.default_rng(6).standard_normal((40 * SLAB, N))
    A[2 * SLAB :: SLAB] *= 10.0 ** np.arange(1, 39)[:, None]  # each slab dwarfs all before it
    grown(A, SLAB)
    assert len(by_reflectors) >= 36


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_diagonal(bad):
    A = np.random.default_rng(7).standard_normal((3000, 40))
    A[2500, 3] = bad
    state = grown(A, 200, settle=False)
    assert not np.isfinite(state.R.diagonal()).all()


@pytest.mark.parametrize("A", [np.zeros((500, 40)), np.zeros((0, 40)), np.ones((1, 40)), np.full((500, 40), 1e-200)])
def test_degenerate_rows_are_left_to_reflectors(A):
    R = np.triu(grown(A, 100).R)
    np.testing.assert_allclose(np.linalg.norm(R, axis=0), np.linalg.norm(A, axis=0), rtol=1e-13, atol=0)


def test_columns_that_no_row_has_seen_yet_wait_for_reflectors():
    rng = np.random.default_rng(8)
    A = rng.standard_normal((4000, 40))
    A[:2000, 7] = 0
    R = np.triu(grown(A, 200).R)
    assert np.linalg.norm(R.T @ R - A.T @ A) / np.linalg.norm(A) ** 2 < 20 * U


def test_a_merge_takes_in_what_has_been_added():
    A = np.random.default_rng(9).standard_normal((4000, 40))
    R = np.triu(merge(grown(A[:2000], 200, settle=False), grown(A[2000:], 200, settle=False)).R)
    assert np.linalg.norm(R.T @ R - A.T @ A) / np.linalg.norm(A) ** 2 < 20 * U


def test_a_finished_state_is_a_triangle_and_nothing_else():
    step = Factor(40, 0, np.dtype(float), 200, 64, 8)
    A = np.random.default_rng(10).standard_normal((2000, 40))
    state = step.start()
    for start in range(0, 2000, 200):
        state = step.absorb(state, Slab(A[start : start + 200], None, None, start))
    assert state.growth is not None
    assert state.growth.G is not None
    state = step.finish(state, Span(0, 0, 2000))
    assert state.growth is None
    assert len(pickle.dumps(state)) < 2 * 40 * 40 * 8


@pytest.mark.parametrize(("condition", "ways_taken"), [(1.0, {"summed"}), (1e4, set())])
def test_narrow_rows_are_summed_or_left_to_reflectors(ways, condition, ways_taken):
    n = growth.FROM_COLUMNS - 1
    grown(with_singular_values(np.random.default_rng(19), np.geomspace(1, 1 / condition, n)), SLAB)
    assert set(ways) == ways_taken


def test_carried_and_forbidden_factors_have_no_growth():
    dtype = np.dtype(float)
    assert Factor(40, 3, dtype, 200, 64, 8).start().growth is None
    assert Factor(40, 0, dtype, 200, 64, 8, products=False).start().growth is None


def test_the_amplification_is_skeels_condition_number_of_scaled_columns():
    R = np.array([[1.0, 1.0, 1.0], [0.0, 1e-6, 1.0], [0.0, 0.0, 1.0]])
    P = np.linalg.inv(R)
    D = np.diag([1e8, 1e-3, 7.0])
    by_hand = (np.linalg.norm(R, axis=0) @ np.abs(P) @ np.abs(R) / np.linalg.norm(R, axis=0)).max()
    assert amplification(R, P) == pytest.approx(by_hand)
    assert amplification(R @ D, np.linalg.inv(R @ D)) == pytest.approx(by_hand)
    assert by_hand > 1e6


@pytest.mark.parametrize("R", [np.diag([1.0, 0.0]), np.diag([1.0, np.nan]), np.diag([1.0, np.inf])])
def test_a_triangle_without_an_inverse_has_none(R):
    assert inverse(R) is None


def test_an_inverse_is_one():
    R = np.triu(np.random.default_rng(11).standard_normal((6, 6))) + 3 * np.eye(6)
    np.testing.assert_allclose(inverse(R) @ R, np.eye(6), atol=1e-14)


def test_a_workspace_has_room_for_both_ways():
    assert sweep.workspace(40, 0, np.dtype(float), 100, None)._products.gram(np.eye(40, order="F")).shape == (40, 40)
