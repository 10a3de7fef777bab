"""Stored rows that follow from the rows of A, made once more beside them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipelines.kernels.basis import Basis
from pipelines.kinds.base import Work
from pipelines.kinds.recheck.base import SIX_DIGITS, Compared, roundings, rows_of, side_by_side
from pipelines.matrix import Source, System, Tally, Together
from pipelines.passes.again import Again, Remade
from pipelines.passes.apply import Output
from pipelines.result import Result
from pipelines.small.rounding import unit
from pipelines.storage import describe


def remade(
    work: Work,
    result: Result,
    system: System,
    basis: Basis,
    outputs: Sequence[Output],
    *,
    measure: bool = False,
    across: bool = False,
) -> tuple[Remade, Tally]:
    """How far the stored rows of all outputs are from those of today, in one read; `across` as for `rows_of`."""
    stored = [rows_of(work, result, output.name, across=across) for output in outputs]
    b: tuple[Source, ...] = () if system.b is None else (system.b,)
    together = Together((*b, *stored))
    k = sum(source.shape[1] for source in b)
    dtype = np.result_type(work.layout.shape.dtype, basis.dtype, *(source.dtype for source in together.sources))
    step = Again(basis, tuple(outputs), k, dtype, work.layout.slab_rows, measure)
    found: Remade
    # In the same slabs as then, or rows of Q would round otherwise.
    beside = replace(side_by_side(work, system, together), b_along=k, block_rows=system.block_rows)
    found, tally = work.passes(step, beside, work.layout.spans)
    return found, tally


def mapped(
    work: Work, result: Result, system: System, name: str, W: np.ndarray, fewer: float = 0.0, *, across: bool = False
) -> tuple[Remade, Tally, Compared]:
    """The same of rows a W that are stored under a name, column by column; W has lost `fewer` of itself by rounding.

    Rounding moves a column by a part of ‖A‖ ‖w‖, which may be far longer than A w.
    """
    assert result.url is not None
    outputs = [Output(name, np.eye(W.shape[1]), None)]
    most = roundings(work, work.layout.shape.rows) + 2 * unit(describe(result.url / name).dtype)
    found, tally = remade(work, result, system, Basis(W=W), outputs, measure=True, across=across)
    longest = found.norm**0.5 * np.linalg.norm(W, axis=0)
    size = enlarged(np.sqrt(found.size), longest, most) + longest * fewer / most
    return found, tally, Compared(name, worst(np.sqrt(found.apart), size), most)


def lost_by(stored: np.ndarray, made: np.ndarray) -> float:
    """What a small factor has lost that is stored in a narrower type than it was made in."""
    return 2 * unit(stored.dtype) if stored.dtype.itemsize < made.dtype.itemsize else 0.0


def enlarged(lengths: np.ndarray, by: np.ndarray, most: float) -> np.ndarray:
    """Of what size the roundings are in arrays of these lengths that are made of longer ones, but for six digits."""
    return np.asarray(np.clip(by, lengths, lengths * max(1.0, SIX_DIGITS / most)))


def worst(apart: np.ndarray, size: np.ndarray) -> float:
    """The largest of these parts (k,); a difference from nothing counts as it is, and NaN as infinite."""
    largest = float((apart / np.where(size > 0, size, 1)).max(initial=0.0))
    return largest if np.isfinite(largest) else float(np.inf)


def only_matrix(tally: Tally) -> Tally:
    """What was seen of A, without what was read beside it."""
    return replace(tally, identity=(tally.identity[0], 0, 0))
