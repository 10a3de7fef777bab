"""A stored x: backward error, residual, error bound, rank; and what is stored beside it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipelines.certify import Certificate, certify
from pipelines.kinds.base import Work
from pipelines.kinds.least_squares import problem_of
from pipelines.kinds.recheck.base import SIX_DIGITS, Compared, Rechecked, of, roundings, rows_of, values
from pipelines.kinds.recheck.triangle import triangle
from pipelines.methods import tsqr
from pipelines.methods.measure_wide import measure_wide
from pipelines.methods.problem import Measured, Solution
from pipelines.result import Result


def recheck(work: Work, result: Result) -> Rechecked:
    """x, and the arrays that say something of it."""
    job, wide = work.job, work.layout.shape.wide
    problem = replace(problem_of(work), target=None)
    if wide:
        solution = measure_wide(problem, work.passes, rows_of(work, result, "x", across=False))
    else:
        x = result.x.astype(work.layout.shape.dtype)
        solution = tsqr.measure(problem, work.passes, x[:, None] if x.ndim == 1 else x)
    if not np.isfinite(solution.rss).all():  # x is not, and has no error to speak of
        nothing = np.full(len(solution.rss), np.inf)
        solution = replace(solution, measured=Measured(solution.rss, nothing, nothing))
    certificate = certify(solution, wide=wide, ridge=job.ridge, warnings=work.warnings)
    return Rechecked(certificate, solution.identity, tuple(_compared(work, result, solution)))


def _compared(work: Work, result: Result, solution: Solution) -> Iterator[Compared]:
    most = roundings(work, work.layout.shape.rows)
    yield _residual(work, result, solution, most)
    if work.job.verify:
        yield from _errors(result)
    if work.layout.refined:  # sums of AᴴA have lost a condition number of digits
        most = min(most * solution.decision.scaled_condition, SIX_DIGITS)
    spectrum = solution.decision.singular_values
    if spectrum is not None:
        yield from values(result, ("singular_values",), spectrum, most)
    if "R" in result.names:
        yield triangle(np.triu(solution.R), result["R"], most)


def _residual(work: Work, result: Result, solution: Solution, most: float) -> Compared:
    """‖b − A x‖, which rounding leaves uncertain by a part of ‖A‖ ‖x‖ + ‖b‖; one that was not measured is a guess."""
    assert solution.x_norm is not None
    then, now = np.atleast_1d(result.residual_norm), np.sqrt(solution.rss)
    most = most if work.job.verify else SIX_DIGITS
    if then.shape != now.shape:
        return Compared("residual_norm", np.inf, most)
    size = solution.a_norm * solution.x_norm + solution.b_norm
    parts = [of(float(abs(a - b)), float(whole)) for a, b, whole in zip(then, now, size, strict=True)]
    return Compared("residual_norm", max(parts, default=0.0), most)


def _errors(result: Result) -> Iterator[Compared]:
    """Errors of each right-hand side, whose largest the certificate names to the last digit."""
    c = result.certificate
    assert isinstance(c, Certificate)
    for name, said in (("backward_error", c.backward_error), ("forward_error_bound", c.forward_error_bound)):
        if said is None:
            continue
        largest = float(np.max(result[name], initial=0.0))
        found = 0.0 if largest == said or (not result[name].size) else of(abs(largest - said), said)
        yield Compared(f"each_{name}", found, 0.0)
