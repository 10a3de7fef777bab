"""Stored products with an operator: made once more, beside those that are stored."""

from collections.abc import Iterator

import numpy as np

from pipelines.kinds.apply import Products, as_stored, certificate_of, products
from pipelines.kinds.base import Work
from pipelines.kinds.recheck.base import Compared, Rechecked, and_stored, roundings, unmeasured
from pipelines.kinds.recheck.remade import enlarged, only_matrix, remade, worst
from pipelines.methods.problem import unchanged
from pipelines.passes.again import Remade
from pipelines.passes.apply import Output
from pipelines.result import Result
from pipelines.small.rounding import unit
from pipelines.storage import describe


def recheck(work: Work, result: Result) -> Rechecked:
    """Each product against that of today; whether the operator itself holds, its own result tells."""
    held = work.job.operator
    found, most = products(work), roundings(work, work.layout.shape.rows)
    compared = [_small(work, result, found, name, most) for name in found.small]
    tally = found.tally
    if found.outputs:
        again, seen = remade(work, result, found.system, held.basis, found.outputs)
        compared += _large(result, found.outputs, again, most)
        unchanged(only_matrix(tally or seen), only_matrix(seen))
        tally = tally or only_matrix(seen)
    matrix, rhs = (held.fingerprint or 0, 0) if tally is None else tally.identity[:2]
    certificate = unmeasured(certificate_of(held, work.warnings, read=tally is not None))
    return Rechecked(certificate, (matrix, rhs if found.B is None else found.aside, 0), tuple(compared))


def _small(work: Work, result: Result, found: Products, name: str, most: float) -> Compared:
    """A product with a row for each row of the small side, column by column."""
    then, now = result[name], as_stored(name, found.small[name], work, vector=work.inputs.vector)
    most = and_stored(most, then)
    if then.shape != now.shape:
        return Compared(name, np.inf, most)
    then, now = (array.reshape(len(array), -1) for array in (then, now))
    return Compared(name, worst(np.linalg.norm(then - now, axis=0), _sizes(work, found, name, now, most)), most)


def _sizes(work: Work, found: Products, name: str, now: np.ndarray, most: float) -> np.ndarray:
    """Of what size rounding is in each column: of ‖K‖ ‖QᴴB‖ for K QᴴB, which may be far longer; of B for its parts."""
    lengths, K = np.linalg.norm(now, axis=0), work.job.operator.K
    if found.B is not None and name != "leverage":
        return np.asarray(np.linalg.norm(found.B, axis=0))
    if found.gathered is None or K is None or name == "leverage":
        return np.asarray(lengths)
    return enlarged(lengths, np.linalg.norm(K, 2) * np.linalg.norm(found.gathered, axis=0), most)


def _large(result: Result, outputs: tuple[Output, ...], again: Remade, most: float) -> Iterator[Compared]:
    """Products with a row for each row of the system; b - Q C is as uncertain as the longer of its parts."""
    assert result.url is not None
    start = 0
    for output in outputs:
        columns = slice(start, start + output.width)
        size = np.sqrt(again.size[columns])
        if not output.quadratic:
            size = np.hypot(size, np.linalg.norm(output.C, axis=0))
        stored = most + 2 * unit(describe(result.url / output.name).dtype)
        yield Compared(output.name, worst(np.sqrt(again.apart[columns]), size), stored)
        start += output.width
