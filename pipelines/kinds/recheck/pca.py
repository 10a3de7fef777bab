"""Stored components with their means and variances, and scores."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipelines.centring import RowCentring
from pipelines.certify import FactorCertificate
from pipelines.kinds.base import Work
from pipelines.kinds.centred import ColumnsCentred, columns_centred, cut_of, inverse_of, rows_centred, uncorrelated
from pipelines.kinds.factors import certificate_of
from pipelines.kinds.recheck.base import (
    SIX_DIGITS,
    Compared,
    Rechecked,
    and_stored,
    beside_rows,
    distance,
    finite,
    of,
    roundings,
    rows_of,
    side_by_side,
)
from pipelines.kinds.recheck.remade import lost_by, mapped
from pipelines.kinds.recheck.svd import left_of
from pipelines.kinds.recheck.triangle import vectors
from pipelines.matrix import System, Tally, Together
from pipelines.methods.problem import unchanged
from pipelines.passes.components import Beheld, Beholds
from pipelines.result import Result
from pipelines.small.rounding import unit


def recheck(work: Work, result: Result) -> Rechecked:
    """What A without its means says of each array."""
    return _wide(work, result) if work.layout.shape.wide else _tall(work, result)


def _tall(work: Work, result: Result) -> Rechecked:
    """Components against R of the centred columns, and scores against the rows."""
    found, s, Vh = columns_centred(work), result["singular_values"], result["components"]
    tally = found.tally
    spectrum = np.linalg.svd(found.R, compute_uv=False)
    certificate = certificate_of(work, cut_of(work, spectrum, tally.rows), tally)
    most = roundings(work, tally.rows)
    compared = list(_columns(work, result, found, most))
    most *= _lost(found, tally.rows)
    compared += [
        *_variances(result, spectrum, tally.rows, most),
        _turned(vectors("components", found.R, s, Vh, most), Vh),
    ]
    if "scores" in result.names:
        certificate, scores = _scores(work, result, found, certificate)
        compared.append(scores)
    return Rechecked(certificate, tally.identity, tuple(compared))


def _signs(V: np.ndarray) -> bool:
    """True when the largest entry of each row is positive, or one that is as large: so components are turned."""
    size = np.abs(V)
    largest = size >= (1 - SIX_DIGITS) * size.max(axis=1, initial=0.0, keepdims=True)
    turned = np.abs(V - size) <= SIX_DIGITS * size
    return bool((largest & turned).any(axis=1).all())


def _turned(components: Compared, V: np.ndarray) -> Compared:
    """The same, and infinitely wrong where the signs are not those that components are given."""
    return components if _signs(V) else replace(components, value=np.inf)


def _lost(found: ColumnsCentred, rows: int) -> float:
    """How much longer the columns were before their means were taken off: of that length are the roundings in R."""
    before = rows**0.5 * float(np.linalg.norm(found.size * found.by))
    return max(1.0, before / (float(np.linalg.norm(found.R)) or before or 1.0))


def _columns(work: Work, result: Result, found: ColumnsCentred, most: float) -> Iterator[Compared]:
    """Means and spreads, of the size of what they were summed from."""
    size = np.hypot(np.abs(found.mean), found.size)
    size = np.where(size > 0, size, 1)
    yield Compared("mean", _largest(result["mean"], found.mean, size), most)
    if work.job.scale:
        yield Compared("scale", _largest(result["scale"], found.spread, size), most)


def _largest(then: np.ndarray, now: np.ndarray, size: np.ndarray) -> float:
    """The largest difference, each of its own size."""
    return of(float((np.abs(then - now) / size).max(initial=0.0)), 1.0) if then.shape == now.shape else float(np.inf)


def _variances(result: Result, spectrum: np.ndarray, samples: int, most: float) -> Iterator[Compared]:
    """Singular values, and what is said of them in other units, which one compares as it compares them."""
    size = float(np.linalg.norm(spectrum))
    scale = {"singular_values": None, "explained_variance": samples - 1, "explained_variance_ratio": size**2}
    for name, factor in scale.items():
        then = result[name]
        with np.errstate(invalid="ignore"):  # of a negative variance, which is infinitely wrong
            then = then if factor is None else np.sqrt(then * factor)
        yield Compared(name, distance(then, spectrum[: len(then)], size), most)


def _scores(
    work: Work, result: Result, found: ColumnsCentred, certificate: FactorCertificate
) -> tuple[FactorCertificate, Compared]:
    """Scores beside the rows that they are of, with the means and components that are stored with them."""
    job, s, Vh, rows = work.job, result["singular_values"], result["components"], found.tally.rows
    by = inverse_of(result["scale"]) if job.scale else np.ones(len(result["mean"]))
    lengths = np.full(len(s), (rows - 1) ** 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        W = Vh.conj().T / (s / lengths) if job.whiten else Vh.conj().T
    system, W = found.with_means(result["mean"], by), W.astype(found.R.dtype)
    seen, later, compared = mapped(work, result, system, "scores", W, lost_by(Vh, found.R))
    unchanged(found.tally, replace(later, identity=(later.identity[0], 0, 0)))
    gram = of(uncorrelated(seen.gram, lengths if job.whiten else s), 1.0)
    return replace(certificate, verified=True, orthogonality=gram), compared


def _wide(work: Work, result: Result) -> Rechecked:
    """Components beside the columns of A, and scores against what the two make."""
    found, s, samples = rows_centred(work), result["singular_values"], work.layout.shape.columns
    tally = found.tally
    certificate = certificate_of(work, cut_of(work, found.spectrum, tally.rows), tally)
    most = roundings(work, tally.rows)
    system = found.system
    k = len(s)
    Y = rows_of(work, result, "components", across=True)
    nothing = np.zeros((k, samples), work.layout.shape.dtype)
    held, _ = beside_rows(work, system, Y, nothing, back=True)
    gram = of(float(np.linalg.norm(held.gram - np.eye(k))), 1.0)
    certificate = replace(certificate, verified=True, orthogonality=gram)
    lengths = s / (samples - 1) ** 0.5 if work.job.scale else s
    size = float(np.linalg.norm(found.spectrum)) / ((samples - 1) ** 0.5 if work.job.scale else 1.0)
    Zh, clear = left_of(held.back), s > SIX_DIGITS * s.max(initial=0.0)
    beheld, later = _beheld(work, result, system, Zh.conj().T, lengths)
    unchanged(tally, replace(later, identity=(later.identity[0], 0, 0)))
    stored = most + 2 * unit(Y.dtype)
    compared = [
        *_variances(result, found.spectrum, samples, most),
        _turned(Compared("components", of(beheld.misfit**0.5, size), stored * max(1, k) ** 0.5), Zh[clear]),
        Compared("mean", of(beheld.mean, 1.0), most),
    ]
    if work.job.scale:
        compared.append(Compared("scale", of(beheld.scale, 1.0), most))
    if "scores" in result.names:
        compared.append(_small_scores(work, result, held.back, lengths, size, stored))
    return Rechecked(certificate, tally.identity, tuple(compared))


def _beheld(work: Work, result: Result, system: System, Z: np.ndarray, lengths: np.ndarray) -> tuple[Beheld, Tally]:
    """The rows of Aᴴ as they are stored, beside all that was written for each."""
    names = ("components", "mean", "scale") if work.job.scale else ("components", "mean")
    stored = Together(tuple(rows_of(work, result, name, across=name == "components") for name in names))
    dtype = np.result_type(work.layout.shape.dtype, stored.dtype)
    assert isinstance(system.centring, RowCentring)
    step = Beholds(Z, lengths, system.centring, work.layout.shape.columns, dtype, work.layout.slab_rows)
    found: Beheld
    found, tally = work.passes(step, replace(side_by_side(work, system, stored), centring=None), work.layout.spans)
    return found, tally


def _small_scores(
    work: Work, result: Result, back: np.ndarray, lengths: np.ndarray, size: float, most: float
) -> Compared:
    """Scores U S of a wide A, which are A times the components; whitened ones at the length that those have."""
    then, samples = result["scores"], work.layout.shape.columns
    most = and_stored(most, then) * max(1, len(lengths)) ** 0.5
    if then.shape != back.conj().T.shape or not finite(then, back):
        return Compared("scores", np.inf, most)
    unwhitened = then * (lengths / (samples - 1) ** 0.5) if work.job.whiten else then * _unscaled(work, samples)
    return Compared("scores", distance(unwhitened, back.conj().T, size), most)


def _unscaled(work: Work, samples: int) -> float:
    """What takes scores of columns of variance one to those of columns of length one."""
    return 1 / (samples - 1) ** 0.5 if work.job.scale else 1.0
