"""Rank, minimum norm, ridge and error estimates on the n × n side, against NumPy, definitions and exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from pipelines import LeastSquares, run
from pipelines.kernels.sweep import Triangle
from pipelines.small.backward import U, forward_bounds, optimal_backward_errors
from pipelines.small.inverse import FullRank, MinimumNorm, decide, with_ridge
from pipelines.small.rank import (
    EPS,
    Decision,
    Tolerance,
    column_norms,
    column_scales,
    largest_singular_value,
    reciprocal_condition,
    smallest_singular_value,
    tolerance,
)

AUTO = Tolerance(1e-13, "auto", "", scaled=True)
PLAIN = Tolerance(1e-13, "given", "", scaled=False)


def triangle_of(A, b):
    """R, Qᴴb and ‖b − QQᴴb‖² from NumPy's QR."""
    b = b.reshape(len(b), -1)
    Q, R = np.linalg.qr(A)
    C = Q.conj().T @ b
    tail = (np.abs(b - Q @ C) ** 2).sum(axis=0)
    return Triangle(np.asfortranarray(R), np.asfortranarray(C), tail)


def with_singular_values(rng, m, n, s):
    """A matrix with random singular vectors and these singular values."""
    k = len(s)
    return np.linalg.qr(rng.standard_normal((m, k)))[0] * s @ np.linalg.qr(rng.standard_normal((n, k)))[0].T


# The tolerance


@pytest.mark.parametrize(
    ("rule", "m", "n", "depth", "expected", "scaled"),
    [
        ("numpy", 1000, 7, 0, 1000 * EPS, False),
        ("numpy", 7, 1000, 0, 1000 * EPS, False),
        ("scipy", 1000, 7, 0, EPS, False),
        ("gelsd", 1000, 7, 0, EPS, False),
        (1e-5, 1000, 7, 0, 1e-5, False),
        (0.0, 1000, 7, 0, 0.0, False),
        ("auto", 100, 50, 0, 50 * EPS, True),  # the columns decide
        ("auto", 100, 5, 4, 32 * EPS, True),  # the depth of the tree decides
        ("auto", 10**6, 5, 4, 1000 * EPS, True),  # √m decides
        ("auto", 10**14, 5, 12, 1e-10, True),  # never above 1e-10,
        ("auto", 10, 10**6, 0, 10**6 * EPS, True),  # except for n eps, which rounding needs
    ],
)
def test_each_rule_gives_its_tolerance_with_a_reason(rule, m, n, depth, expected, scaled):
    found = tolerance(rule, m, n, depth)
    assert (found.rtol, found.scaled) == (pytest.approx(expected, rel=1e-15), scaled)
    assert found.rule == ("given" if isinstance(rule, float) else rule)
    assert found.reason


def test_the_rule_auto_keeps_directions_that_numpy_cuts_from_a_billion_rows():
    assert tolerance("auto", 10**9, 10, 8).rtol < 1e-11 < 1e-7 < tolerance("numpy", 10**9, 10, 8).rtol


@pytest.mark.parametrize(
    ("rule", "rank"), [("auto", 6), ("gelsd", 6), ("scipy", 6), ("numpy", 5), (1e-6, 4), (1e-2, 2)]
)
def test_the_job_chooses_whose_rule_decides(rule, rank):
    rng = np.random.default_rng(1)
    # numpy's tolerance for 2,000 rows is 4.4e-13: between the last two.
    A = with_singular_values(rng, 2000, 6, [1, 0.5, 1e-3, 1e-4, 1e-10, 1e-13])
    result = run(LeastSquares(matrix=A, rhs=rng.standard_normal(2000), rtol=rule))
    assert result.certificate.rank == rank
    assert result.certificate.rtol_rule == (rule if isinstance(rule, str) else "given")


# Scales


def test_scales_are_powers_of_two_and_bring_norms_to_about_one():
    R = np.triu(np.random.default_rng(2).standard_normal((9, 9))) * 10.0 ** np.arange(-160, 20, 20)
    scales = column_scales(R)
    assert (np.frexp(scales)[0] == 0.5).all()
    scaled = column_norms(R * scales)
    assert (scaled >= 0.7).all()
    assert (scaled <= 1.42).all()


