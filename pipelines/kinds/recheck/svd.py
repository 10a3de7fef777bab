"""Stored singular values, with vectors or alone."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.kinds import spectral, svd
from pipelines.kinds.base import Work
from pipelines.kinds.recheck.base import (
    SIX_DIGITS,
    Compared,
    Rechecked,
    and_stored,
    before,
    beside,
    distance,
    finite,
    of,
    roundings,
    roundings_of,
    values,
    with_held,
)
from pipelines.kinds.recheck.remade import worst
from pipelines.kinds.recheck.triangle import apart, vectors
from pipelines.kinds.svd import off_orthonormal
from pipelines.methods.options import Exact
from pipelines.result import Result
from pipelines.small.rounding import unit


def recheck(work: Work, result: Result) -> Rechecked:
    """The values against new ones, and the vectors against A."""
    exact, wide = isinstance(spectral.method(work.job, work.layout.shape), Exact), work.layout.shape.wide
    if work.job.vectors == "none" or (work.job.vectors == "right" and not wide and not exact):
        return _found_again(work, result, exact=exact)
    if work.job.vectors == "right" and not wide:
        return _right(work, result)
    return _both(work, result, exact=exact)


def _found_again(work: Work, result: Result, *, exact: bool) -> Rechecked:
    """Values alone, or some of them with right vectors: found as they were, of a random block to six digits."""
    made = svd.solve(work)
    most, size = SIX_DIGITS, float(np.linalg.norm(made.arrays["s"]))
    if exact:
        most, size = roundings(work, made.certificate.rows_used), float(np.linalg.norm(made.arrays["singular_values"]))
    small = {name: array for name, array in made.arrays.items() if name in ("s", "singular_values")}
    compared = [Compared(name, distance(result[name], array, size), most) for name, array in small.items()]
    if "error_bound" in made.arrays:
        compared += bounds(result, made.arrays["error_bound"], roundings(work, work.layout.shape.rows))
    if "Vt" in made.arrays:
        compared += _same_vectors(result, made.arrays["s"][:, None] * made.arrays["Vt"])
    return Rechecked(made.certificate, made.identity, tuple(compared))


def _same_vectors(result: Result, R: np.ndarray) -> list[Compared]:
    """Vᴴ of a random block: orthonormal, and in S Vᴴ the same as today's up to rotations of equal values."""
    s, Vh = result["s"], result["Vt"]
    if Vh.shape != R.shape or s.shape != (len(R),) or not finite(s, Vh):
        return [Compared("Vt", np.inf, SIX_DIGITS)]
    most = and_stored(roundings_of(len(s)), Vh) * max(1, len(s)) ** 0.5
    found = of(apart(R, s[:, None] * Vh), float(np.linalg.norm(R)))
    return [Compared("Vt", found, SIX_DIGITS), Compared("orthogonality_of_Vt", off_orthonormal(Vh), most)]


def _exact(work: Work, result: Result) -> tuple[spectral.Spectrum, FactorCertificate, float, list[Compared]]:
    """The spectrum of A once more, and what it says of the values that are stored."""
    spectrum = svd.spectrum_of(work)
    _, certificate = spectral.certified(work, spectrum)
    most = roundings(work, spectrum.tally.rows)
    return spectrum, certificate, most, values(result, ("s", "singular_values"), spectrum.s, most)


def _right(work: Work, result: Result) -> Rechecked:
    """Vᴴ of a tall A, which R tells all of."""
    spectrum, certificate, most, compared = _exact(work, result)
    R = spectrum.s[:, None] * spectrum.Vh
    compared.append(vectors("Vt", R, result["s"], result["Vt"], most))
    return Rechecked(certificate, spectrum.tally.identity, tuple(compared))


def bounds(result: Result, found: np.ndarray, most: float) -> list[Compared]:
    """Bounds on the errors of values, and the largest of them, which the certificate names, each of its own size."""
    s, said, compared = result["s"], before(result).values_error, []
    largest = float(s.max(initial=0.0))
    if "error_bound" in result.names:
        then = result["error_bound"]
        apart = np.abs(then - found) if then.shape == found.shape else np.full(1, np.inf)
        compared.append(Compared("error_bound", worst(apart, found + largest * most / SIX_DIGITS), SIX_DIGITS))
    if said is not None:
        compared.append(Compared("values_error", of(abs(spectral.values_error(found, s) - said), 1.0), most))
    return compared


def _both(work: Work, result: Result, *, exact: bool) -> Rechecked:
    """Vectors of the large side: ‖UᴴU − I‖ of both sides, ‖A − U S Vᴴ‖."""
    wide, s = work.layout.shape.wide, result["s"]
    compared: list[Compared] = []
    certificate, most = before(result), roundings(work, work.layout.shape.rows)
    if exact:
        _, certificate, most, compared = _exact(work, result)
    large, small = ("Vt", "U") if wide else ("U", "Vt")
    if small in result.names:
        Vh = (result[small].conj().T if wide else result[small]).astype(work.layout.shape.dtype)
    else:
        Vh = _other_side(work, result, len(s), exact=exact)
    held, tally = beside(work, result, large, s[:, None] * Vh, across=wide, back=not exact)
    certificate = with_held(certificate, held, len(s))
    if small in result.names:
        certificate = replace(certificate, orthogonality=max(certificate.orthogonality or 0.0, off_orthonormal(Vh)))
    if not exact:
        most = most + 4 * unit(work.dtype)  # of both sides
        seen = (held.back * Vh.conj()).sum(axis=1).real  # uⱼᴴA vⱼ
        compared = [
            Compared("s", distance(s, seen, float(np.linalg.norm(seen))), most),
            *bounds(result, spectral.residuals(held, s, Vh), most),
        ]
    return Rechecked(certificate, tally.identity, tuple(compared))


def _other_side(work: Work, result: Result, k: int, *, exact: bool) -> np.ndarray:
    """Uᴴ (k, m) of a wide A, of which Vᴴ alone was stored.

    Vᴴ Aᴴ is S Uᴴ; of a random block it also has what makes the bounds on its values, so U is found as it was.
    """
    nothing = np.zeros((k, work.layout.shape.columns), work.layout.shape.dtype)
    held, _ = beside(work, result, "Vt", nothing, across=True, back=True)
    if exact:
        return left_of(held.back)
    spectrum = svd.spectrum_of(work)
    Uh = svd.corrected(work, spectrum.s[:k], spectrum.Vh[:k], spectrum)[-1]
    seen = (held.back * Uh.conj()).sum(axis=1)
    return np.asarray(np.where(seen == 0, 1, seen / np.where(seen == 0, 1, np.abs(seen)))[:, None] * Uh)


def left_of(back: np.ndarray) -> np.ndarray:
    """Z (k, n), orthonormal, of S Z, whose rows descend: what rounding adds to one of those before it is left out."""
    if not back.size or not finite(back):
        return back
    Q, T = np.linalg.qr(back.conj().T)
    d = T.diagonal()
    signs = np.where(d == 0, 1, d / np.where(d == 0, 1, np.abs(d)))
    return np.asarray((Q * signs).conj().T)
