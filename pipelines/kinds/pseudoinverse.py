"""The Moore–Penrose inverse, from storage to storage, held against the four conditions that define it."""

from dataclasses import dataclass, replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.errors import BadData, PlanRefused
from pipelines.jobs import Pseudoinverse
from pipelines.kernels.basis import Basis
from pipelines.kernels.growth import inverse, summable
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method, no_basis
from pipelines.kinds.factors import (
    certificate_of,
    needs_tall_for_nan,
    shortfalls_of,
    target_of,
    tolerance_of,
    written_bytes,
)
from pipelines.layout import Layout, factor_flops
from pipelines.matrix import InMemory, Source, Stored, Tally
from pipelines.methods.orthonormal import factor, orthonormal, right_basis
from pipelines.methods.problem import frobenius, unchanged
from pipelines.passes.invert import Checked, Invert, Inverted, Penrose
from pipelines.passes.output import Target
from pipelines.small.inverse import FullRank, decide
from pipelines.small.rank import Decision, cut
from pipelines.storage import describe
from pipelines.units import format_bytes

PROBES = 20
"""Random columns for the condition that no sum over rows can see."""
SEED = 0
FACTOR_OF_PROBES = 10**0.5
"""‖M‖_F is at most this many times its estimate but for one case in a million: 20 Gaussian probes, Chernoff's bound."""


@dataclass(frozen=True)
class Recipe:
    """X = K Qᴴ, and what it is the pseudoinverse of."""

    basis: Basis
    K: np.ndarray
    """(n, r)."""
    XA: np.ndarray
    """What X A has to be, (n, n)."""
    R: np.ndarray
    """The R-factor of what X inverts: A, or A without what was cut off."""


method, basis_of = exact_method, no_basis


def writes(_job: Pseudoinverse, *, wide: bool) -> bool:  # noqa: ARG001  # both ways X is written as it is made
    """True."""
    return True


def steps(job: Pseudoinverse, layout: Layout) -> list[Step]:
    """A read each to factor, to make Q orthonormal (not needed when R is well conditioned), to write, and to verify."""
    shape = layout.shape
    needs_tall_for_nan(job, layout)
    m, n = (shape.columns, shape.rows) if shape.wide else (shape.rows, shape.columns)
    if job.rank is not None and job.rank > min(m, n):
        raise PlanRefused(
            f"A pseudoinverse of rank {job.rank:,} is asked for, and a matrix of {m:,} × {n:,} has at most rank "
            f"{min(m, n):,}. Set `rank` to at most that, or leave it out."
        )
    if (job.side == "left" and m < n) or (job.side == "right" and m > n):
        what, more, fewer = ("columns", n, m) if job.side == "left" else ("rows", m, n)
        raise PlanRefused(
            f"side: {job.side} needs independent {what}, and {more:,} {what} of length {fewer:,} cannot be so. "
            f"Use side: {'right' if job.side == 'left' else 'left'}, or leave it out."
        )
    one = factor_flops(shape.rows, layout.p, 0) * (4 if shape.dtype.kind == "c" else 1)
    if form_of(job, layout) == "operator":
        found = [Step("factor", one, factors=True), Step("orthogonalise", 1.5 * one, factors=True)]
        return [*found, Step("probe", 2 * one), Step("verify", 3 * one)] if job.verify else found
    size = explicit_bytes(job, layout)
    found = [Step("factor", one, factors=True), Step("orthogonalise", 1.5 * one, factors=True)]
    found.append(Step("write", 2 * one, writes=size))
    return [*found, Step("verify", one)] if job.verify else found


def form_of(job: Pseudoinverse, layout: Layout) -> str:
    """Explicit or operator."""
    if job.form != "auto":
        return job.form
    return "explicit" if explicit_bytes(job, layout) <= job.explicit_at_most else "operator"


def explicit_bytes(job: Pseudoinverse, layout: Layout) -> int:
    """A⁺ is as large as A in the answer's number type."""
    return written_bytes(layout, layout.shape.columns, answer_dtype(job, layout).itemsize)


def result_bytes(job: Pseudoinverse, layout: Layout) -> int:
    """A⁺, or the factors that stand for it."""
    if form_of(job, layout) == "operator":
        return 3 * layout.shape.columns**2 * layout.shape.dtype.itemsize
    return explicit_bytes(job, layout)


def buffer_bytes(layout: Layout) -> int:
    """Rows of X on their way to a chunk, and what was made of a slab; later chunks of A and X side by side."""
    return (6 * layout.out_rows + 4 * layout.slab_rows) * layout.shape.columns * layout.shape.dtype.itemsize


