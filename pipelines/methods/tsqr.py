"""Least squares by Q-less TSQR: factor [A b], decide the rank, solve, verify, refine where it helps.

Demmel, Grigori, Hoemmen, Langou, arXiv:0809.2407 (the tree); Golub 1965 (least squares from R of [A b]);
Björck 1987 (corrected semi-normal equations: the refinement); Demmel & Higham 1993 (underdetermined systems).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pipelines.errors import BadData
from pipelines.kernels.sweep import Triangle, squares
from pipelines.layout import Layout
from pipelines.matrix import Source, Span, System, Tally
from pipelines.passes.combine import Combine, Combined
from pipelines.passes.factor import Factor
from pipelines.passes.mask import Mask
from pipelines.passes.verify import Leftover, Verify
from pipelines.small.backward import U, optimal_backward_errors
from pipelines.small.inverse import FullRank, Inverse, MinimumNorm, decide, with_ridge
from pipelines.small.rank import Decision, column_norms, column_scales, largest_singular_value, tolerance

UNEVEN_ROWS = 1e4
"""Householder QR without row sorting loses accuracy when rows differ by more than this (Cox & Higham 1998)."""
LONG_STEP = 1e-12
"""A refinement step shorter than this, relative to x, is not worth another pass."""
GOOD = 8.0
"""Backward errors up to this many roundoffs, times √n, are as good as LAPACK's."""


class Runs(Protocol):
    """The engine: a pass over all spans of a system."""

    def __call__(self, step: Any, system: System, spans: tuple[Span, ...]) -> tuple[Any, Tally]: ...


@dataclass(frozen=True)
class Problem:
    """min ‖A x − b‖² + λ‖x‖², weighted, of least norm, laid out for reading."""

    system: System
    layout: Layout
    b: Source
    """The right-hand sides: also rows of the system when A is tall."""
    weights: Source | None
    rtol: str | float
    ridge: float
    verify: bool
    exact_values: bool
    """True when the singular values are wanted, whatever they cost."""
    target: Callable[[int, int, int], str] | None
    """Makes room for a stored x of given rows, columns and chunk rows; None keeps x in memory."""


@dataclass(frozen=True)
class Measured:
    """What a second read says about x, one number for each right-hand side."""

    rss: np.ndarray
    """‖b − A x‖², (k,)."""
    backward: np.ndarray
    """‖ΔA‖_F / ‖A‖_F of the nearest problem that x solves, (k,)."""
    scaled_backward: np.ndarray
    """The same for columns scaled to norm one, relative to the 2-norm, (k,)."""
    norm_x: np.ndarray
    """‖D⁻¹x‖ in those variables, (k,)."""


@dataclass(frozen=True)
class Solution:
    """x with all that its certificate needs."""

    x: np.ndarray | None
    """(n, k), or None when it was stored at the target."""
    rss: np.ndarray
    """‖b − A x‖² (weighted), (k,), measured or from the factor."""
    b_norm: np.ndarray
    decision: Decision
    R: np.ndarray
    a_norm: float
    """‖A‖_F."""
    scaled_largest: float
    """‖A D‖₂."""
    measured: Measured | None
    refined: bool
    rows: int
    omitted: int
    uneven_rows: float | None
    """Largest over smallest row norm, when it was measured."""
    identity: tuple[int, int, int]


def solve(problem: Problem, engine: Runs) -> Solution:
    """The certified minimum-norm least-squares solution: one pass, a second to verify, a third only to improve."""
    return _solve_wide(problem, engine) if problem.layout.shape.wide else _solve_tall(problem, engine)


def _solve_tall(problem: Problem, engine: Runs) -> Solution:
    layout = problem.layout
    spans = layout.spans
    whole, tally = engine(factor_pass(layout), problem.system, spans)
    check(tally)
    plain = _split(whole, layout.shape.columns)
    triangle = with_ridge(plain, problem.ridge) if problem.ridge else plain
    decision, inverse = decide(triangle.R, _tolerance(problem, tally.rows), exact=problem.exact_values)
    x = inverse.solve(triangle.C)
    best, refined, uneven = None, False, None
    if problem.verify:
        x, best, refined, uneven = _verified(problem, engine, triangle.R, inverse, x, tally)
    rss = best.rss if best else squares(plain.C - plain.R @ x) + plain.tail
    return Solution(
        x=x, rss=rss, b_norm=np.sqrt(squares(plain.C) + plain.tail), decision=decision, R=plain.R,
        a_norm=_frobenius(triangle.R), scaled_largest=_scaled_largest(triangle.R), measured=best, refined=refined,
        rows=tally.rows, omitted=tally.omitted, uneven_rows=uneven, identity=tally.identity,
    )  # fmt: skip


