"""How far to trust an answer: the certificate, and what it means in one plain sentence."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from pipelines.methods.problem import Solution
from pipelines.small.backward import U
from pipelines.small.rank import Decision

SHOWN = 8
"""Right-hand sides whose norms the certificate lists; all of them are in the result's arrays."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class SingularValues:
    """The ends of the spectrum, and the gap where it was cut."""

    largest: float
    smallest: float
    """The smallest that counts."""
    kept_smallest: float | None
    """Relative to the largest, in the variables that the rank rule looks at."""
    dropped_largest: float | None
    """None when nothing was dropped."""
    gap_at_cut: float | None
    """kept_smallest / dropped_largest: a large gap means a clear rank; infinite when zeros were dropped."""
    estimated: bool
    """True when they come from a condition estimate and not from a decomposition."""


@dataclass(frozen=True)
class Stated:
    """What every certificate says: what the answer is worth in words, and the spectrum that it rests on."""

    statement: str
    """What it means, in a sentence or two."""
    verified: bool
    """True when the errors below were measured on what was made."""
    rank: int
    n: int
    """What the rank would be if it were full: min(m, n)."""
    full_rank: bool
    rtol: float
    rtol_rule: str
    rtol_reason: str
    condition_number: float
    """‖A‖₂ ‖A⁺‖₂ of A as given (with the ridge of a least-squares problem), of the part that counts."""
    singular_values: SingularValues
    rows_used: int
    """Rows of A; its columns when a wide A is factored."""
    rows_omitted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes text, since JSON has no word for it."""
        return {name: _json(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What to_dict gave, back."""
        plain: dict[str, Any] = {name: _python(value) for name, value in values.items()}
        plain["singular_values"] = SingularValues(**plain["singular_values"])
        return cls(**plain)


@dataclass(frozen=True)
class Certificate(Stated):
    """How far to trust x.  With several right-hand sides, each number is that of the worst."""

    scaled_condition_number: float
    """The condition number with columns scaled to norm one: what the accuracy of x depends on."""
    backward_error: float | None
    """‖ΔA‖_F / ‖A‖_F of the nearest problem that x solves exactly; None when not verified."""
    forward_error_bound: float | None
    """Bound on ‖x − x*‖ / ‖x‖, x* being the exact solution; None when not verified."""
    correct_digits: int | None
    """Decimal digits that the bound leaves; None when not verified."""
    residual_norm: tuple[float, ...]
    """‖b − A x‖, weighted, of the first 8 right-hand sides."""
    relative_residual: float
    """‖b − A x‖ / ‖b‖."""
    refined: bool
    """True when a step of refinement was taken."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FactorCertificate(Stated):
    """How far to trust the factors of a matrix, or its pseudoinverse.  Norms are Frobenius norms."""

    warnings: tuple[str, ...] = ()
    orthogonality: float | None = None
    """‖QᴴQ − I‖, or ‖UᴴU − I‖ (of V for a wide matrix)."""
    reconstruction_error: float | None = None
    """‖A − QR‖ / ‖A‖, or ‖A − U S Vᴴ‖ / ‖A‖."""
    best_error: float | None = None
    """The least that any matrix of this rank can reach: √(Σ of the squares of the values left out) / ‖A‖; estimated
    from the residuals by a randomized method."""
    penrose: dict[str, float] | None = None
    """AXA = A and XAX = X relative to ‖A‖ and ‖X‖; AX and XA Hermitian, as norms of their skew parts."""
    method: str = "tsqr"
    """What found the spectrum."""
    found: int | None = None
    """How many of the singular values a randomized method looked at; None when all were computed."""
    values_error: float | None = None
    """Of a randomized method: each value lies within this, of the largest, from a singular value of A."""
    ridge_error: float | None = None
    """‖XA − (AᴴA + λI)⁻¹AᴴA‖ for a ridge, in place of Penrose's conditions."""


def certify(solution: Solution, *, wide: bool, ridge: float, warnings: tuple[str, ...] = ()) -> Certificate:
    """The certificate of a solution."""
    decision, measured = solution.decision, solution.measured
    # Equations that were left out of a wide system are columns of zeros in R.
    n = solution.R.shape[0] - (solution.omitted if wide and not ridge else 0)
    full = decision.rank == n
    backward = bound = digits = None
    if measured is not None:
        backward = float(measured.backward.max(initial=U))
        bound = float(measured.forward.max(initial=0.0))
        digits = correct_digits(bound)
    rss, b_norm = np.sqrt(solution.rss), solution.b_norm
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(b_norm > 0, rss / b_norm, 0.0)
    certificate = Certificate(
        statement="", verified=measured is not None, rank=decision.rank, n=n, full_rank=full,
        rtol=decision.tolerance.rtol, rtol_rule=decision.tolerance.rule, rtol_reason=decision.tolerance.reason,
        condition_number=float(decision.condition_number) if decision.rank else 1.0,
        scaled_condition_number=float(decision.scaled_condition), backward_error=backward, forward_error_bound=bound,
        correct_digits=digits, residual_norm=tuple(float(r) for r in rss[:SHOWN]),
        relative_residual=float(relative.max(initial=0.0)), singular_values=ends_of(solution.decision),
        refined=solution.refined, rows_used=solution.rows, rows_omitted=solution.omitted,
        warnings=(*warnings, *_warnings(solution)),
    )  # fmt: skip
    return _with_statement(certificate, wide=wide, ridge=ridge)


