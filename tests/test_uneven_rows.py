"""Rows 1e8 apart, by weights or as they are: a step of refinement wins back what their order costs, and does no harm.

Householder QR without row sorting is only normwise stable (Cox & Higham 1998): light rows that come first are
swamped by heavy ones that come later.  Errors here are against solutions in rational numbers.
"""

from fractions import Fraction

import numpy as np
import pytest

from pipelines import LeastSquares, run
from pipelines.methods import tsqr

SLABS = {"name": "tsqr", "slab_bytes": 64}
"""The smallest slabs, 64 rows: what happens between slabs happens on small matrices too."""


def exact(A, b, root):
    """The least-squares solution of rows times their roots of weights, in rational numbers, rounded once."""
    n = A.shape[1]
    rows = [[Fraction(float(v)) * Fraction(float(w)) for v in (*a, y)] for a, y, w in zip(A, b, root, strict=True)]
    M = [[sum(row[i] * row[j] for row in rows) for j in range(n + 1)] for i in range(n)]
    for i in range(n):
        for r in range(n):
            if r != i:
                f = M[r][i] / M[i][i]
                M[r] = [a - f * c for a, c in zip(M[r], M[i], strict=True)]
    return np.array([float(M[i][n] / M[i][i]) for i in range(n)])


def heavy_rows(seed, order="last", heaviest=2.0**27, m=200, n=6):
    """n/2 heavy rows among light ones that decide the other directions; roots of weights are powers of two."""
    rng = np.random.default_rng(seed)
    A, root = rng.standard_normal((m, n)), np.ones(m)
    b = A @ rng.standard_normal(n) + rng.standard_normal(m)
    places = {"first": np.arange(n // 2), "last": np.arange(m - n // 2, m), "mixed": rng.permutation(m)[: n // 2]}
    root[places[order]] = heaviest
    return A, b, root


def error(result, x):
    return float(np.linalg.norm(result.x - x) / np.linalg.norm(x))


@pytest.mark.parametrize("order", ["mixed", "last", "first"])
@pytest.mark.parametrize("as_weights", [True, False])
def test_rows_1e8_apart_lose_nothing_in_any_order(order, as_weights):
    for seed in range(3):
        A, b, root = heavy_rows(seed, order)
        rows = {"matrix": A, "rhs": b, "weights": root**2}
        result = run(LeastSquares(method=SLABS, **rows if as_weights else rows_of(A, b, root)))
        x = exact(A, b, root)
        assert error(result, x) <= 1e-13
        assert error(result, x) <= result.certificate.forward_error_bound


def rows_of(A, b, root):
    return {"matrix": A * root[:, None], "rhs": b * root}


def without_refinement(monkeypatch, job):
    with monkeypatch.context() as patch:
        patch.setattr(tsqr, "_worth_a_step", lambda *arguments: False)
        return run(job)


@pytest.mark.parametrize("order", ["mixed", "last"])
def test_refinement_is_taken_and_improves_the_error_a_millionfold(monkeypatch, order):
    before, after = [], []
    for seed in range(4):
        A, b, root = heavy_rows(seed, order)
        job, x = LeastSquares(method=SLABS, **rows_of(A, b, root)), exact(A, b, root)
        refined = run(job)
        assert refined.certificate.refined
        after.append(error(refined, x))
        before.append(error(without_refinement(monkeypatch, job), x))
    assert np.median(before) > 1e-11  # u times 1e8, a little less by luck
    assert np.median(after) < 1e-6 * np.median(before)


def test_heavy_rows_that_contradict_each_other_are_not_made_worse(monkeypatch):
    """Rounding errors of Aᴴr are u ‖heavy row‖ ‖heavy residual‖: a step made of them once cost 12 digits."""
    for seed in range(4):
        A, b, root = heavy_rows(seed)
        # Each row twice, b = a x ± δ: then the heavy rows keep a large residual.
        d = np.random.default_rng([seed, 1]).integers(-9, 10, len(b))
        A, b, root = np.vstack([A, A]), np.concatenate([b + d, b - d]), np.tile(root, 2)
        job, x = LeastSquares(**rows_of(A, b, root)), exact(A, b, root)
        plain = error(without_refinement(monkeypatch, job), x)
        assert error(run(job), x) <= 2 * plain + 1e-15


def test_rows_that_are_all_alike_need_no_step():
    rng = np.random.default_rng(1)
    result = run(LeastSquares(matrix=rng.standard_normal((500, 6)), rhs=rng.standard_normal(500)))
    assert not result.certificate.refined


def test_rows_of_weight_zero_do_not_count_as_uneven():
    rng = np.random.default_rng(2)
    A, b, w = rng.standard_normal((500, 6)), rng.standard_normal(500), np.ones(500)
    w[::7] = 0
    result = run(LeastSquares(matrix=A, rhs=b, weights=w))
    assert not result.certificate.refined
    assert not any("rows differ" in warning for warning in result.certificate.warnings)


def test_uneven_rows_that_need_no_step_are_told():
    A, b, root = heavy_rows(3, "first")
    result = run(LeastSquares(**rows_of(A, b, root)))
    assert not result.certificate.refined
    assert any("rows differ by a factor of" in warning for warning in result.certificate.warnings)


def test_stored_weights_work_as_those_in_memory(save):
    A, b, root = heavy_rows(4)
    stored = {"matrix": save("A", A, (77, 4)), "rhs": save("b", b, (50,)), "weights": save("w", root**2, (33,))}
    assert error(run(LeastSquares(method=SLABS, **stored)), exact(A, b, root)) <= 1e-13
