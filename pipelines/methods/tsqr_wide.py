"""Minimum norm for a wide A, from the same factor: rows of Aᴴ are read, and Aᴴ = QR.

Demmel & Higham 1993 (underdetermined systems): x = Aᴴ R⁻¹ R⁻ᴴ b is as accurate as the method that forms Q, but its
residual is not small until one step of refinement has been taken; and with a condition number κ above 1/√u that does
not help.  There a second factor says how far Aᴴ R⁻¹ is from orthonormal: Aᴴ R⁻¹ = Q R₂, so x = Aᴴ R⁻¹ R₂⁻¹ (R₂R)⁻ᴴ b
is the method that forms Q, without storing it.
"""

from dataclasses import replace

import numpy as np
from scipy.linalg import solve_triangular

from pipelines.errors import BadData
from pipelines.kernels.basis import Basis
from pipelines.kernels.sweep import squares
from pipelines.matrix import Tally, square_roots
from pipelines.methods.cholesky_qr import triangle_of
from pipelines.methods.problem import (
    Measured,
    Problem,
    Runs,
    Solution,
    check,
    columns_in_range,
    factor_pass,
    frobenius,
    in_range,
    not_finite,
    something_left,
    tolerance_of,
    unchanged,
)
from pipelines.passes.combine import Combine, Combined
from pipelines.passes.mask import Mask
from pipelines.small.backward import UNSEEN, U, forward_bounds
from pipelines.small.inverse import FullRank, Inverse, MinimumNorm, decide, with_ridge
from pipelines.small.rank import Decision, column_norms, column_scales, largest_singular_value

NO_SLOPE = 64.0
"""Roundoffs, times √m, below which Aᴴr counts as zero."""
STEEP = 1e7
"""Condition numbers above this need the second factor: a step of refinement gains a factor of κ²u at the most."""


def solve_wide(problem: Problem, engine: Runs) -> Solution:
    """Minimum norm through Aᴴ = QR: x = Aᴴ y with (RᴴR) y = b, refined once against the A x that it gives."""
    sides = sides_of(problem)
    problem, b, omitted = equations(problem, engine)
    layout = problem.layout
    triangle, tally = triangle_of(engine, problem.system, layout)
    check(tally, wide=True)
    in_range("matrix", np.atleast_1d(frobenius(triangle.R)))
    columns_in_range("row", column_norms(triangle.R))
    in_range("rhs", column_norms(b))
    plain = triangle.R
    triangle = with_ridge(triangle, problem.ridge) if problem.ridge else triangle
    decision, inverse = decide_wide(problem, triangle.R, layout.shape.rows)
    steep = problem.verify and decision.condition_number > STEEP
    if steep and isinstance(inverse, FullRank):
        y, last = _orthogonal(problem, engine, inverse, b, tally)
    else:
        steep, (y, last) = False, _refined(problem, engine, inverse, b, tally)
    r = b - last.Ax
    solution = Solution(
        x=_assembled(last, problem, b.shape[1]), rss=squares(r), b_norm=np.linalg.norm(b, axis=0), decision=decision,
        R=plain, a_norm=frobenius(plain), measured=None, refined=problem.verify and not steep,
        rows=layout.shape.columns - omitted, omitted=omitted, uneven_rows=None, identity=(tally.identity[0], *sides),
    )  # fmt: skip
    if not problem.verify:
        return solution
    measured = measured_wide(triangle.R, r - problem.ridge * y, last, decision)
    if problem.ridge:
        measured = with_penalty(measured, y, last.xx, problem.ridge)
    return replace(solution, measured=with_rest(measured, triangle.R, y, last.xx, last.lost))