def factor_pass(layout: Layout) -> Factor:
    """The pass that factors, with the sizes of the layout."""
    dtype = layout.shape.dtype
    return Factor(layout.p, layout.t, dtype, layout.slab_rows, layout.group, layout.fan_in, layout.block)


def _split(whole: Triangle, n: int) -> Triangle:
    """R, C and the tail, wherever the right-hand sides were carried."""
    p = whole.R.shape[0]
    if p == n:
        return whole
    R, C, P = whole.R[:n, :n], whole.R[:n, n:], whole.R[n:, n:]
    return Triangle(R.copy("F"), C.copy("F"), squares(np.triu(P)))


def _tolerance(problem: Problem, rows: int) -> Any:
    layout, depth = problem.layout, 0
    states = max(1, layout.span_count)
    while states > 1:
        states, depth = -(-states // layout.fan_in), depth + 1
    m, n = rows, layout.shape.columns
    return tolerance(problem.rtol, m, n, depth)


def _verified(
    problem: Problem, engine: Runs, R: np.ndarray, inverse: Inverse, x: np.ndarray, tally: Tally
) -> tuple[np.ndarray, Measured, bool, float]:
    """x, or x with one step of refinement where that is called for and a further read finds it no worse."""
    first, step, uneven = _leftover(problem, engine, R, inverse, x, tally)
    if not _worth_a_step(first, step, x, R, uneven):
        return x, first, False, uneven
    better = x + step
    second, _, _ = _leftover(problem, engine, R, inverse, better, tally)
    take = second.backward <= np.maximum(first.backward, 4 * U)
    x = np.where(take, better, x)
    both = zip((second.rss, second.backward, second.scaled_backward, second.norm_x),
               (first.rss, first.backward, first.scaled_backward, first.norm_x), strict=True)  # fmt: skip
    return x, Measured(*(np.where(take, new, old) for new, old in both)), bool(take.any()), uneven


def _leftover(
    problem: Problem, engine: Runs, R: np.ndarray, inverse: Inverse, x: np.ndarray, tally: Tally
) -> tuple[Measured, np.ndarray, float]:
    """What a read says about x, the step that the same read offers, and how uneven the rows are."""
    shape = problem.layout.shape
    step = Verify(x, shape.dtype, problem.layout.slab_rows)
    left: Leftover
    left, seen = engine(step, problem.system, problem.layout.spans)
    _unchanged(tally, seen)
    # With a ridge the problem is [A; √λ I] x ≈ [b; 0], whose residual has the further rows −√λ x.
    g, rss = left.g - problem.ridge * x, left.rss + problem.ridge * squares(x)
    D = column_scales(R)
    z, RD = x / D[:, None], np.asfortranarray(R * D)
    backward = optimal_backward_errors(R, g, rss, x) / (_frobenius(R) or 1.0)
    scaled = optimal_backward_errors(RD, D[:, None] * g, rss, z) / (_scaled_largest(R) or 1.0)
    measured = Measured(left.rss, np.maximum(backward, U), np.maximum(scaled, U), np.linalg.norm(z, axis=0))
    uneven = (left.heaviest / left.lightest) ** 0.5 if left.lightest < np.inf else 1.0
    return measured, inverse.normal(g), uneven


def _worth_a_step(first: Measured, step: np.ndarray, x: np.ndarray, R: np.ndarray, uneven: float) -> bool:
    if not np.isfinite(step).all():
        return False
    if (first.backward > GOOD * U * max(1, R.shape[0]) ** 0.5).any():
        return True
    D = column_scales(R)[:, None]
    long = np.linalg.norm(step / D, axis=0) > LONG_STEP * np.linalg.norm(x / D, axis=0)
    return bool(uneven > UNEVEN_ROWS and long.any())


def _solve_wide(problem: Problem, engine: Runs) -> Solution:
    """Minimum norm through Aᴴ = QR: x = Aᴴ y with (RᴴR) y = b, y refined once against the A x that it gives."""
    problem, b, omitted = _equations(problem, engine)
    layout, spans = problem.layout, problem.layout.spans
    triangle, tally = engine(factor_pass(layout), problem.system, spans)
    check(tally, wide=True)
    plain = triangle.R
    triangle = with_ridge(triangle, problem.ridge) if problem.ridge else triangle
    decision, inverse = _decide_wide(problem, triangle.R, layout.shape.rows)
    y = inverse.normal(b)
    if problem.verify:
        first = _combine(problem, engine, y, tally, keep=False)
        y = y + inverse.normal(b - first.Ax - problem.ridge * y)
    last = _combine(problem, engine, y, tally, keep=True)
    r = b - last.Ax
    solution = Solution(
        x=_assembled(last, problem, b.shape[1]), rss=squares(r), b_norm=np.linalg.norm(b, axis=0), decision=decision,
        R=plain, a_norm=_frobenius(plain), scaled_largest=decision.largest, measured=None, refined=problem.verify,
        rows=layout.shape.columns - omitted, omitted=omitted, uneven_rows=None, identity=tally.identity,
    )  # fmt: skip
    if not problem.verify:
        return solution
    return replace(solution, measured=_measured_wide(triangle.R, r - problem.ridge * y, last, decision))


def _equations(problem: Problem, engine: Runs) -> tuple[Problem, np.ndarray, int]:
    """b (m, k) weighted, equations with NaN left out where the job says so, and how many were."""
    shape, system = problem.layout.shape, problem.system
    m = shape.columns
    b = problem.b.read(0, m).astype(shape.dtype)
    scale = np.ones(m) if problem.weights is None else np.sqrt(problem.weights.read(0, m)[:, 0].astype(np.float64))
    if not np.isfinite(scale).all():
        row = int(np.flatnonzero(~np.isfinite(scale))[0])
        raise BadData(
            f"The weight of row {row} is negative or not finite; weights have to be finite and not negative. "
            "Give the row the weight 0 to leave it out."
        )
    keep = np.isfinite(b).all(axis=1)
    if system.omit_rows:
        finite, _ = engine(Mask(m, problem.layout.slab_rows), replace(system, omit_rows=False), problem.layout.spans)
        keep &= finite
    elif not keep.all():
        rows, columns = np.nonzero(~np.isfinite(b))
        raise BadData(_not_finite(len(rows), (int(rows[0]), int(columns[0]), "rhs")))
    omitted = int(m - keep.sum())
    by = None if problem.weights is None and not omitted else scale * keep
    b = np.where(keep[:, None], b, 0) * (1 if by is None else by[:, None])
    return replace(problem, system=replace(system, omit_rows=False, columns_by=by)), b, omitted


def _decide_wide(problem: Problem, R: np.ndarray, n: int) -> tuple[Decision, Inverse]:
    """Scaling columns of Aᴴ reweights equations, so it may show full rank, but not decide what to cut."""
    limit = _tolerance(problem, n)
    decision, inverse = decide(R, limit, exact=problem.exact_values)
    if isinstance(inverse, MinimumNorm) and limit.scaled:
        reason = limit.reason.replace(", on columns scaled to norm one", "")
        decision, inverse = decide(R, replace(limit, scaled=False, reason=reason), exact=problem.exact_values)
    return decision, inverse


def _combine(problem: Problem, engine: Runs, y: np.ndarray, tally: Tally, *, keep: bool) -> Combined:
    layout = problem.layout
    target = None
    if keep and problem.target is not None:
        target = problem.target(layout.shape.rows, y.shape[1], layout.span_rows)
    step = Combine(y, layout.shape.dtype, layout.slab_rows, keep, target)
    combined: Combined
    combined, seen = engine(step, problem.system, layout.spans)
    _unchanged(tally, seen)
    return combined


def _assembled(last: Combined, problem: Problem, k: int) -> np.ndarray | None:
    if problem.target is not None:
        return None
    return np.concatenate(last.pieces) if last.pieces else np.zeros((0, k), problem.layout.shape.dtype)


def _measured_wide(R: np.ndarray, r: np.ndarray, last: Combined, decision: Decision) -> Measured:
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
    backward, scaled = absolute / (_frobenius(R) or 1.0), absolute / (decision.largest or 1.0)
    return Measured(norm_r**2, np.maximum(backward, U), np.maximum(scaled, U), norm_x)


def check(tally: Tally, *, wide: bool = False) -> None:
    """Raises BadData when a pass has met NaN or infinity."""
    if tally.bad:
        assert tally.first is not None
        row, column, name = tally.first
        raise BadData(_not_finite(tally.bad, (column, row, name) if wide else (row, column, name)))


def _not_finite(count: int, first: tuple[int, int, str]) -> str:
    row, column, name = first
    others = "1 entry" if count == 1 else f"{count:,} entries"
    return (
        f"{others} of the matrix and the right-hand side are NaN or infinite; the first is at row {row:,}, column "
        f"{column:,} of the {name} (counted from 0). Set `nan: omit_rows` in the job file to leave such rows out, "
        "or clean the data."
    )


def _unchanged(first: Tally, later: Tally) -> None:
    names = ("matrix", "rhs", "weights")
    changed = [name for name, a, b in zip(names, first.identity, later.identity, strict=True) if a != b]
    if changed:
        raise BadData(
            f"The {' and the '.join(changed)} changed in the store while the job was reading: chunks were written "
            "between the first pass and a later one. Run the job again when nobody writes."
        )


def _frobenius(R: np.ndarray) -> float:
    return float(np.linalg.norm(column_norms(R)))


def _scaled_largest(R: np.ndarray) -> float:
    return largest_singular_value(R * column_scales(R)) if R.shape[0] else 0.0


__all__ = ["FullRank", "Problem", "Solution", "check", "solve"]