def reason(job: Pseudoinverse, layout: Layout) -> str:
    """Why this method."""
    cut_off = f", cut to rank {job.rank:,}" if job.rank is not None else ""
    why = f"from an orthonormal Q, which keeps all four Penrose conditions at any condition number{cut_off}"
    if form_of(job, layout) == "explicit":
        return why
    size = f"A⁺ would be {format_bytes(explicit_bytes(job, layout))}, " if job.form == "auto" else ""
    return f"{why}; {size}kept as an operator of {format_bytes(result_bytes(job, layout))}"


def solve(work: Work) -> Outcome:
    """X, written, and certified as it is stored."""
    job, layout, system = work.job, work.layout, work.system()
    wide = layout.shape.wide
    R, tally = factor(work.passes, system, layout)
    decision, full = decided(work, R, tally.rows)
    _side(work, decision)
    certificate = certificate_of(work, decision, tally)
    recipe = _recipe(work, R, decision, full, tally)
    form = form_of(job, layout)
    arrays: dict[str, np.ndarray] = {}
    X: Source | None = None
    if form == "operator":
        assert recipe.basis.R2 is not None
        arrays = {"W" if recipe.basis.R is None else "R1": recipe.basis.by, "R2": recipe.basis.R2, "K": recipe.K}
    target = target_of(work, "pinv", len(R), ("column", "row"), columns=not wide) if form == "explicit" else None
    probes = PROBES if job.verify and not job.ridge else 0
    stored = work.dtype if form == "explicit" else layout.shape.dtype
    step = Invert(recipe.basis, recipe.K, probes, SEED, layout.shape.dtype, stored, layout.slab_rows, target)
    if form == "operator":
        step = replace(step, keep=False, name="probe")
    made = step.start()
    if form == "explicit" or probes:
        made, seen = work.passes(step, system, layout.spans)
        unchanged(tally, seen)
    if target is not None:
        X = _stored(target, work.run, wide=wide)
    elif form == "explicit":
        adjoint = made.rows.together(len(R), work.dtype)
        X, arrays["pinv"] = InMemory(adjoint), adjoint if wide else np.ascontiguousarray(adjoint.conj().T)
    if job.verify:
        certificate = _verified(work, recipe, (step, made), X, tally, certificate)
    certificate = replace(certificate, statement=_statement(job, form, certificate))
    if decision.singular_values is not None:
        arrays["singular_values"] = decision.singular_values
    return Outcome(
        arrays=arrays,
        dimensions={
            "pinv": ("column", "row"), "singular_values": ("value",), "R1": ("row_of_R", "column_of_R"),
            "R2": ("row_of_R2", "column_of_R2"), "W": ("row_of_W", "component"), "K": ("row_of_K", "component"),
        },
        certificate=certificate,
        shortfalls=tuple(shortfalls_of(certificate, job.require)),
        identity=tally.identity,
        form=form,
    )  # fmt: skip


def decided(work: Work, R: np.ndarray, rows: int) -> tuple[Decision, bool]:
    """The rank, and whether R itself can be inverted: scaled columns may show that, but not decide what to cut."""
    job, limit = work.job, tolerance_of(work, rows)
    if job.rank is None and not job.ridge:
        decision, inverse = decide(R, limit, exact=False)
        if isinstance(inverse, FullRank):
            return decision, True
    reason = limit.reason.replace(", on columns scaled to norm one", "")
    spectrum = np.linalg.svd(R, compute_uv=False) if R.size else np.zeros(0)
    return cut(spectrum, replace(limit, scaled=False, reason=reason), job.rank), False


def _side(work: Work, decision: Decision) -> None:
    side, n = work.job.side, work.layout.shape.columns
    if side != "any" and decision.rank < n:
        what = "columns" if side == "left" else "rows"
        raise BadData(
            f"side: {side} needs independent {what}, and of the {n:,} {what} only {decision.rank:,} are: singular "
            f"values below {decision.tolerance.rtol:.1e} of the largest count as zero. Leave `side` out for the "
            "Moore-Penrose inverse, which needs no independence."
        )


