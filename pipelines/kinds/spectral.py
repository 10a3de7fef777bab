"""What SVD and low-rank jobs share: the method that finds the spectrum, what it costs, and how good it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.jobs.low_rank import LowRank
from pipelines.jobs.svd import SVD
from pipelines.kinds.base import Step, Work, best_exact
from pipelines.kinds.factors import certificate_of, tolerance_of
from pipelines.layout import Layout, Shape, factor_flops
from pipelines.matrix import Tally
from pipelines.methods.options import BlockKrylov, Exact, Iterated, Sketch
from pipelines.methods.orthonormal import factor
from pipelines.methods.problem import frobenius
from pipelines.methods.randomized import Found, basis_columns, find, widths
from pipelines.passes.beside import Held
from pipelines.passes.project import Projected
from pipelines.small.rank import EPS, Decision, cut

EXACT_COLUMNS = 4096
"""Columns up to which R is computed whatever is asked for: seconds, and correct to the last digit."""
MOST_EXACT_COLUMNS = 16384
"""Columns above which the SVD of R takes most of an hour, so that `auto` takes it only for all values."""
WORTH_A_GUESS = 4.0
"""How many times as many flops R has to take before random columns are worth the digits that they cost."""
ROUNDINGS = 8.0
"""Roundings of the largest value that no bound goes below."""
SVD_FLOPS = 25.0
"""Flops of an SVD with vectors, in units of n³."""

Job = SVD | LowRank


@dataclass(frozen=True)
class Spectrum:
    """Singular values of A with their right vectors: all of them, or the largest."""

    s: np.ndarray
    """(L,), descending."""
    Vh: np.ndarray
    """(L, n)."""
    norm: float
    """‖A‖_F."""
    exact: bool
    resolved: bool
    """True when the values are those of A V; a sketch guesses them."""
    tally: Tally

    def tail(self, k: int) -> float:
        """‖A − A V Vᴴ‖_F of the first k vectors, of ‖A‖_F; for an exact spectrum the least of any rank-k matrix."""
        if not self.norm:
            return 0.0
        if self.exact:
            return float(np.linalg.norm(self.s[k:])) / self.norm
        return self.as_found.tail(k) / self.norm

    @property
    def as_found(self) -> Found:
        """The same, as a randomized method left it."""
        return Found(self.s, self.Vh, self.norm, self.tally)


def asked_for(job: Job) -> int | None:
    """How many values, or None when a tolerance decides (or all are asked for)."""
    values = job.rank if isinstance(job, LowRank) else job.values
    return values if isinstance(values, int) else None


def method(job: Job, shape: Shape) -> Exact | Iterated | Sketch:
    """The method with its options; `auto` looks at the shape alone, so that the bits do not depend on the machine."""
    if job.method != "auto":
        return job.method
    k, m, n = asked_for(job), shape.rows, shape.columns
    if n <= EXACT_COLUMNS or (isinstance(job, SVD) and job.values == "all"):
        return best_exact(shape)
    options = BlockKrylov()
    if n > MOST_EXACT_COLUMNS:
        return options
    if k is None:
        return best_exact(shape)
    exact = factor_flops(m, n, 0) + SVD_FLOPS * n**3
    return options if exact > WORTH_A_GUESS * sum(_flops(options, m, n, k)) else best_exact(shape)


def _flops(options: Iterated | Sketch, m: int, n: int, k: int | None) -> list[float]:
    """Of each read that a randomized method makes."""
    width = widths(k, options, n)[0]
    if isinstance(options, Sketch):
        return [4.0 * m * n * width]
    K = basis_columns(width, options, n)
    return [4.0 * m * n * width] * options.steps + [2.0 * m * n * K + factor_flops(m, K, 0)]


def basis_of(job: Job, shape: Shape) -> int | None:
    """Columns of the basis that rows are taken to, at the most; None when R itself is computed."""
    options = method(job, shape)
    if isinstance(options, Exact):
        return None
    return basis_columns(widths(asked_for(job), options, shape.columns)[-1], options, shape.columns)


def steps(job: Job, layout: Layout) -> list[Step]:
    """The reads that find the spectrum: one, or those of a random block (the first, when a tolerance decides)."""
    shape = layout.shape
    complex_ = 4 if shape.dtype.kind == "c" else 1
    options = method(job, shape)
    if isinstance(options, Exact):
        return [Step("factor", factor_flops(shape.rows, layout.p, 0) * complex_, factors=True)]
    flops = _flops(options, shape.rows, shape.columns, asked_for(job))
    names = ["multiply"] * len(flops) if isinstance(options, Sketch) else ["multiply"] * (len(flops) - 1) + ["resolve"]
    return [Step(name, one * complex_, products=True) for name, one in zip(names, flops, strict=True)]


def reason(job: Job, layout: Layout) -> str:
    """Why this method."""
    options, n = method(job, layout.shape), layout.shape.columns
    if isinstance(options, Exact):
        return "exact through TSQR: the singular values of R are those of A, at any condition number"
    why = "asked for by the job file" if job.method != "auto" else f"R would be {n:,} × {n:,}"
    if isinstance(options, Sketch):
        return f"an estimate from one read ({why}): Nyström's approximation from random columns"
    return f"randomized ({why}): {options.steps} products with AᵀA, one read each, and R of what they lead to"


def buffer_bytes(layout: Layout) -> int:
    """Rows on their way to a chunk, and what was made of a slab; the products of a random block."""
    columns = min(layout.p, layout.shape.columns)
    products = 6 * layout.shape.columns * columns if layout.p < layout.shape.columns else 0
    rows = (4 * layout.out_rows + 4 * layout.slab_rows) * columns
    return (rows + products) * layout.shape.dtype.itemsize


def spectrum_of(work: Work, enough: Callable[[Found, int], bool]) -> Spectrum:
    """The spectrum by the job's method; `enough` tells when a block of some width has found all that is wanted."""
    job, layout, system = work.job, work.layout, work.system()
    options = method(job, layout.shape)
    if isinstance(options, Exact):
        R, tally = factor(work.passes, system, layout)
        _, s, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
        return Spectrum(s, Vh, frobenius(R), exact=True, resolved=True, tally=tally)
    found = find(work.passes, system, layout, options, asked_for(job), enough)
    resolved = not isinstance(options, Sketch)
    return Spectrum(found.s, found.Vh, found.norm, exact=False, resolved=resolved, tally=found.tally)