def test_a_zero_column_has_the_largest_scale_of_the_others():
    assert column_scales(np.diag([3.0, 0.0, 2.0**-30]))[1] == 2.0**30
    assert column_scales(np.zeros((2, 2))).tolist() == [1, 1]


def test_column_norms_neither_overflow_nor_underflow():
    R = np.array([[3e200, 3e-200], [4e200, 4e-200]])
    np.testing.assert_allclose(column_norms(R), [5e200, 5e-200], rtol=1e-15)


@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8, 1e14])
def test_estimates_of_condition_and_norms_are_near_the_truth(condition):
    rng = np.random.default_rng(3)
    s = np.geomspace(1, 1 / condition, 40)
    R = np.linalg.qr(with_singular_values(rng, 60, 40, s), mode="r")
    assert 0.9 <= largest_singular_value(R) <= 1 + 1e-12
    assert 0.9 / condition <= smallest_singular_value(R) <= 1.1 / condition
    exact = 1 / np.linalg.cond(R, 1)
    assert exact / 1.01 <= reciprocal_condition(R) <= 10 * exact  # LAPACK: rarely off by more than 3


# The rank


def test_a_dependent_column_is_found_whatever_its_place():
    rng = np.random.default_rng(4)
    for place in range(6):
        A = rng.standard_normal((50, 6))
        A[:, place] = A @ (np.arange(6) != place)
        decision, inverse = decide(np.linalg.qr(A, mode="r"), AUTO, exact=False)
        assert decision.rank == 5
        assert isinstance(inverse, MinimumNorm)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("rank", range(9))
def test_the_rank_is_that_of_numpy_where_the_gap_is_clear(rank, dtype):
    rng = np.random.default_rng(rank)
    A = rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 8)).astype(dtype)
    if dtype is complex:
        A = A + 1j * A[::-1] @ np.diag(np.ones(8))
    R = np.linalg.qr(A, mode="r")
    assert decide(R, AUTO, exact=False)[0].rank == np.linalg.matrix_rank(A)


def test_columns_in_other_units_are_not_taken_for_dependent_ones():
    """45 independent columns of 50, with scales from 1e-8 to 1e8: equilibrated 45, NumPy's rule fewer."""
    rng = np.random.default_rng(5)
    A = rng.standard_normal((400, 45)) @ rng.standard_normal((45, 50)) * np.geomspace(1e-8, 1e8, 50)
    R = np.linalg.qr(A, mode="r")
    assert decide(R, tolerance("auto", 400, 50, 0), exact=False)[0].rank == 45
    assert decide(R, tolerance("numpy", 400, 50, 0), exact=False)[0].rank < 45


def test_full_rank_takes_the_cheap_path_and_gives_estimates():
    R = np.linalg.qr(np.random.default_rng(6).standard_normal((900, 600)), mode="r")
    decision, inverse = decide(R, AUTO, exact=False)
    assert isinstance(inverse, FullRank)
    assert decision.singular_values is None
    s = np.linalg.svd(R, compute_uv=False)
    np.testing.assert_allclose([decision.largest, decision.smallest], s[[0, -1]], rtol=0.1)


def test_the_gap_at_the_cut_is_told():
    rng = np.random.default_rng(7)
    A = with_singular_values(rng, 60, 5, [1, 0.3, 0.1, 1e-15, 1e-15])
    decision, _ = decide(np.linalg.qr(A, mode="r"), PLAIN, exact=False)
    assert decision.rank == 3
    assert decision.kept == pytest.approx(0.1)
    assert decision.dropped < 1e-14


def test_a_zero_matrix_has_rank_zero_and_the_solution_zero():
    decision, inverse = decide(np.zeros((4, 4)), AUTO, exact=False)
    assert decision.rank == 0
    assert np.array_equal(inverse.solve(np.ones((4, 2))), np.zeros((4, 2)))
    assert np.array_equal(inverse.normal(np.ones((4, 2))), np.zeros((4, 2)))


