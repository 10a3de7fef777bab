"""A stored x of a wide A held against its input: is it a solution, and is none shorter?

x is the shortest when it lies in the span of the rows.  An orthonormal basis Q of that, made as for a pseudoinverse,
says what lies outside, ‖x − Q Qᴴx‖, at any condition number.

With a ridge x belongs to a y, x = Aᴴy and A x + λy = b, which nobody has stored.  The y that leaves least of both,
each relative to its size, is found from Qᴴx and b − A x in the basis of singular vectors, where it is one number for
each; what even that y leaves is the error of x.
"""

from dataclasses import replace

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kernels.sweep import squares
from pipelines.matrix import Source, Tally
from pipelines.methods.cholesky_qr import triangle_of
from pipelines.methods.orthonormal import orthonormal, right_basis
from pipelines.methods.problem import Problem, Runs, Solution, check, frobenius, unchanged
from pipelines.methods.tsqr_wide import (
    decide_wide,
    equations,
    measured_wide,
    sides_of,
    with_penalty,
    with_rest,
)
from pipelines.passes.beside import Outside, Shortest
from pipelines.passes.combine import Combined
from pipelines.small.inverse import with_ridge


def measure_wide(problem: Problem, engine: Runs, x: Source) -> Solution:
    """What `solve_wide` says of its x, of one that is stored (n, k)."""
    sides = sides_of(problem)
    problem, b, omitted = equations(problem, engine)
    layout, ridge = problem.layout, problem.ridge
    plain, tally = triangle_of(engine, problem.system, layout)
    check(tally, wide=True)
    decision, inverse = decide_wide(problem, plain.R, layout.shape.rows)
    basis, F = _rows_span(problem, engine, np.triu(plain.R), decision.rank, tally)
    triangle = with_ridge(plain, ridge) if ridge else plain
    if ridge:
        decision, inverse = decide_wide(problem, triangle.R, layout.shape.rows)
    last = _held(problem, engine, basis, b, x, tally)
    r, y, outside = b - last.Ax, inverse.normal(b if ridge else last.Ax), last.outside
    left = r
    if ridge:
        y, left, rest = _nearest(F, last.Qx, r, ridge, _ratio(last.xx, y))
        outside = outside + rest
    measured = measured_wide(triangle.R, left, Combined(last.Ax, last.xx, outside), decision)
    if ridge:
        measured = with_penalty(measured, y, last.xx, ridge)
    return Solution(
        x=None, rss=squares(r), b_norm=np.linalg.norm(b, axis=0), decision=decision, R=plain.R,
        a_norm=frobenius(plain.R), measured=with_rest(measured, triangle.R, y, last.xx, outside), refined=False,
        rows=layout.shape.columns - omitted, omitted=omitted, uneven_rows=None, identity=(tally.identity[0], *sides),
        x_norm=np.sqrt(last.xx),
    )  # fmt: skip


def _rows_span(problem: Problem, engine: Runs, R: np.ndarray, rank: int, tally: Tally) -> tuple[Basis, np.ndarray]:
    """Q, an orthonormal basis of the span of A's rows that count, and F (rank, m) of Aᴴ = Q F."""
    within, F = Basis(np.asfortranarray(R)), R
    if rank < len(R):
        _, s, Vh = np.linalg.svd(R)
        within, F = right_basis(Vh[:rank], s[:rank]), s[:rank, None] * Vh[:rank]
    basis = orthonormal(engine, problem.system, problem.layout, within, tally)
    assert basis.R2 is not None
    return basis, basis.R2 @ F


def _held(problem: Problem, engine: Runs, basis: Basis, b: np.ndarray, x: Source, tally: Tally) -> Shortest:
    """A x, Qᴴx, and what of x is outside: two reads, since the second needs what the first finds."""
    layout, beside = problem.layout, replace(problem.system, b=x)
    nothing = np.zeros((basis.rank, b.shape[1]), b.dtype)
    step = Outside(basis, nothing, layout.shape.columns, b.dtype, layout.slab_rows, name="project")
    first, _ = engine(step, beside, layout.spans)
    step = Outside(basis, first.Qx, layout.shape.columns, b.dtype, layout.slab_rows)
    last: Shortest
    last, seen = engine(step, beside, layout.spans)
    unchanged(tally, replace(seen, identity=(seen.identity[0], 0, 0)))
    return last


def _ratio(xx: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖x‖ / ‖y‖, (k,): what an error of x = Aᴴy counts beside one of A x + λy = b."""
    length = np.linalg.norm(y, axis=0)
    return np.asarray(np.sqrt(xx) / np.where(length > 0, length, 1))


def _nearest(
    F: np.ndarray, c: np.ndarray, r: np.ndarray, ridge: float, ratio: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The y (m, k) that leaves least, what it leaves of r = λy (m, k), and ‖c − F y‖², (k,), of c = F y.

    With F = U S Vᴴ each entry z of Vᴴy is the least-squares solution of ρs z = ρ(Uᴴc) and λz = Vᴴr.
    """
    if not F.size:
        return r / ridge, np.zeros_like(r), squares(c)
    U, s, Vh = np.linalg.svd(F, full_matrices=False)
    c, t = U.conj().T @ c, Vh @ r
    steep = ratio * s[:, None]
    size = np.hypot(steep, ridge)
    z = (ratio * c * (steep / size) + t * (ridge / size)) / size
    rest = r - Vh.conj().T @ t
    return Vh.conj().T @ z + rest / ridge, Vh.conj().T @ (t - ridge * z), squares(c - s[:, None] * z)