def certified(work: Work, spectrum: Spectrum) -> tuple[Decision, FactorCertificate]:
    """The rank of what was found, and the certificate as far as it goes."""
    limit = replace(tolerance_of(work, spectrum.tally.rows), scaled=False)
    if not spectrum.resolved:  # the noise of a sketch, which sees squares
        noise = ROUNDINGS * (EPS * work.layout.shape.columns**0.5) ** 0.5
        limit = replace(limit, rtol=max(limit.rtol, noise), reason=f"{limit.reason}; at least the noise of a sketch")
    decision = cut(spectrum.s, replace(limit, reason=limit.reason.replace(", on columns scaled to norm one", "")))
    certificate = certificate_of(work, decision, spectrum.tally)
    options = method(work.job, work.layout.shape)
    if spectrum.exact:
        return decision, replace(certificate, method=options.name)
    ends = replace(certificate.singular_values, estimated=True)
    return decision, replace(certificate, method=options.name, found=len(spectrum.s), singular_values=ends)


def residuals(
    written: Projected | Held, s: np.ndarray, Vh: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """‖Aᴴuⱼ − sⱼvⱼ‖ (k,): a singular value of A lies within that of each sⱼ, since A vⱼ = sⱼuⱼ, up to roundings.

    `weights` is what the rows that were written have beside U.  Where sⱼ = 0 those are A vⱼ itself, whose norm bounds
    the smallest singular value.
    """
    if not len(s):
        return np.zeros(0)
    lengths = np.ones(len(s)) if weights is None else np.where(s > 0, weights, 1)
    found = np.linalg.norm(written.back / lengths[:, None] - s[:, None] * Vh, axis=1)
    found = np.where(s > 0, found, np.sqrt(written.gram.diagonal().real))
    return np.asarray(found + ROUNDINGS * EPS * s[0])


def as_stored(factor: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A factor as it will be read back: what is measured is what is stored."""
    return factor.astype(dtype).astype(np.result_type(dtype, np.float64))


def values_error(bounds: np.ndarray, s: np.ndarray) -> float:
    """The largest of the residuals, of the largest value."""
    return float(bounds.max() / s[0]) if len(s) and s[0] > 0 else 0.0


def best_error(spectrum: Spectrum, s: np.ndarray, misfit: float, bounds: np.ndarray) -> float:
    """About the least ‖A − B‖_F of any B of rank k, of ‖A‖: what sⱼ² lack of σⱼ² is at most ρⱼ² over the gap, or ρⱼ.

    ρⱼ = sⱼ ‖Aᴴuⱼ − sⱼvⱼ‖ is the residual of the eigenvalue sⱼ² of AᴴA, and the gap is taken to the next value found
    (Temple 1928, Kato 1949).
    """
    k = len(s)
    # What follows where nothing more was found is at most what was left out, and may be as large as the last value.
    unknown = min(float(s[-1]), spectrum.tail(k) * spectrum.norm) if k else 0.0
    following = float(spectrum.s[k]) if k < len(spectrum.s) else unknown
    rho, gap = s * bounds, s**2 - following**2
    with np.errstate(divide="ignore", invalid="ignore"):
        lacking = np.where(gap > 0, np.minimum(rho, rho**2 / gap), rho)
    return max((misfit * spectrum.norm) ** 2 - float(lacking.sum()), 0.0) ** 0.5 / (spectrum.norm or 1.0)


def too_few(work: Work, spectrum: Spectrum, k: int) -> list[str]:
    """A sentence when the widest random block that was allowed did not lead to all that the tolerance asks for."""
    options, n = method(work.job, work.layout.shape), work.layout.shape.columns
    if isinstance(options, Exact) or len(spectrum.s) >= n:
        return []
    most = widths(None, options, n)[-1]
    if k < most:
        return []
    found = f"a random block of {most:,} columns found {len(spectrum.s):,} values, and more may lie above it"
    return [f"the tolerance is not reached: {found}; raise method.most_columns (at most {n:,})"]
