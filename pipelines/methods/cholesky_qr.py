"""R by preconditioned Cholesky QR: one read of the rows beside a sample of them, and states that add up.

A sample of rows, 8 for each column, from all over the matrix, has the triangle R₀.  With W = A R₀⁻¹, G = WᴴW and
G = UᴴU, R = U R₀.  The rows are multiplied by R₀⁻¹ and by themselves, at the speed of dgemm, and what a task leaves
behind is a sum: merging takes n² and not n³ flops.  Where R₀ is so well conditioned that its square costs nothing,
G = AᴴA without the division.

Accepted is what the condition of G, its columns scaled to norm one, shows to be as good as reflectors: errors of
rounding in G are u ‖wₖ‖ ‖wₗ‖ for each entry, and cond(G) of that reaches R.  Slabs that are far larger than those of
the sample go through reflectors, and what has a direction that the sample lacks makes cond(G) large: then TSQR reads
the rows once more, and the result says so.

References: J. E. Garrison, I. C. F. Ipsen, "A randomized preconditioned Cholesky-QR algorithm" (2024),
arXiv:2406.11751, with a sample of rows for the sketch; A. J. Higgins, D. B. Szyld, E. G. Boman, I. Yamazaki,
"Analysis of randomized Householder-Cholesky QR factorization" (2023), arXiv:2309.05868.
"""

from dataclasses import replace

import numpy as np
from scipy.linalg import blas, lapack, solve_triangular

from pipelines.kernels.growth import MOST_FITTED, MOST_NEW, SQUARED, inverse
from pipelines.kernels.sweep import Triangle, merge
from pipelines.layout import Layout
from pipelines.matrix import Span, System, Tally
from pipelines.methods.problem import Runs, factor_pass
from pipelines.passes.factor import Factor
from pipelines.passes.gram import Gram, Sums, unpacked
from pipelines.small.rank import column_norms, largest_singular_value, smallest_singular_value

PIECES = 8
"""Places that a sample is taken from; fewer where whole chunks would make it larger than it has to be."""
DEPENDENT = 1e-12
"""Columns of the sample that depend on those before them but for this part: TSQR decides about the rank."""
MOST_AMPLIFIED = 32.0
"""Largest amplification by |R₀⁻¹| |R₀|, for each column: errors in RᴴR were 60 u there, and 15 u by reflectors; every
row is divided by the same triangle, so less is lost than where earlier rows are not."""
LEAST_RESIDUAL = 1e-8
"""Of a right-hand side in the sample, relative to its norm; any triangle serves, and a small one finds rows large."""
MOST_ROUGH = 1e6
"""Largest condition number of the sample for which its triangle is taken from SᴴS."""
MOST_SUMMED = 3.0
"""Largest condition number of A, as R₀ shows it, for which AᴴA is summed without a division: its square is a digit."""
MOST_REFINED = 1e5
"""The same where x will be refined: it begins with six digits, and a step gains as many."""
MOST_ACCEPTED = 8.0
"""Largest condition number of W (or of A, where that was summed) that is accepted."""


def triangle_of(passes: Runs, system: System, layout: Layout) -> tuple[Triangle, Tally]:
    """R of the rows, and of the right-hand sides that are factored along, by the method of the layout."""
    if layout.sample:
        step, R0 = _from_sample(passes, system, layout)
        found = step if isinstance(step, str) else _by_sums(passes, system, layout, step, R0)
        if not isinstance(found, str):
            return found
        if layout.asked or not isinstance(step, str):  # that a sample led to TSQR is what `auto` is for
            passes.said.append(f"R is TSQR's and not from sums of products: {found}")
    return passes(factor_pass(layout), system, layout.spans)


