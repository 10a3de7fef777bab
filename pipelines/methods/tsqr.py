"""Least squares by Q-less TSQR: factor [A b], decide the rank, solve, verify, refine where it helps.

Demmel, Grigori, Hoemmen, Langou, arXiv:0809.2407 (the tree); Golub 1965 (least squares from R of [A b]);
Björck 1987 (corrected semi-normal equations: the refinement).
"""

from dataclasses import replace

import numpy as np

from pipelines.kernels.sweep import Triangle, squares
from pipelines.matrix import Tally
from pipelines.methods.cholesky_qr import triangle_of
from pipelines.methods.problem import (
    Measured,
    Problem,
    Runs,
    Solution,
    check,
    columns_in_range,
    frobenius,
    in_range,
    tolerance_of,
    unchanged,
)
from pipelines.methods.tsqr_wide import solve_wide
from pipelines.passes.verify import Leftover, Verify
from pipelines.small.backward import UNSEEN, U, forward_bounds, optimal_backward_errors
from pipelines.small.inverse import Inverse, MinimumNorm, decide, with_ridge
from pipelines.small.rank import Decision, column_norms, column_scales, largest_singular_value
from pipelines.small.rounding import rounded, unit

UNEVEN_ROWS = 1e4
"""Householder QR without row sorting loses accuracy when rows differ by more than this (Cox & Higham 1998)."""
LONG_STEP = 1e-12
"""A refinement step shorter than this, relative to x, is not worth another pass."""
NOISE_STEPS = 10.0
"""A step this many times longer than the rounding error of Aᴴr makes it is a step, and not that error."""
UNSEEN_PART = 8.0
"""Roundoffs, times √n, of x outside the rows' span that are those of measuring it."""
GOOD = 8.0
"""Backward errors up to this many roundoffs, times √n, are as good as LAPACK's."""


def solve(problem: Problem, engine: Runs) -> Solution:
    """The certified minimum-norm least-squares solution: one pass, a second to verify, a third only to improve."""
    if problem.layout.shape.wide:
        return solve_wide(problem, engine)
    solution = _solve_tall(problem, engine)
    if not problem.layout.refined or _as_good_as_others(solution):
        return solution
    assert solution.measured is not None
    engine.said.append(
        "x is TSQR's: with `method: gram` its backward error was "
        f"{solution.measured.backward.max():.1e} after one step of refinement"
    )
    layout = replace(problem.layout, sample=0, refined=False)
    return _solve_tall(replace(problem, layout=layout), engine)


def _as_good_as_others(solution: Solution) -> bool:
    """True when x has the backward error of a stable method."""
    measured = solution.measured
    return measured is not None and bool((measured.backward <= GOOD * U * max(1, len(solution.R)) ** 0.5).all())


def _solve_tall(problem: Problem, engine: Runs) -> Solution:
    layout = problem.layout
    whole, tally = triangle_of(engine, problem.system, layout)
    check(tally)
    plain = _split(whole, layout.shape.columns)
    in_range("matrix", np.atleast_1d(frobenius(plain.R)))
    columns_in_range("column", column_norms(plain.R))
    in_range("rhs", np.hypot(column_norms(plain.C), np.sqrt(plain.tail)))
    triangle = with_ridge(plain, problem.ridge) if problem.ridge else plain
    decision, inverse = decide(triangle.R, tolerance_of(problem, tally.rows), exact=problem.exact_values)
    x = rounded(inverse.solve(triangle.C), problem.stored)
    best, refined, uneven = None, False, None
    if problem.verify:
        x, best, refined, uneven = _verified(problem, engine, triangle.R, decision, inverse, x, tally)
    rss = best.rss if best else squares(plain.C - plain.R @ x) + plain.tail
    return Solution(
        x=x, rss=rss, b_norm=np.sqrt(squares(plain.C) + plain.tail), decision=decision, R=plain.R,
        a_norm=frobenius(triangle.R), measured=best, refined=refined, rows=tally.rows, omitted=tally.omitted,
        uneven_rows=uneven, identity=tally.identity,
    )  # fmt: skip


def measure(problem: Problem, engine: Runs, x: np.ndarray) -> Solution:
    """What `solve` says of its x, of one that is given: R is found again, and a second read measures x."""
    layout = problem.layout
    whole, tally = triangle_of(engine, problem.system, layout)
    check(tally)
    plain = _split(whole, layout.shape.columns)
    triangle = with_ridge(plain, problem.ridge) if problem.ridge else plain
    decision, inverse = decide(triangle.R, tolerance_of(problem, tally.rows), exact=problem.exact_values)
    measured, _, _, uneven = _leftover(problem, engine, triangle.R, decision, inverse, x, tally)
    return Solution(
        x=x, rss=measured.rss, b_norm=np.sqrt(squares(plain.C) + plain.tail), decision=decision, R=plain.R,
        a_norm=frobenius(triangle.R), measured=measured, refined=False, rows=tally.rows, omitted=tally.omitted,
        uneven_rows=uneven, identity=tally.identity, x_norm=np.linalg.norm(x, axis=0),
    )  # fmt: skip


