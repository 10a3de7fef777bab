"""A without the means of its columns, as a factor: what a PCA is the decomposition of."""

from dataclasses import dataclass, replace

import numpy as np

from pipelines.centring import Centring, RowCentring
from pipelines.errors import BadData
from pipelines.kinds.base import Work
from pipelines.kinds.factors import tolerance_of
from pipelines.matrix import System, Tally
from pipelines.methods.orthonormal import factor
from pipelines.methods.problem import check
from pipelines.passes.means import Means, Sums
from pipelines.small.rank import EPS, Decision, cut

CONSTANT = 2.0
"""A spread of at most so many roundings of the mean, or of the column without the first guess of it, is none."""
GUESSED_FROM = 1000
"""Rows whose means are taken off before anything is added up."""


@dataclass(frozen=True)
class ColumnsCentred:
    """The factor of a tall A, its columns centred and scaled."""

    system: System
    """Rows without a first guess of the means."""
    R: np.ndarray
    """(n, n)."""
    mean: np.ndarray
    """(n,)."""
    spread: np.ndarray
    """Standard deviations, (n,)."""
    by: np.ndarray
    """What columns are multiplied by, (n,)."""
    size: np.ndarray
    """Root mean squares of the columns without the first guess, of whose size the errors are, (n,)."""
    tally: Tally

    def with_means(self, mean: np.ndarray, by: np.ndarray) -> System:
        """The rows without these means, and scaled by this."""
        assert isinstance(self.system.centring, Centring)
        return replace(self.system, centring=replace(self.system.centring, shift=mean, by=by, ones=False))


@dataclass(frozen=True)
class RowsCentred:
    """The decomposition of Aᴴ for a wide A, its rows centred and scaled."""

    system: System
    centring: RowCentring
    spectrum: np.ndarray
    """(samples,), of columns of variance one where they are scaled."""
    Vh: np.ndarray
    """(samples, samples)."""
    tally: Tally


def columns_centred(work: Work) -> ColumnsCentred:
    """One read, or two with `nan: mean`.

    Raises:
        BadData: fewer than two rows are left, or a column holds nothing.
    """
    n = work.layout.shape.columns
    system = _centred(work, _guess(work))
    R, tally = factor(work.passes, system, replace(work.layout, p=n + 1))
    mean, centred = _without_means(R, system)
    _must_vary(tally.rows)
    spread = np.linalg.norm(centred, axis=0) / (tally.rows - 1) ** 0.5
    constant = _constant(R, mean, spread, tally.rows)
    centred[:, constant] = spread[constant] = 0
    by = inverse_of(spread) if work.job.scale else np.ones(n)
    return ColumnsCentred(
        system, centred * by, mean, spread, by, np.linalg.norm(R[:, 1:], axis=0) / tally.rows**0.5, tally
    )


def rows_centred(work: Work) -> RowsCentred:
    """One read.

    Raises:
        BadData: A has fewer than two rows.
    """
    job, samples = work.job, work.layout.shape.columns
    _must_vary(samples)
    centring = RowCentring(job.scale, fill=job.nan == "mean")
    system = replace(work.system(), centring=centring)
    R, tally = factor(work.passes, system, work.layout)
    _, spectrum, Vh = np.linalg.svd(R)
    if job.scale:  # rows of length one stand for columns of variance one
        spectrum = spectrum * (samples - 1) ** 0.5
    return RowsCentred(system, centring, spectrum, Vh, tally)


def _must_vary(rows: int) -> None:
    if rows < 2:
        raise BadData(f"A variance needs at least 2 rows, and the matrix has {rows}. Use more of its rows.")


def inverse_of(spread: np.ndarray) -> np.ndarray:
    """What makes columns of these spreads ones of variance one, (n,); zero for those that are constant."""
    return np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0.0)


def cut_of(work: Work, spectrum: np.ndarray, rows: int) -> Decision:
    """The rank that the job's rule gives a spectrum whose columns are never scaled for it."""
    limit = replace(tolerance_of(work, rows), scaled=False)
    return cut(spectrum, replace(limit, reason=limit.reason.replace(", on columns scaled to norm one", "")))


def uncorrelated(gram: np.ndarray, norms: np.ndarray) -> float:
    """How far scores are from uncorrelated, of their gram matrix (k, k) and the norms (k,) that they have to have."""
    return float(np.linalg.norm(gram / np.outer(norms, norms) - np.eye(len(norms))))


def _guess(work: Work) -> np.ndarray:
    """Means of the first rows: near enough that no digits are lost when the rest is added up, (n,)."""
    A = work.inputs.A
    first = A.read(0, min(GUESSED_FROM, A.shape[0])).astype(work.layout.shape.dtype)
    there = np.isfinite(first)
    count = there.sum(axis=0)
    return np.asarray(np.where(there, first, 0).sum(axis=0) / np.maximum(count, 1))


def _centred(work: Work, guess: np.ndarray) -> System:
    """Rows [1, a − guess]; with `nan: mean`, a − mean where a is there and 0 where it is not."""
    system, n = work.system(), work.layout.shape.columns
    if work.job.nan != "mean":
        return replace(system, centring=Centring(guess, np.ones(n), ones=True))
    step = Means(n, work.layout.shape.dtype, work.layout.slab_rows)
    sums: Sums
    as_they_are = replace(system, centring=Centring(guess, np.ones(n), missing=True))
    sums, tally = work.passes(step, as_they_are, work.layout.spans)
    check(tally)
    empty = np.flatnonzero(sums.count == 0)
    if len(empty) and work.layout.shape.rows:
        raise BadData(nothing_but_nan(int(empty[0])))
    mean = guess + sums.sum / np.maximum(sums.count, 1)
    return replace(system, centring=Centring(mean, np.ones(n), ones=True, missing=True, fill=True))


def _without_means(R: np.ndarray, system: System) -> tuple[np.ndarray, np.ndarray]:
    """The means (n,), and the R-factor of A without them: what [1 A]'s factor holds beside its first row."""
    assert isinstance(system.centring, Centring)
    ones = R[0, 0]
    mean = system.centring.shift + (R[0, 1:] / ones if ones else 0)
    return mean, R[1:, 1:]


def _constant(R: np.ndarray, mean: np.ndarray, spread: np.ndarray, rows: int) -> np.ndarray:
    """Columns whose spread is what rounding leaves of a constant, (n,): scaling would make a component of it."""
    rounding = np.maximum(EPS * np.abs(mean), EPS * len(R) * np.linalg.norm(R[:, 1:], axis=0) / rows**0.5)
    return np.asarray(spread <= CONSTANT * rounding)


def nothing_but_nan(column: int) -> str:
    """The letter about a column without a single number."""
    return (
        f"Column {column:,} of the matrix (counted from 0) holds nothing but NaN, so it has no mean. Leave it out: "
        "`matrix: {url: …, columns: […]}`."
    )