# Minimum norm


def naive(A, b, rank):
    """Known to be wrong: the shortest solution in scaled variables, scaled back."""
    D = column_scales(np.linalg.qr(A, mode="r"))
    return D * (np.linalg.pinv(A * D, rtol=1e-10) @ b)


def test_minimum_norm_is_meant_in_the_users_variables():
    rng = np.random.default_rng(8)
    A = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 8)) * np.geomspace(1e-2, 1e2, 8)
    b = rng.standard_normal(60)
    expected = np.linalg.lstsq(A, b, rcond=1e-12)[0]
    triangle = triangle_of(A, b)
    x = decide(triangle.R, AUTO, exact=False)[1].solve(triangle.C)[:, 0]
    assert np.linalg.norm(x - expected) < 1e-12 * np.linalg.norm(expected)
    wrong = naive(A, b, 5)
    assert np.linalg.norm(A @ (wrong - expected)) < 1e-10 * np.linalg.norm(b)  # it fits as well,
    assert np.linalg.norm(wrong) > 1.01 * np.linalg.norm(expected)  # and is not the shortest


def null_space_taken_out(A, b, rank):
    """Known to be poor: scaled solution less its part in the null space; digits go as the scales differ."""
    Q, R = np.linalg.qr(A)
    D = column_scales(R)
    U_, S, Vh = np.linalg.svd(R * D)
    N = np.linalg.qr(D[:, None] * Vh[rank:].T)[0]
    x = D * (Vh[:rank].T @ ((U_[:, :rank].T @ (Q.T @ b)) / S[:rank]))
    for _ in range(2):
        x = x - N @ (N.T @ x)
    return x


def exact_solve(G, c):
    """Gauss–Jordan in rational numbers."""
    n = len(G)
    M = [[*map(Fraction, row), Fraction(value)] for row, value in zip(G, c, strict=True)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if M[r][i])
        M[i], M[pivot] = M[pivot], M[i]
        for r in range(n):
            if r != i and M[r][i]:
                f = M[r][i] / M[i][i]
                M[r] = [a - f * b for a, b in zip(M[r], M[i], strict=True)]
    return [M[i][n] / M[i][i] for i in range(n)]


def rational(A):
    return [[Fraction(float(value)) for value in row] for row in A]


def product(A, B):
    columns = list(zip(*B, strict=True))
    return [[sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in columns] for row in A]


def transposed(A):
    return [list(column) for column in zip(*A, strict=True)]


def apply(A, b):
    return [row[0] for row in product(A, [[value] for value in b])]


def exact_minimum_norm(B, C, b):
    """(B C)⁺ b = Cᵀ (C Cᵀ)⁻¹ (Bᵀ B)⁻¹ Bᵀ b for B of full column and C of full row rank, in rational numbers."""
    B, C, b = rational(B), rational(C), [Fraction(float(value)) for value in b]
    y = exact_solve(product(transposed(B), B), apply(transposed(B), b))
    return apply(transposed(C), exact_solve(product(C, transposed(C)), y))


def exact_full_rank(A, b, ridge=0.0):
    A, b = rational(A), [Fraction(float(value)) for value in b]
    G = product(transposed(A), A)
    for i in range(len(G)):
        G[i][i] += Fraction(ridge)
    return exact_solve(G, apply(transposed(A), b))


def error(x, exact):
    """‖x − x*‖ / ‖x*‖, the difference taken in rational numbers."""
    difference = [float(Fraction(float(ours)) - theirs) for ours, theirs in zip(x, exact, strict=True)]
    return float(np.linalg.norm(difference) / np.linalg.norm([float(value) for value in exact]))