def sample_spans(layout: Layout) -> tuple[Span, ...]:
    """Spans of about `layout.sample` rows in all, spread evenly; whole chunks where those are decoded whole."""
    shape = layout.shape
    unit = 1 if shape.partial else max(1, shape.unit)
    pieces = max(1, min(PIECES, layout.sample // unit))
    units = -(-layout.sample // (pieces * unit))
    there = -(-shape.rows // unit)
    starts = sorted({unit * (max(0, there - units) * i // max(1, pieces - 1)) for i in range(pieces)})
    return tuple(Span(i, start, min(start + units * unit, shape.rows)) for i, start in enumerate(starts))


def _from_sample(passes: Runs, system: System, layout: Layout) -> tuple[Gram | str, np.ndarray | None]:
    """The pass that sums, or why there is none; and the R₀ by which it divides, if it does."""
    if layout.given:
        return "the blocks of a dask array are not made twice", None
    spans, factor = sample_spans(layout), factor_pass(layout)
    rows = sum(span.stop - span.start for span in spans)
    if 2 * rows > layout.shape.rows:
        return f"a sample of {rows:,} rows is not much less than all {layout.shape.rows:,}", None
    sampled, bad = _sampled(passes, system, spans, factor)
    if bad:
        return "the sample holds NaN or infinity", None
    n = factor.p - factor.rhs
    R0 = _roomy(np.triu(sampled), n)
    norms = np.linalg.norm(R0, axis=0) ** 2
    most = MOST_NEW * max(1.0, layout.slab_rows / rows)  # as many rows as a slab has would have larger products
    if _summable(R0, norms, n, layout.refined):
        return Gram(factor, None, most * norms), None
    if layout.refined:
        above = f"a condition number above {MOST_REFINED:.0e}, or squares that overflow"
        return f"a sample of {rows:,} rows has {above}", None
    independent = (np.abs(R0.diagonal()[:n]) > DEPENDENT * np.sqrt(norms[:n])).all()
    P = inverse(R0, MOST_AMPLIFIED) if independent else None
    if P is None:
        return f"the triangle of a sample of {rows:,} rows is too ill-conditioned to divide by", None
    return Gram(factor, P, np.full(len(R0), most)), R0


def _by_sums(
    passes: Runs, system: System, layout: Layout, step: Gram, R0: np.ndarray | None
) -> tuple[Triangle, Tally] | str:
    """The triangle of all rows, or why it is not accepted."""
    factor = step.factor
    sums: Sums
    sums, tally = passes(step, system, layout.spans)
    if tally.bad:  # which ends the job
        return Triangle.empty(factor.p, 0, factor.dtype), tally
    most = 2 * MOST_REFINED if layout.refined else MOST_ACCEPTED
    found = _triangle(sums, factor, R0, most)
    return found if isinstance(found, str) else (found, tally)


def _sampled(passes: Runs, system: System, spans: tuple[Span, ...], factor: Factor) -> tuple[np.ndarray, bool]:
    """R₀ of the sample, and whether it holds NaN or infinity.

    Any triangle near R serves, so Cholesky's of SᴴS does, as long as that is not nearly singular; else reflectors'.
    """
    sums: Sums
    sums, tally = passes(Gram(factor, None, np.full(factor.p, SQUARED[1]), name="sample"), system, spans)
    found = _triangle(sums, factor, None, MOST_ROUGH) if not tally.bad and sums.rest is None else ""
    if not isinstance(found, str):
        return found.R, False
    sampled: Triangle
    sampled, tally = passes(replace(factor, name="sample"), system, spans)
    return sampled.R, tally.bad > 0


def _summable(R0: np.ndarray, norms: np.ndarray, n: int, refined: bool) -> bool:
    """True when AᴴA may be summed as it is, as far as the sample shows."""
    if not (SQUARED[0] < norms.min() and norms.max() < SQUARED[1]):
        return False
    if refined:
        return condition(R0[:n, :n]) <= MOST_REFINED
    return not _fitted(R0, n) and condition(R0[:n, :n]) <= MOST_SUMMED


def _roomy(R0: np.ndarray, n: int) -> np.ndarray:
    """R₀ in column order; residuals that the sample hardly has are taken for larger, since other rows have more."""
    R0, ends = np.asfortranarray(R0), np.arange(n, len(R0))
    least = LEAST_RESIDUAL * np.linalg.norm(R0[:, n:], axis=0)
    R0[ends, ends] = np.maximum(np.abs(R0.diagonal()[n:]), least)
    return R0


def _fitted(R: np.ndarray, n: int) -> bool:
    """True when right-hand sides fit so well that ‖b‖² has too few digits for the norm of a residual.

    x loses nothing then: what rounds in Aᴴb is a rounding of b.
    """
    return bool((np.linalg.norm(R[:, n:], axis=0) > MOST_FITTED * np.abs(R.diagonal()[n:])).any())


def condition(R: np.ndarray) -> float:
    """cond₂ of upper triangular R, columns scaled to norm one, within a few per cent."""
    if len(R) == 0:
        return 1.0
    norms = column_norms(R)
    scaled = np.asfortranarray(R / np.where(norms > 0, norms, 1.0))
    return largest_singular_value(scaled) / smallest_singular_value(scaled)


def _triangle(sums: Sums, factor: Factor, R0: np.ndarray | None, most: float) -> Triangle | str:
    """U R₀ (or U itself) from G = UᴴU, with the rows that did not go into it; or why not.

    Of G = [A b]ᴴ[A b] A's part decides alone: right-hand sides that are fitted exactly leave next to nothing, and of
    what they leave, E = G₂₂ − CᴴC, only the norms are kept.
    """
    p, n = factor.p, factor.p - factor.rhs
    G = unpacked(sums.G, p)
    U = _cholesky(G[:n, :n])
    found = np.inf if U is None else condition(U)
    if U is None or not found <= most:
        return f"a condition number of {found:.1e} came out for what was summed, and {most:.0e} is the most for that"
    C = solve_triangular(U, G[:n, n:], trans="C", check_finite=False)
    G22 = G[n:, n:]
    E = G22 + np.triu(G22, 1).conj().T - C.conj().T @ C
    if R0 is not None:
        R22 = R0[n:, n:]
        C, E = U @ R0[:n, n:] + C @ R22, R22.conj().T @ E @ R22
        U = (blas.ztrmm if np.iscomplexobj(G) else blas.dtrmm)(1.0, U, R0[:n, :n])
    R, ends = np.zeros_like(G), np.arange(n, p)
    R[:n, :n], R[:n, n:] = U, C
    R[ends, ends] = np.sqrt(np.maximum(E.diagonal().real, 0))
    triangle = Triangle(R, np.zeros((p, 0), R.dtype, order="F"), np.zeros(0))
    return triangle if sums.rest is None else merge(triangle, sums.rest)


def _cholesky(G: np.ndarray) -> np.ndarray | None:
    """U of G = UᴴU, or None when G is not positive definite."""
    if G.size == 0:
        return G
    U, info = (lapack.zpotrf if np.iscomplexobj(G) else lapack.dpotrf)(G, lower=0, clean=1)
    return None if info else np.asarray(U)
