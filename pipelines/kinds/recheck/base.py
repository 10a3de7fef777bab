"""What rechecks share: what they give back, how far apart arrays may be, and stored rows read beside those of A."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.certify import Certificate, FactorCertificate
from pipelines.errors import BadData
from pipelines.kinds.base import Work
from pipelines.layout import tree_depth
from pipelines.matrix import Source, Stored, System, Tally
from pipelines.methods.problem import check
from pipelines.operators import Operator
from pipelines.passes.beside import Beside, Held
from pipelines.result import Result
from pipelines.small.rank import tolerance
from pipelines.small.rounding import unit
from pipelines.storage import describe

ALLOWED = 16.0
"""How many times the roundings of a tree of factors, as the rule `auto` counts them, two factors may be apart."""
SIX_DIGITS = 1e-6
"""Where rounding may be enlarged further than this, a difference is told anyway: nobody could call the array right."""


@dataclass(frozen=True)
class Compared:
    """An array for which no certificate has a number: how far it is from what the input says."""

    name: str
    value: float
    """Relative to the size of what rounding it has to bear."""
    most: float
    """What rounding may make of it."""


@dataclass(frozen=True)
class Rechecked:
    """What a read of the input says of stored arrays."""

    certificate: Certificate | FactorCertificate
    """What it would be today."""
    identity: tuple[int, int, int]
    """Of the input that it was measured on."""
    compared: tuple[Compared, ...] = ()


def roundings(work: Work, rows: int) -> float:
    """How far two factors of one matrix may be apart, of its norm.

    Each is that of a matrix which differs from A by so many roundings of each column (N. J. Higham, "Accuracy and
    Stability of Numerical Algorithms" (2002), theorem 19.4), which grow with n and the tree as the rule `auto` says.
    """
    layout = work.layout
    depth = tree_depth(layout.span_count, layout.fan_in)
    return ALLOWED * tolerance("auto", rows, layout.shape.columns, depth).rtol


def roundings_of(n: int) -> float:
    """The same of n vectors that a small decomposition has made orthonormal."""
    return ALLOWED * tolerance("auto", n, n, 0).rtol


def and_stored(most: float, array: np.ndarray) -> float:
    """The same of an array that was rounded to fewer digits when it was stored."""
    return most + 2 * unit(array.dtype)


def distance(then: np.ndarray, now: np.ndarray, size: float) -> float:
    """‖then − now‖_F of `size`; infinite where they are of different shapes, or not finite."""
    if then.shape != now.shape:
        return np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        return of(float(np.linalg.norm(then - now)), size)


def of(found: float, size: float) -> float:
    """`found` relative to `size`, or as it is where that is zero; infinite where it is NaN."""
    return found / (size or 1.0) if np.isfinite(found) else np.inf


def values(result: Result, names: tuple[str, ...], spectrum: np.ndarray, most: float) -> list[Compared]:
    """Stored singular values, the largest ones, held against all of them.

    √Σ (σⱼ − σⱼ′)² is at most the Frobenius norm of what was rounded: L. Mirsky, "Symmetric gauge functions and
    unitarily invariant norms" (1960).
    """
    size, found = float(np.linalg.norm(spectrum)), []
    for name in names:
        if name in result.names:
            then = result[name]
            found.append(Compared(name, distance(then, spectrum[: len(then)], size), most))
    return found


def finite(*arrays: np.ndarray) -> bool:
    """True when nothing in them is NaN or infinite, so that they can be factored."""
    return all(np.isfinite(array).all() for array in arrays)


def beside(
    work: Work, result: Result, name: str, F: np.ndarray, *, across: bool, back: bool = False
) -> tuple[Held, Tally]:
    """A and a stored factor of it, read side by side."""
    return beside_rows(work, work.system(), rows_of(work, result, name, across=across), F, back=back)


def beside_rows(work: Work, system: System, Y: Source, F: np.ndarray, *, back: bool = False) -> tuple[Held, Tally]:
    """The rows of a system and a factor of them: YᴴY, ‖A − Y F‖, and YᴴA where it is asked for."""
    layout = work.layout
    dtype = np.result_type(layout.shape.dtype, Y.dtype, F.dtype)
    held: Held
    step = Beside(F.astype(dtype), dtype, layout.slab_rows, back)
    held, tally = work.passes(step, side_by_side(work, system, Y), layout.spans)
    check(tally, wide=layout.shape.wide)
    return held, tally


def side_by_side(work: Work, system: System, Y: Source) -> System:
    """A beside a stored answer; rows of A that are left out are zeros, and those of the answer have to be."""
    rows = max(work.layout.block_rows, work.layout.out_rows)
    return replace(system, b=Y, block_rows=rows, keep_places=True, b_decides=False, b_as_it_is=True)


def rows_of(work: Work, result: Result, name: str, *, across: bool) -> Source:
    """A stored array as rows beside those of the system; `across` takes its conjugated columns.

    Raises:
        BadData: it is not as long as the matrix is now.
    """
    assert result.url is not None
    info = describe(result.url / name)
    shape = (info.shape[0], info.shape[1] if len(info.shape) > 1 else 1)
    found, rows = shape[int(across)], work.layout.shape.rows
    if found != rows:
        what = "columns" if work.layout.shape.wide else "rows"
        raise BadData(
            f"The {name} of this result belongs to a matrix of {found:,} {what}, and the matrix has {rows:,} now. Run "
            "the job again."
        )
    window = (0, shape[0]), (0, shape[1])
    return Stored(info, *window, False, False, work.run, transposed=across, narrow=not across)


def with_held(certificate: FactorCertificate, held: Held, q: int) -> FactorCertificate:
    """The certificate with what was measured beside A."""
    misfit = of(held.misfit**0.5, held.norm**0.5)
    gram = float(np.linalg.norm(held.gram - np.eye(q)))
    return replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)


def as_cut(work: Work, held: Operator) -> Work:
    """The work in the slabs that an operator was made in, since its factors correct what those rounded."""
    slab_rows, block_rows, span_rows = held.cut
    cut = replace(work.layout, slab_rows=slab_rows, block_rows=block_rows, span_rows=span_rows)
    return replace(work, layout=cut)


def before(result: Result) -> Any:
    """The certificate that the result has."""
    certificate = result.certificate
    assert isinstance(certificate, FactorCertificate)
    return certificate


def unmeasured(certificate: FactorCertificate) -> FactorCertificate:
    """The certificate of what rows were made with, without the numbers that were measured on that and not on these."""
    return replace(
        certificate, verified=False, orthogonality=None, reconstruction_error=None, penrose=None, ridge_error=None
    )