def with_penalty(measured: Measured, y: np.ndarray, xx: np.ndarray, ridge: float) -> Measured:
    """The bound of [x; √λ y], the shortest solution of [A √λI] [x; √λ y] = b, for x: the second part may be long."""
    norm_x = np.sqrt(xx)
    whole = np.hypot(norm_x, np.sqrt(ridge) * np.linalg.norm(y, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        longer = np.where(norm_x > 0, measured.forward * whole / norm_x, np.where(whole > 0, np.inf, 0.0))
    return replace(measured, forward=longer)


def with_rest(measured: Measured, R: np.ndarray, y: np.ndarray, xx: np.ndarray, outside: np.ndarray) -> Measured:
    """With what of x = Aᴴy + e lies outside the rows' span, as far as is known, where no residual shows it.

    x is in the span of the rows of A + y eᴴ / ‖y‖², so the backward error grows by ‖e‖ / (‖y‖ ‖A‖_F).
    """
    if not outside.any():
        return measured
    rest, length = np.sqrt(outside), column_norms(y) * frobenius(R)
    with np.errstate(divide="ignore", invalid="ignore"):
        backward = np.where(rest > 0, np.minimum(rest / length, 1.0), 0.0)
        forward = np.where(rest > 0, rest / np.sqrt(xx), 0.0)
    return replace(measured, backward=measured.backward + backward, forward=measured.forward + forward)


def _refined(
    problem: Problem, engine: Runs, inverse: Inverse, b: np.ndarray, tally: Tally
) -> tuple[np.ndarray, Combined]:
    """What solves (RᴴR) y = b, and the sums of x = Aᴴ y, after one step of refinement when there is a read for it."""
    y = inverse.normal(b)
    if not problem.verify:
        return y, _combine(problem, engine, (y,), tally, keep=True)
    first = _combine(problem, engine, (y,), tally, keep=False)
    step = inverse.normal(b - first.Ax - problem.ridge * y)
    return y + step, _combine(problem, engine, (y, step), tally, keep=True)


def _orthogonal(
    problem: Problem, engine: Runs, inverse: FullRank, b: np.ndarray, tally: Tally
) -> tuple[np.ndarray, Combined]:
    """The same with x = Aᴴ R⁻¹ v, v = R₂⁻¹ R₂⁻ᴴ R⁻ᴴ b: as good as with a stored Q at any condition number."""
    R, layout = inverse.R, problem.layout
    step = replace(factor_pass(layout), name="orthogonalise", over=Basis(R))
    second, seen = engine(step, problem.system, layout.spans)
    unchanged(tally, seen)
    R2 = np.triu(second.R)
    if problem.ridge:  # [Aᴴ; √λ I] R⁻¹ has these rows too
        R2 = np.linalg.qr(np.vstack([R2, np.sqrt(problem.ridge) * FullRank(R).solve(np.eye(len(R)))]), mode="r")
    v = FullRank(R2).normal(solve_triangular(R, b, trans="C", check_finite=False))
    return inverse.solve(v), _combine(problem, engine, (v,), tally, keep=True, over=Basis(R))


def sides_of(problem: Problem) -> tuple[int, int]:
    """The identities of the right-hand sides and of the weights, which no pass over the columns of A reads."""
    m = problem.layout.shape.columns
    return problem.b.identity(0, m), 0 if problem.weights is None else problem.weights.identity(0, m)


def equations(problem: Problem, engine: Runs) -> tuple[Problem, np.ndarray, int]:
    """The right-hand sides (m, k), weighted, equations with NaN left out where the job says so, and how many were."""
    shape, system = problem.layout.shape, problem.system
    m = shape.columns
    b = problem.b.read(0, m).astype(shape.dtype)
    weights = problem.weights
    scale = np.ones(m) if weights is None else square_roots(weights.read(0, m), 0, may_be_nan=system.omit_rows)
    keep = np.isfinite(b).all(axis=1) & np.isfinite(scale)
    if system.omit_rows:
        finite, _ = engine(Mask(m, problem.layout.slab_rows), replace(system, omit_rows=False), problem.layout.spans)
        keep &= finite
    elif not keep.all():
        rows, columns = np.nonzero(~np.isfinite(b))
        raise BadData(not_finite(len(rows), (int(rows[0]), int(columns[0]), "rhs")))
    omitted = int(m - keep.sum())
    something_left(m - omitted, omitted)
    by = None if problem.weights is None and not omitted else np.where(keep, scale, 0)
    b = np.where(keep[:, None], b, 0) * (1 if by is None else by[:, None])
    return replace(problem, system=replace(system, omit_rows=False, columns_by=by)), b, omitted


def decide_wide(problem: Problem, R: np.ndarray, n: int) -> tuple[Decision, Inverse]:
    """Scaling columns of Aᴴ reweights equations, so it may show full rank, but not decide what to cut."""
    limit = tolerance_of(problem, n)
    decision, inverse = decide(R, limit, exact=problem.exact_values)
    if isinstance(inverse, MinimumNorm) and limit.scaled:
        reason = limit.reason.replace(", on columns scaled to norm one", "")
        decision, inverse = decide(R, replace(limit, scaled=False, reason=reason), exact=problem.exact_values)
    return decision, inverse


def _combine(
    problem: Problem,
    engine: Runs,
    ys: tuple[np.ndarray, ...],
    tally: Tally,
    *,
    keep: bool,
    over: Basis | None = None,
) -> Combined:
    layout = problem.layout
    target = None
    if keep and problem.target is not None:
        target = problem.target(layout.shape.rows, ys[0].shape[1], layout.span_rows)
    step = Combine(ys, layout.shape.dtype, layout.slab_rows, keep, target, problem.stored if keep else None, over)
    combined: Combined
    combined, seen = engine(step, problem.system, layout.spans)
    unchanged(tally, seen)
    return combined


def _assembled(last: Combined, problem: Problem, k: int) -> np.ndarray | None:
    if problem.target is not None:
        return None
    return np.concatenate(last.pieces) if last.pieces else np.zeros((0, k), problem.layout.shape.dtype)


def measured_wide(R: np.ndarray, r: np.ndarray, last: Combined, decision: Decision) -> Measured:
    """‖(AᴴA + ω²I)^(-1/2) Aᴴ r‖ = ‖diag(s/√(s² + ω²)) Vᴴ r‖ with R = U S Vᴴ, since A = Rᴴ Qᴴ; at full rank ≈ ‖r‖."""
    norm_r, norm_x = np.linalg.norm(r, axis=0), np.sqrt(last.xx)
    with np.errstate(divide="ignore", invalid="ignore"):
        omega = np.where(norm_x > 0, norm_r / norm_x, np.inf)
    absolute = omega.copy()
    if decision.rank < R.shape[0]:
        _, s, Vh = np.linalg.svd(R)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.linalg.norm(s[:, None] / np.sqrt(s[:, None] ** 2 + omega**2) * (Vh @ r), axis=0)
            absolute = np.where(norm_r > 0, omega * part / norm_r, 0.0)
    absolute = np.where(norm_x > 0, absolute, 0.0)
    backward = np.maximum(absolute / (frobenius(R) or 1.0), U)
    forward = _forward(R, r, absolute, norm_x, decision)
    # x = 0 is the answer where Aᴴr is nothing but rounding, ‖Aᴴr‖ = ‖R r‖; elsewhere it is not one at all.
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.linalg.norm(R @ r, axis=0) / (norm_r * (frobenius(R) or 1.0))
    wrong = (norm_x == 0) & (slope > NO_SLOPE * U * np.sqrt(max(1, len(R))))
    backward, forward = np.where(wrong, np.maximum(backward, slope), backward), np.where(wrong, np.inf, forward)
    return Measured(norm_r**2, backward, forward)


def _forward(R: np.ndarray, r: np.ndarray, absolute: np.ndarray, norm_x: np.ndarray, decision: Decision) -> np.ndarray:
    """Bounds on the error of x; at full rank for equations scaled to norm one, which leaves x as it is."""
    m = R.shape[0]
    if m == 0:
        return np.zeros(r.shape[1])
    if decision.rank < m:
        epsilon = np.maximum(absolute, UNSEEN * decision.largest)
        return forward_bounds(epsilon, decision, norm_x, np.linalg.norm(r, axis=0), norm_x)
    D = column_scales(R) if decision.tolerance.scaled else np.ones(m)
    with np.errstate(divide="ignore", invalid="ignore"):
        epsilon = np.where(norm_x > 0, np.linalg.norm(D[:, None] * r, axis=0) / norm_x, 0.0)
    epsilon = np.maximum(epsilon, UNSEEN * largest_singular_value(R * D))
    scaled = replace(decision, smallest=1 / decision.scaled_inverse, tilt=1.0)
    return forward_bounds(epsilon, scaled, norm_x, np.zeros(len(norm_x)), norm_x)