def test_minimum_norm_keeps_its_digits_with_column_scales_from_1e_minus_8_to_1e8():
    """On matrices whose condition is that of the units alone, we have 13 digits; the null space variant loses 6."""
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scales = 2.0 ** rng.integers(-26, 27, 6)
        B, C = rng.integers(-9, 10, (12, 3)), rng.integers(-9, 10, (3, 6)) * scales
        if np.linalg.matrix_rank(B) < 3 or np.linalg.matrix_rank(C / scales) < 3:
            continue
        A, b = B @ C, rng.integers(-99, 100, 12).astype(float)
        exact = exact_minimum_norm(B, C, b)
        triangle = triangle_of(A, b)
        decision, inverse = decide(triangle.R, AUTO, exact=False)
        assert decision.rank == 3
        ours.append(error(inverse.solve(triangle.C)[:, 0], exact))
        theirs.append(error(null_space_taken_out(A, b, 3), exact))
    assert max(ours) < 1e-13
    assert max(theirs) > 1e-7


@pytest.mark.parametrize("dtype", [float, complex])
def test_both_inverses_apply_the_pseudoinverse_of_r_and_of_rhr(dtype):
    rng = np.random.default_rng(9)
    for rank in (3, 6):
        A = (rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 6))).astype(dtype)
        A = A * (1 + 1j) if dtype is complex else A
        R = np.linalg.qr(A, mode="r")
        _, inverse = decide(R, AUTO, exact=False)
        C = rng.standard_normal((6, 2)).astype(dtype)
        pinv = np.linalg.pinv(R, rtol=1e-12)
        np.testing.assert_allclose(inverse.solve(C), pinv @ C, rtol=0, atol=1e-11 * np.abs(pinv @ C).max())
        g = R.conj().T @ C
        normal = pinv @ pinv.conj().T @ g
        np.testing.assert_allclose(inverse.normal(g), normal, rtol=0, atol=1e-11 * np.abs(normal).max())


def test_several_right_hand_sides_are_solved_as_each_alone():
    rng = np.random.default_rng(10)
    A, B = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 6)), rng.standard_normal((40, 3))
    triangle = triangle_of(A, B)
    _, inverse = decide(triangle.R, AUTO, exact=False)
    x = inverse.solve(triangle.C)
    np.testing.assert_allclose(x, np.linalg.lstsq(A, B, rcond=1e-12)[0], atol=1e-13)


# Ridge


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0, 1e9])
def test_a_ridge_is_n_more_rows(ridge, dtype):
    rng = np.random.default_rng(11)
    A, b = rng.standard_normal((30, 5)).astype(dtype), rng.standard_normal((30, 2)).astype(dtype)
    A[:, 4] = A[:, 0] - A[:, 1] + (1j if dtype is complex else 0)
    before = triangle_of(A, b)
    copy = Triangle(before.R.copy("F"), before.C.copy("F"), before.tail.copy())
    after = with_ridge(before, ridge)
    more = np.vstack([A, np.sqrt(ridge) * np.eye(5)]), np.vstack([b, np.zeros((5, 2))])
    x = decide(after.R, AUTO, exact=False)[1].solve(after.C)
    expected = np.linalg.lstsq(*more, rcond=None)[0]
    # The condition of the augmented matrix is at most 1e4 here, and with so large a residual its square counts.
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    np.testing.assert_allclose(after.tail, (np.abs(more[1] - more[0] @ expected) ** 2).sum(axis=0), rtol=1e-9)
    assert np.array_equal(before.R, copy.R)
    assert np.array_equal(before.C, copy.C)


# How far from the truth: backward


def exact_backward_error(A, b, x):
    """B. Waldén, R. Karlson, J.-G. Sun (1995): min ‖E‖_F over all E for which x is a least-squares solution of A + E.

    With r = b − A x and ω = ‖r‖/‖x‖ it is min(ω, σ_min [A, ω(I − rrᵀ/‖r‖²)]).
    """
    r = b - A @ x
    omega = np.linalg.norm(r) / np.linalg.norm(x)
    P = np.eye(len(b)) - np.outer(r, r) / (r @ r)
    return min(omega, np.linalg.svd(np.hstack([A, omega * P]), compute_uv=False)[len(b) - 1])


