"""A least-squares problem laid out for reading, its solution, and what any method has to check on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.errors import BadData
from pipelines.layout import Layout, tree_depth
from pipelines.matrix import NAMES, Source, Span, System, Tally
from pipelines.passes.factor import Factor
from pipelines.passes.output import Target
from pipelines.small.rank import Decision, Tolerance, column_norms, tolerance

SMALLEST = 1e-140
"""Norms of single rows or columns below this are refused, unless they are zero."""
OVERFLOWS = 1e154
"""The square of a larger number is no 64-bit float."""
LARGEST = 1e70
"""Norms above this, or below its inverse, are refused: squares of products of such numbers are no 64-bit floats."""


class Runs(Protocol):
    """The engine: a pass over all spans of a system."""

    @property
    def said(self) -> list[str]:
        """What came out otherwise than planned, for the result; to be added to."""

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
    target: Callable[[int, int, int], Target] | None
    """Makes room for a stored x of given rows, columns and chunk rows; None keeps x in memory."""
    stored: np.dtype[Any]
    """The number type that x will have."""


@dataclass(frozen=True)
class Measured:
    """What a second read says about x, one number for each right-hand side."""

    rss: np.ndarray
    """‖b − A x‖², (k,)."""
    backward: np.ndarray
    """‖ΔA‖_F / ‖A‖_F of the nearest problem that x solves, (k,)."""
    forward: np.ndarray
    """Bound on ‖x − x*‖ / ‖x*‖, (k,)."""


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
    measured: Measured | None
    refined: bool
    rows: int
    omitted: int
    uneven_rows: float | None
    """Largest over smallest row norm, when it was measured."""
    identity: tuple[int, int, int]
    x_norm: np.ndarray | None = None
    """‖x eⱼ‖ of an x that was given, (k,)."""


def factor_pass(layout: Layout) -> Factor:
    """The pass that factors, with the sizes of the layout."""
    shape = layout.shape
    rhs = 0 if shape.wide or layout.t else shape.k
    return Factor(
        layout.p,
        layout.t,
        shape.dtype,
        layout.slab_rows,
        layout.group,
        layout.fan_in,
        layout.block,
        layout.products,
        rhs,
        layout.alone,
    )


def tolerance_of(problem: Problem, rows: int) -> Tolerance:
    """Whose rule decides the rank, for a system of so many rows."""
    layout = problem.layout
    return tolerance(problem.rtol, rows, layout.shape.columns, tree_depth(layout.span_count, layout.fan_in))


def check(tally: Tally, *, wide: bool = False) -> None:
    """Raises BadData when a pass has met NaN or infinity."""
    if tally.bad:
        assert tally.first is not None
        row, column, name = tally.first
        raise BadData(not_finite(tally.bad, (column, row, name) if wide else (row, column, name)))
    if not wide:
        something_left(tally.rows, tally.omitted)


def something_left(rows: int, omitted: int) -> None:
    """Raises BadData when every row was left out: an answer to nothing would look like one to the data."""
    if omitted and not rows:
        raise BadData(
            f"All {omitted:,} rows hold NaN or infinity, so `nan: omit_rows` leaves nothing. Find the "
            "columns that they are in, and leave those out: `matrix: {url: …, columns: […]}`."
        )


def not_finite(count: int, first: tuple[int, int, str]) -> str:
    """The letter about NaN and infinity; `first` is a row, a column, and the array they are in."""
    row, column, name = first
    others = "1 entry" if count == 1 else f"{count:,} entries"
    return (
        f"{others} of the matrix and the right-hand side are NaN or infinite; the first is at row {row:,}, column "
        f"{column:,} of the {name} (counted from 0). Set `nan: omit_rows` in the job file to leave such rows out, "
        "or clean the data."
    )


def in_range(name: str, norms: np.ndarray) -> None:
    """Raises BadData when later sums of squares would overflow or vanish, and their certificate with them."""
    for norm in norms[(norms > LARGEST) | ((norms > 0) & (norms < 1 / LARGEST))][:1]:
        said = f"{norm:.1e}" if norm < OVERFLOWS else f"{OVERFLOWS:.0e} or more"
        norm = min(norm, OVERFLOWS)
        raise BadData(
            f"The norm of the {name} is {said}, and squares of products of such numbers leave the range of 64-bit "
            f"floats. Divide it by {10.0 ** round(np.log10(norm)):.0e} and run the job again; x changes by that factor."
        )


def columns_in_range(what: str, norms: np.ndarray) -> None:
    """Raises BadData when a row or column of A, by their norms, is not zero and yet too small for its square."""
    for j in np.flatnonzero((norms > 0) & (norms < SMALLEST))[:1]:
        raise BadData(
            f"The norm of {what} {j:,} of the matrix (counted from 0) is {norms[j]:.1e}, and its square is no 64-bit "
            f"float. Multiply the {what} by {10.0 ** -round(np.log10(norms[j])):.0e}, or set it to zero."
        )


def unchanged(first: Tally, later: Tally) -> None:
    """Raises BadData when a later pass has met other chunks than the first."""
    changed = [name for name, a, b in zip(NAMES, first.identity, later.identity, strict=True) if a != b]
    if changed:
        raise BadData(
            f"The {' and the '.join(changed)} changed in the store while the job was reading: chunks were written, or "
            "went bad, between the first pass and a later one. Run the job again when nobody writes; if nobody did, "
            "look at the disk."
        )


def frobenius(R: np.ndarray) -> float:
    """‖R‖_F = ‖A‖_F, without overflow or underflow."""
    return float(column_norms(column_norms(R)[:, None])[0])