def _recipe(work: Work, R: np.ndarray, decision: Decision, full: bool, tally: Tally) -> Recipe:
    system, layout, n = work.system(), work.layout, len(R)
    if full:
        P = inverse(R)
        if P is not None and summable(R, P):  # A R⁻¹ is orthonormal to roundoff as it is
            I = np.eye(n, dtype=R.dtype)  # noqa: E741
            basis = Basis(R, R2=I) if form_of(work.job, layout) == "operator" else Basis(W=P, R2=I)
        else:
            basis = orthonormal(work.passes, system, layout, Basis(R), tally)
        return Recipe(basis, basis.inverse, np.eye(n), R)
    U, s, Vh = np.linalg.svd(R) if R.size else (R, np.zeros(0), R)
    r = decision.rank
    U, s, Vh = U[:, :r], s[:r], Vh[:r]
    basis = orthonormal(work.passes, system, layout, right_basis(Vh, s), tally)
    cut_off, ridge = (U * s) @ Vh, work.job.ridge
    if not ridge:
        return Recipe(basis, basis.inverse, Vh.conj().T @ Vh, cut_off)
    assert basis.R2 is not None
    U2, s2, Z = np.linalg.svd(basis.R2 * s)
    Vh = Z @ Vh
    filters = s2 / (s2**2 + ridge)
    V = Vh.conj().T
    return Recipe(basis, V * filters @ U2.conj().T, V * (filters * s2) @ Vh, cut_off)


def _stored(target: Target, run: str, *, wide: bool) -> Source:
    """The rows of Xᴴ as they are stored."""
    info = describe(target.url)
    rows, columns = info.shape
    return Stored(info, (0, rows), (0, columns), False, False, run, transposed=not wide)


def _verified(
    work: Work,
    recipe: Recipe,
    making: tuple[Invert, Inverted],
    X: Source | None,
    tally: Tally,
    certificate: FactorCertificate,
) -> FactorCertificate:
    """The certificate with what a read of A and of the stored X says; without one, X is made again."""
    layout, job = work.layout, work.job
    system, (step, made) = work.system(X), making
    if X is not None:
        system = replace(system, block_rows=max(layout.block_rows, layout.out_rows))
    dtype = np.result_type(layout.shape.dtype, made.XW.dtype)
    held = Penrose(made.XW, made.AW, step if X is None else None, dtype, layout.slab_rows)
    seen: Checked
    seen, later = work.passes(held, system, layout.spans)
    unchanged(tally, replace(later, identity=(later.identity[0], 0, 0)))
    if job.ridge:
        return replace(certificate, verified=True, ridge_error=float(np.linalg.norm(seen.XA - recipe.XA)))
    # With A = QR and X = K Qᴴ, Q orthonormal: ‖A(XA − I)‖ = ‖R(XA − I)‖ and ‖(XA − I)X‖ = ‖(XA − I)K‖.
    return replace(certificate, verified=True, penrose=conditions(seen, recipe.R, recipe.K, wide=layout.shape.wide))


def conditions(seen: Checked, R: np.ndarray, K: np.ndarray, *, wide: bool) -> dict[str, float]:
    """Penrose's four, for an R and a K that are as long as A and X are in every direction: Q R = A, K Qᴴ = X."""
    excess, probed = seen.XA - np.eye(len(R)), probed_skew(seen)
    summed = float(np.linalg.norm(seen.XA - seen.XA.conj().T))
    return {
        "AXA = A": float(np.linalg.norm(R @ excess)) / (frobenius(R) or 1.0),
        "XAX = X": float(np.linalg.norm(excess @ K)) / (float(np.linalg.norm(K)) or 1.0),
        "AX Hermitian": summed if wide else probed,
        "XA Hermitian": probed if wide else summed,
    }


def probed_skew(seen: Checked) -> float:
    """How far the m × m product is from Hermitian, as the random columns see it."""
    return float(np.sqrt(seen.skew.mean())) if len(seen.skew) else 0.0


def _statement(job: Pseudoinverse, form: str, c: FactorCertificate) -> str:
    what = "a ridge" if job.ridge else f"rank {c.rank:,}" if not c.full_rank else "full rank"
    kept = form == "operator"
    if c.penrose is None and c.ridge_error is None:
        made = "kept as an operator" if kept else "written"
        return f"The pseudoinverse, of {what}, was {made} and not measured: `verify: false` left that out."
    how = "Measured on what the operator makes of your matrix" if kept else "Measured on what was stored"
    if c.ridge_error is not None:
        return f"XA differs from (AᴴA + λI)⁻¹AᴴA by {c.ridge_error:.1e} (Frobenius norm). {how}."
    assert c.penrose is not None
    first, second, third, fourth = c.penrose.values()
    return (
        f"X meets Penrose's four conditions, of {what}: ‖AXA − A‖ is {first:.1e} of ‖A‖, ‖XAX − X‖ {second:.1e} of "
        f"‖X‖, and AX and XA are Hermitian up to {third:.1e} and {fourth:.1e}. {how}; one of the last two by {PROBES} "
        f"random probes, so it could be {FACTOR_OF_PROBES:.1f} times as large in one case of a million."
    )