@pytest.mark.parametrize("condition", [1e0, 1e3, 1e8])
@pytest.mark.parametrize("angle", [1e-6, 1e-2, 1.0, 1e3])
def test_the_estimate_is_near_the_exact_optimal_backward_error(condition, angle):
    """Between 0.15 and 1 of it in all cases that were measured, wherever rounding does not hide it."""
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng([seed, int(condition)])
        A = with_singular_values(rng, 14, 5, np.geomspace(1, 1 / condition, 5))
        Q = np.linalg.qr(A, mode="complete")[0]
        best = rng.standard_normal(5)
        b = A @ best + angle * Q[:, 5:] @ rng.standard_normal(9)
        x = best + 10.0 ** rng.uniform(-5, 1) * rng.standard_normal(5)
        r = b - A @ x
        R = np.asfortranarray(np.linalg.qr(A, mode="r"))
        found = optimal_backward_errors(R, (A.T @ r)[:, None], np.array([r @ r]), x[:, None])[0]
        exact = exact_backward_error(A, b, x)
        if exact > 1e-11:
            ratios.append(found / exact)
    assert len(ratios) >= 4
    assert min(ratios) > 0.15
    assert max(ratios) < 1.001


def test_many_right_hand_sides_get_the_same_estimates_as_each_alone():
    rng = np.random.default_rng(12)
    A, x = rng.standard_normal((30, 6)), rng.standard_normal((6, 9))
    r = rng.standard_normal((30, 9)) - A @ x
    R, g, rss = np.asfortranarray(np.linalg.qr(A, mode="r")), A.T @ r, (r**2).sum(axis=0)
    together = optimal_backward_errors(R, g, rss, x)
    alone = [optimal_backward_errors(R, g[:, [j]], rss[[j]], x[:, [j]])[0] for j in range(9)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_an_x_of_zeros_has_a_backward_error_too():
    """For x = 0, A + E has to be orthogonal to b: the smallest such E is −bbᵀA/‖b‖²."""
    rng = np.random.default_rng(13)
    A, b = rng.standard_normal((10, 3)), rng.standard_normal(10)
    R = np.asfortranarray(np.linalg.qr(A, mode="r"))
    found = optimal_backward_errors(R, (A.T @ b)[:, None], np.array([b @ b]), np.zeros((3, 1)))[0]
    assert found == pytest.approx(np.linalg.norm(A.T @ b) / np.linalg.norm(b))


def test_an_exact_fit_has_no_backward_error():
    R = np.eye(3, order="F")
    assert optimal_backward_errors(R, np.zeros((3, 1)), np.zeros(1), np.ones((3, 1)))[0] == 0


# How far from the truth: forward


def decision_of(**fields):
    given = {"rank": 2, "tolerance": AUTO, "singular_values": None, "largest": 1.0, "smallest": 0.5, "kept": 0.5}
    given |= {"scaled_condition": 2.0, "dropped": None, "scaled_inverse": 2.0, "tilt": 0.0}
    return Decision(**given | fields)


def test_the_bound_is_infinite_where_even_the_rank_is_in_doubt():
    one = np.ones(1)
    assert forward_bounds(0.3 * one, decision_of(), one, one, one)[0] == np.inf
    assert forward_bounds(0.2 * one, decision_of(), one, one, one)[0] < np.inf


def test_the_bound_of_an_x_of_zeros_is_that_of_the_inverse():
    zero = np.zeros(1)
    assert forward_bounds(np.full(1, U), decision_of(), zero, zero, zero)[0] == 4 * U


def integers(rng, kind):
    """A small problem of integers, and its exact solution in rational numbers; None when it happens to be singular."""
    n = int(rng.integers(2, 6))
    m, high = n + int(rng.integers(0, 9)), 10 ** int(rng.integers(1, 7))
    A, b = rng.integers(-high, high + 1, (m, n)), rng.integers(-high, high + 1, m)
    if kind == "near":  # condition up to 1e7
        A = rng.integers(-9, 10, (m, n)) * high
        A[:, -1] = A[:, :-1] @ rng.integers(-3, 4, n - 1) + rng.integers(-2, 3, m)
        b = A @ rng.integers(-99, 100, n) + rng.integers(-2, 3, m)
    if kind == "powers":
        A = np.vander(np.arange(1, m + 1), n, increasing=True)
    if kind == "columns":
        A = A * 10 ** rng.integers(0, 9, n)
    if kind == "rows":
        A = rng.integers(-9, 10, (m, n)) * 10 ** rng.integers(0, 8, (m, 1))
    if kind == "consistent":
        b = A @ rng.integers(-9, 10, n)
    if kind == "wide":
        A, b = A.T, b[:n]
    return (A.astype(float), b.astype(float)) if np.linalg.matrix_rank(A / np.abs(A).max(0)) == n else None


KINDS = ["plain", "near", "powers", "columns", "rows", "consistent", "wide"]


def check_bound(A, b, exact, **fields):
    """The certificate's bound holds for the true error; gives the ratio of both."""
    result = run(LeastSquares(matrix=A, rhs=b, **fields))
    found, certificate = error(result.x, exact), result.certificate
    assert found <= certificate.forward_error_bound
    assert certificate.correct_digits <= max(0, -np.log10(max(found, 1e-16)))
    return found / certificate.forward_error_bound


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_bound_holds_against_exact_solutions(kind):
    check_many(kind, range(30))


@pytest.mark.slow  # 200 problems a kind, each solved in rational numbers
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_bound_holds_against_many_exact_solutions(kind):
    check_many(kind, range(30, 230))


def check_many(kind, seeds):
    solved = 0
    for seed in seeds:
        made = integers(np.random.default_rng([seed, KINDS.index(kind)]), kind)
        if made is None:
            continue
        A, b = made
        exact = exact_minimum_norm(np.eye(len(b)), A, b) if kind == "wide" else exact_full_rank(A, b)
        if any(exact):
            check_bound(A, b, exact)
            solved += 1
    assert solved > len(seeds) / 2


@pytest.mark.parametrize("wide", [False, True])
def test_the_forward_bound_holds_for_minimum_norm_solutions_of_deficient_matrices(wide):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 6))
        m, rank = n + int(rng.integers(0, 8)), int(rng.integers(1, n))
        B, C = rng.integers(-9, 10, (m, rank)), rng.integers(-9, 10, (rank, n)) * 10 ** rng.integers(0, 7, (1, n))
        if min(np.linalg.matrix_rank(B), np.linalg.matrix_rank(C / np.abs(C).max())) < rank:
            continue
        if wide:
            B, C = rng.integers(-9, 10, (n, rank)), rng.integers(-9, 10, (rank, m))
        A, b = (B @ C).astype(float), rng.integers(-99, 100, B.shape[0]).astype(float)
        if np.linalg.matrix_rank(B) == np.linalg.matrix_rank(C) == rank:
            exact = exact_minimum_norm(B, C, b)
            if any(exact):
                check_bound(A, b, exact)


@pytest.mark.parametrize("wide", [False, True])
def test_the_forward_bound_holds_with_ridge_and_with_weights(wide):
    for seed in range(20):
        rng = np.random.default_rng([seed, wide])
        A = rng.integers(-99, 100, (9, 4)).astype(float)
        A = A.T if wide else A
        b = rng.integers(-99, 100, A.shape[0]).astype(float)
        ridge, root = float(2.0 ** rng.integers(-20, 30)), 2.0 ** rng.integers(-13, 14, A.shape[0])
        check_bound(A, b, exact_full_rank(A, b, ridge), ridge=ridge)
        weighted = A * root[:, None], b * root
        exact = exact_minimum_norm(np.eye(4), A, b) if wide else exact_full_rank(*weighted)
        check_bound(A, b, exact, weights=root**2)


def test_the_bound_is_no_empty_promise():
    """It exceeds the true error by less than 100 in the median on plain problems: two digits given away."""
    ratios = []
    for seed in range(40):
        made = integers(np.random.default_rng(seed), "plain")
        if made is not None:
            ratios.append(check_bound(*made, exact_full_rank(*made)))
    assert np.median(ratios) > 0.01