def correct_digits(bound: float) -> int:
    """Decimal digits of x that a bound on its relative error leaves, 0 to 15."""
    if not bound < 1:
        return 0
    return min(15, int(-math.log10(max(bound, 1e-16))))


def ends_of(d: Decision) -> SingularValues:
    """The ends of the spectrum that a decision rests on."""
    gap = None if d.dropped is None or d.kept is None else (d.kept / d.dropped if d.dropped > 0 else math.inf)
    return SingularValues(float(d.largest), float(d.smallest), d.kept, d.dropped, gap, d.singular_values is None)


def _warnings(solution: Solution) -> list[str]:
    d, found = solution.decision, []
    if d.kept is not None and d.dropped and d.kept / d.dropped < 10:
        found.append(
            f"The rank is a close call: singular values {d.kept:.2g} (kept) and {d.dropped:.2g} (dropped), relative to "
            f"the largest, lie on both sides of the tolerance {d.tolerance.rtol:.2g} with no gap between them."
        )
    if d.dropped is None and d.kept is not None and d.kept < 10 * d.tolerance.rtol and solution.R.shape[0]:
        found.append(
            f"The smallest singular value, {d.kept:.2g} of the largest, is barely above the tolerance "
            f"{d.tolerance.rtol:.2g}: with a slightly larger rtol the rank would drop."
        )
    if solution.uneven_rows is not None and solution.uneven_rows > 1e4 and not solution.refined:
        found.append(
            f"The norms of A's rows differ by a factor of {solution.uneven_rows:.1g}; no refinement was needed."
        )
    return found


def _with_statement(c: Certificate, *, wide: bool, ridge: float) -> Certificate:
    return replace(c, statement=_statement(c, wide=wide, ridge=ridge))


def _statement(c: Certificate, *, wide: bool, ridge: float) -> str:
    kind = "ridge" if ridge else "minimum-norm least-squares" if wide or not c.full_rank else "least-squares"
    if not c.verified:
        return (
            f"These coefficients are a {kind} solution that nobody has verified: `verify: false` left the second read "
            "of the matrix out, so no error is known."
        )
    assert c.backward_error is not None
    return (
        f"These coefficients are the exact {kind} solution of a matrix that differs from yours by "
        f"{parts(c.backward_error)}; {_digits(c)}."
    )


def _digits(c: Certificate) -> str:
    if c.correct_digits:
        digit = "digit" if c.correct_digits == 1 else "digits"
        return f"expect about {c.correct_digits} correct {digit}"
    return f"with a condition number of {c.scaled_condition_number:.1e}, not one digit of them is certain"


def parts(relative: float) -> str:
    """3e-16 → "3 parts in 10¹⁶"."""
    if relative == 0:
        return "nothing that could be measured"
    if not math.isfinite(relative):
        return "more than can be said"
    exponent = math.floor(math.log10(relative)) if relative > 0 else -300
    leading = round(relative / 10.0**exponent)
    if leading == 10:
        leading, exponent = 1, exponent + 1
    return f"{leading} part{'s' if leading > 1 else ''} in 10{str(-exponent).translate(SUPERSCRIPTS)}"


def shortfalls(certificate: Certificate, require: Any) -> list[str]:
    """What the job file requires and the certificate does not reach, one sentence each."""
    c, found = certificate, []
    for name, value in (("backward_error", c.backward_error), ("forward_error", c.forward_error_bound)):
        most = getattr(require, name)
        if most is not None and not (value is not None and value <= most):
            found.append(f"{name} is {'unknown' if value is None else f'{value:.2g}'}; at most {most:.2g} is required")
    most = require.condition_number
    if most is not None and not c.scaled_condition_number <= most:
        found.append(
            f"condition_number (scaled columns) is {c.scaled_condition_number:.2g}; at most {most:.2g} is required"
        )
    rank = c.n if require.rank == "full" else require.rank
    if rank is not None and c.rank != rank:
        found.append(f"rank is {c.rank}; {rank}{' (full)' if require.rank == 'full' else ''} is required")
    return found


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _python(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _python(item) for name, item in value.items()}
    if isinstance(value, list):
        return tuple(_python(item) for item in value)
    return float(value) if value in ("inf", "-inf", "nan") else value
