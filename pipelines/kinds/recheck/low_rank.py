"""A stored pair L R: ‖A − L R‖, and the singular values beside it."""

from dataclasses import replace

import numpy as np

from pipelines.kinds import spectral
from pipelines.kinds.base import Work
from pipelines.kinds.low_rank import rank_of, weights_of
from pipelines.kinds.recheck.base import (
    SIX_DIGITS,
    Compared,
    Rechecked,
    before,
    beside,
    distance,
    roundings,
    values,
    with_held,
)
from pipelines.kinds.recheck.remade import lost_by, mapped
from pipelines.kinds.recheck.svd import bounds
from pipelines.methods.options import Exact, Sketch
from pipelines.passes.beside import Held
from pipelines.result import Result
from pipelines.small.rounding import unit


def recheck(work: Work, result: Result) -> Rechecked:
    """‖A − L R‖; the large factor against A times the small one; s against new values, or against both factors."""
    wide, s, options = work.layout.shape.wide, result["s"], spectral.method(work.job, work.layout.shape)
    exact, most = isinstance(options, Exact), roundings(work, work.layout.shape.rows)
    certificate, compared = before(result), []
    if exact:
        spectrum = spectral.spectrum_of(work, lambda found, width: True)  # which only a block asks
        _, certificate = spectral.certified(work, spectrum)
        compared = values(result, ("s",), spectrum.s, most)
    large, F = ("R", result["L"].conj().T) if wide else ("L", result["R"])
    held, tally = beside(work, result, large, F, across=wide, back=not exact)
    weights = weights_of(work.job, s, wide=wide)
    rest = s / np.where(weights > 0, weights, 1)  # what F has of S
    rest = np.where(rest > 0, rest, 1)
    if not exact:
        compared = _lengths(work, result, held, F, most)
        compared += bounds(result, spectral.residuals(held, s, F / rest[:, None], weights), most + 4 * unit(work.dtype))
    W = (F.conj().T / rest**2).astype(work.layout.shape.dtype)  # A Fᴴ = L F Fᴴ
    _, _, made = mapped(work, result, work.system(), large, W, lost_by(F, W), across=wide)
    certificate = replace(with_held(certificate, held, len(F)), orthogonality=None)
    return Rechecked(certificate, tally.identity, (*compared, made))


def _lengths(work: Work, result: Result, held: Held, F: np.ndarray, most: float) -> list[Compared]:
    """The values of a random block, whose squares stand in Lᴴ A Rᴴ; a sketch has guessed them, and does so again."""
    if isinstance(spectral.method(work.job, work.layout.shape), Sketch):
        return _guessed(work, result)
    squared = (held.back * F.conj()).sum(axis=1).real  # sⱼ², where A V is U S
    size = float(np.linalg.norm(squared))
    return [Compared("s", distance(result["s"] ** 2, squared, size), most + 4 * unit(work.dtype))]


def _guessed(work: Work, result: Result) -> list[Compared]:
    """The values of a sketch, made once more: L and R do not hold them."""
    job = work.job
    spectrum = spectral.spectrum_of(work, lambda found, width: rank_of(job, found, len(found.s)) <= width)
    return values(result, ("s",), spectrum.s, SIX_DIGITS)
