"""How many independent columns there are: the rule, the tolerance, the decision, and the reason for it.

NumPy's rule, eps·max(m, n), cuts honest directions once m is large: 2.2e-7 for 10⁹ rows.  The rounding errors
of a tree of QR factors grow with n and with the depth of the tree, and the rule `auto` follows them.  It looks
at columns scaled to norm one, so a column in other units is not taken for a dependent one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.linalg import lapack, solve_triangular

EPS = float(np.finfo(np.float64).eps)
"""2.2e-16, the spacing of floats at one; the unit roundoff u is half of it."""
MOST_AUTO = 1e-10
"""The rule `auto` never cuts above this, however large the problem."""
EXACT_UP_TO = 512
"""Columns up to which singular values are always computed: 0.03 s on one core."""

Rule = Literal["auto", "numpy", "scipy", "gelsd", "given"]


@dataclass(frozen=True)
class Tolerance:
    """Singular values below rtol times the largest count as zero."""

    rtol: float
    rule: Rule
    reason: str
    scaled: bool
    """True when the rule looks at columns scaled to norm one."""


@dataclass(frozen=True)
class Decision:
    """The rank of A and what it rests on."""

    rank: int
    tolerance: Tolerance
    singular_values: np.ndarray | None
    """Of A as given, descending; None when an estimate was enough."""
    largest: float
    """Of A as given; estimated when singular_values is None."""
    smallest: float
    """The smallest that counts (number `rank`); estimated when singular_values is None."""
    scaled_condition: float
    """Condition number of A with its columns scaled to norm one, of the part that counts."""
    kept: float | None
    """The smallest kept value relative to the largest, in the variables that the rule looks at."""
    dropped: float | None
    """The largest dropped one, or None when none was."""
    scaled_inverse: float
    """‖D⁻¹A⁺‖₂, D being the scales of the columns that the rule looks at."""
    tilt: float
    """‖D⁻¹‖₂ when x is the shortest of many, so that it turns with the row space of A; 0 when there is one."""

    @property
    def condition_number(self) -> float:
        """The largest singular value that counts over the smallest."""
        return self.largest / self.smallest if self.smallest > 0 else np.inf


def tolerance(rtol: str | float, m: int, n: int, depth: int) -> Tolerance:
    """The tolerance that a rule gives for an m × n matrix factored by a tree of `depth` levels."""
    if not isinstance(rtol, str):
        return Tolerance(rtol, "given", "the job file gives it", scaled=False)
    if rtol == "numpy":
        return Tolerance(
            EPS * max(m, n), "numpy", f"eps·max(m, n), as numpy.linalg.lstsq: eps·{max(m, n):,}", scaled=False
        )
    if rtol in ("scipy", "gelsd"):
        rule: Rule = "scipy" if rtol == "scipy" else "gelsd"
        return Tolerance(EPS, rule, "eps, as scipy.linalg.lstsq and LAPACK's gelsd with rcond < 0", scaled=False)
    factor = max(n, 8 * depth, round(m**0.5))
    value = max(n * EPS, min(EPS * factor, MOST_AUTO))
    return Tolerance(
        value,
        "auto",
        f"eps·max(n, 8·tree depth, √m) = eps·{factor:,}, on columns scaled to norm one",
        scaled=True,
    )


def cut(s: np.ndarray, limit: Tolerance, most: int | None = None) -> Decision:
    """The rank that singular values (n,), descending, have under a tolerance, or `most` when that is less."""
    rank = int((limit.rtol * s[0] < s).sum()) if len(s) and s[0] > 0 else 0
    rank = rank if most is None else min(rank, most)
    smallest = float(s[rank - 1]) if rank else 0.0
    largest = float(s[0]) if rank else 0.0
    return Decision(
        rank, limit, s, largest, smallest, largest / smallest if rank else 1.0,
        smallest / largest if rank else None,
        float(s[rank] / s[0]) if rank < len(s) and s[0] > 0 else 0.0 if rank < len(s) else None,
        1 / smallest if rank else 0.0, 0.0,
    )  # fmt: skip


def column_scales(R: np.ndarray) -> np.ndarray:
    """Powers of two dⱼ with ‖R eⱼ‖ dⱼ between 0.7 and 1.4, (n,); for a zero column the largest of the others' scales.

    Column norms of R are those of A, and scaling by powers of two rounds nothing.  A zero column in other units than
    the rest would have its rounding errors taken for the largest part of D⁻¹V.
    """
    norms = column_norms(R)
    scales = np.ones(len(norms))
    some = norms > 0
    scales[some] = np.exp2(-np.clip(np.round(np.log2(norms[some])), -1000, 1000))
    scales[~some] = scales[some].max(initial=1.0 if not some.any() else 0.0)
    return scales


def column_norms(R: np.ndarray) -> np.ndarray:
    """‖R eⱼ‖ of each column, without overflow or underflow."""
    largest = np.abs(R).max(axis=0, initial=0.0)
    safe = np.where(largest > 0, largest, 1.0)
    norms: np.ndarray = safe * np.sqrt((np.abs(R / safe) ** 2).sum(axis=0))
    return np.where(largest > 0, norms, 0.0)


def reciprocal_condition(R: np.ndarray) -> float:
    """LAPACK's estimate of 1 / (‖R‖₁ ‖R⁻¹‖₁) for upper triangular R: n² flops, within a factor of about 3."""
    if R.shape[0] == 0:
        return 1.0
    if not R.diagonal().all():
        return 0.0
    trcon: Any = lapack.ztrcon if np.iscomplexobj(R) else lapack.dtrcon
    rcond, info = trcon(np.asfortranarray(R), norm="1", uplo="U", diag="N")
    return float(rcond) if info == 0 else 0.0


def largest_singular_value(R: np.ndarray) -> float:
    """‖R‖₂ by the power method: from below, and within a few per cent."""
    return _power(R.shape[1], R.dtype, lambda v: R.conj().T @ (R @ v)) ** 0.5


def smallest_singular_value(R: np.ndarray) -> float:
    """1 / ‖R⁻¹‖₂ of a nonsingular triangular R by the power method: from above, and within a few per cent."""

    def step(v: np.ndarray) -> np.ndarray:
        w = solve_triangular(R, v, trans="C", check_finite=False)
        return np.asarray(solve_triangular(R, w, check_finite=False))

    return _power(R.shape[0], R.dtype, step) ** -0.5


STEPS = 20
"""Steps of the power method: n² flops each."""


def _power(n: int, dtype: np.dtype[Any], step: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest eigenvalue of a positive definite matrix, given by its product with a vector."""
    v = np.random.default_rng(0).standard_normal(n).astype(dtype)
    for _ in range(STEPS):
        v = step(v / (np.linalg.norm(v) or 1.0))
    return float(np.linalg.norm(v))