def _split(whole: Triangle, n: int) -> Triangle:
    """R, C and the tail, wherever the right-hand sides were carried."""
    p = whole.R.shape[0]
    if p == n:
        return whole
    R, C, P = whole.R[:n, :n], whole.R[:n, n:], whole.R[n:, n:]
    return Triangle(R.copy("F"), C.copy("F"), squares(np.triu(P)))


def _verified(
    problem: Problem, engine: Runs, R: np.ndarray, decision: Decision, inverse: Inverse, x: np.ndarray, tally: Tally
) -> tuple[np.ndarray, Measured, bool, float]:
    """x, or x with one step of refinement where that is called for and a further read finds it better."""
    first, step, noise, uneven = _leftover(problem, engine, R, decision, inverse, x, tally)
    if not _worth_a_step(first, step, x, R, noise, uneven) or unit(problem.stored) > U:
        return x, first, False, uneven  # a narrower type has rounded away what a step could bring
    better = x + step
    second, further, _, _ = _leftover(problem, engine, R, decision, inverse, better, tally)
    take = _better(first, second, step, further, R)
    x = np.where(take, better, x)
    both = zip((second.rss, second.backward, second.forward), (first.rss, first.backward, first.forward), strict=True)
    return x, Measured(*(np.where(take, new, old) for new, old in both)), bool(take.any()), uneven


def _leftover(
    problem: Problem, engine: Runs, R: np.ndarray, decision: Decision, inverse: Inverse, x: np.ndarray, tally: Tally
) -> tuple[Measured, np.ndarray, np.ndarray, float]:
    """What a read says about x, the step that it offers, how much of that is rounding, and how uneven the rows are."""
    shape = problem.layout.shape
    step = Verify(x, column_scales(R), shape.dtype, problem.layout.slab_rows)
    left: Leftover
    left, seen = engine(step, problem.system, problem.layout.spans)
    unchanged(tally, seen)
    # With a ridge the problem is [A; √λ I] x ≈ [b; 0], whose residual has the further rows −√λ x.
    g, rss = left.g - problem.ridge * x, left.rss + problem.ridge * squares(x)
    backward = optimal_backward_errors(R, g, rss, x) / (frobenius(R) or 1.0)
    forward = _forward(R, decision, g, rss, x)
    # Where all of x fell below the smallest float, its relative error is 1: seen by an Aᴴb above its own rounding.
    lost = ~x.any(axis=0) & (np.linalg.norm(step.D[:, None] * g, axis=0) > NOISE_STEPS * U * np.sqrt(left.noise))
    backward, forward = np.maximum(backward, U), np.where(lost, np.inf, forward)
    if isinstance(inverse, MinimumNorm):  # no residual shows what of x no row of A sees
        rest, norms = np.linalg.norm(x - inverse.Q @ (inverse.Q.conj().T @ x), axis=0), np.linalg.norm(x, axis=0)
        outside = np.where(norms > 0, rest / np.where(norms > 0, norms, 1), 0.0)
        outside[outside < UNSEEN_PART * U * np.sqrt(len(x))] = 0  # rounding of this very sum
        backward, forward = backward + outside, forward + outside
    measured = Measured(left.rss, backward, forward)
    uneven = (left.heaviest / left.lightest) ** 0.5 if left.lightest < np.inf else 1.0
    noise = U * np.sqrt(left.noise) * decision.scaled_inverse**2
    return measured, inverse.normal(g), noise, uneven


def _forward(R: np.ndarray, decision: Decision, g: np.ndarray, rss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bounds on the error of x from its backward error for columns scaled to norm one."""
    if R.shape[0] == 0:
        return np.zeros(x.shape[1])
    D = column_scales(R) if decision.tolerance.scaled else np.ones(R.shape[0])
    z, RD = x / D[:, None], np.asfortranarray(R * D)
    epsilon = np.maximum(optimal_backward_errors(RD, D[:, None] * g, rss, z), UNSEEN * largest_singular_value(RD))
    return forward_bounds(epsilon, decision, np.linalg.norm(z, axis=0), np.sqrt(rss), np.linalg.norm(x, axis=0))


def _worth_a_step(
    first: Measured, step: np.ndarray, x: np.ndarray, R: np.ndarray, noise: np.ndarray, uneven: float
) -> bool:
    """True when the backward error asks for it, or rows so uneven that a step well above its own noise is right."""
    if not np.isfinite(step).all():
        return False
    if (first.backward > GOOD * U * max(1, R.shape[0]) ** 0.5).any():
        return True
    least = np.maximum(LONG_STEP * _length(x, R), NOISE_STEPS * noise)
    return bool(uneven > UNEVEN_ROWS and (_length(step, R) > least).any())


def _better(first: Measured, second: Measured, step: np.ndarray, further: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Which steps to keep, (k,): those that cut the backward error, or after which there is less left to go.

    A step that is as long as the next one is rounding error of Aᴴr, and would spoil an x that is better than that.
    """
    falls = second.backward < first.backward / 2
    shrinks = _length(further, R) < _length(step, R) / 2
    kept: np.ndarray = falls | (shrinks & (second.backward <= np.maximum(first.backward, 4 * U)))
    return kept


def _length(x: np.ndarray, R: np.ndarray) -> np.ndarray:
    """‖D⁻¹x‖ in variables whose columns have norm one, (k,)."""
    length: np.ndarray = np.linalg.norm(x / column_scales(R)[:, None], axis=0)
    return length
