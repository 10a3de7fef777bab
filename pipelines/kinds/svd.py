"""SVD through R: values and the small side's vectors from one read, the large side's from one or two more."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate, parts
from pipelines.errors import PlanRefused
from pipelines.jobs import SVD
from pipelines.jobs.svd import Relative
from pipelines.kernels.basis import Basis
from pipelines.kinds import spectral
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype
from pipelines.kinds.factors import in_memory, needs_tall_for_nan, shortfalls_of, target_of, written_bytes
from pipelines.kinds.spectral import Spectrum
from pipelines.layout import Layout, factor_flops
from pipelines.methods.options import Exact
from pipelines.methods.orthonormal import orthonormal, right_basis
from pipelines.methods.problem import unchanged
from pipelines.passes.project import Project, Projected
from pipelines.small.rank import Decision

method, reason, basis_of, buffer_bytes = spectral.method, spectral.reason, spectral.basis_of, spectral.buffer_bytes

STEADY = 10.0
"""Up to this condition number A V S⁻¹ is orthonormal to roundoff by itself, and one read is saved."""


def writes(job: SVD, *, wide: bool) -> bool:
    """True when the vectors of the large side are asked for."""
    return job.vectors == "both" or (job.vectors == "right" and wide)


def steps(job: SVD, layout: Layout) -> list[Step]:
    """The reads that find the values; for the large side's vectors one to make them orthonormal and one to write."""
    shape = layout.shape
    needs_tall_for_nan(job, layout)
    k = _most(job, shape.columns)
    complex_ = 4 if shape.dtype.kind == "c" else 1
    found = spectral.steps(job, layout)
    project = 2.0 * shape.rows * shape.columns * k * complex_
    if writes(job, wide=shape.wide):
        found.append(Step("orthogonalise", project + factor_flops(shape.rows, k, 0) * complex_))
        size = written_bytes(layout, k, answer_dtype(job, layout).itemsize)
        found.append(Step("write", (2 if job.verify else 1) * project, writes=size))
    elif job.verify and not isinstance(method(job, shape), Exact):
        found.append(Step("verify", 3 * project, products=True))
    return found


def _most(job: SVD, n: int) -> int:
    if isinstance(job.values, int):
        if job.values > n:
            raise PlanRefused(
                f"{job.values:,} singular values are asked for, and the matrix has {n:,}. Set `values` to at most "
                f"{n:,}, or to all."
            )
        return job.values
    return n


def result_bytes(job: SVD, layout: Layout) -> int:
    """s, and the vectors."""
    n, size = layout.shape.columns, answer_dtype(job, layout).itemsize
    k = _most(job, min(n, layout.p) if isinstance(job.values, Relative) else n)
    small = k * n if job.vectors != "none" else 0
    large = written_bytes(layout, k, size) if writes(job, wide=layout.shape.wide) else 0
    return (small + n) * size + large


def solve(work: Work) -> Outcome:
    """s, and the vectors that are asked for, measured."""
    job, layout = work.job, work.layout
    wide = layout.shape.wide
    spectrum = spectrum_of(work)
    decision, certificate = spectral.certified(work, spectrum)
    k = _kept(job, spectrum.s, decision)
    s, Vh, large, columns = spectrum.s[:k], spectrum.Vh[:k], {}, "Vt" if wide else "U"
    bounds: dict[str, np.ndarray] = {}
    if spectrum.exact:
        certificate = replace(certificate, best_error=spectrum.tail(k))
    elif not job.verify:
        certificate = replace(certificate, reconstruction_error=spectrum.tail(k))
    stored = writes(job, wide=wide)
    if stored or (job.verify and not spectrum.exact):
        s, Vh, written = _written(work, s, Vh, spectrum)
        if stored:
            large = in_memory(work, columns, written.rows, k, columns=wide)
        if job.verify:
            misfit = written.misfit**0.5 / (spectrum.norm or 1.0)
            gram = float(np.linalg.norm(written.gram - np.eye(k))) if stored else None
            if gram is not None and job.vectors == "both":
                gram = max(gram, off_orthonormal(spectral.as_stored(Vh, work.dtype)))
            certificate = replace(certificate, verified=True, orthogonality=gram, reconstruction_error=misfit)
        if job.verify and not spectrum.exact:
            bounds["error_bound"] = found = spectral.residuals(written, s, Vh)
            certificate = replace(
                certificate,
                values_error=spectral.values_error(found, s),
                best_error=spectral.best_error(spectrum, s, misfit, found) if stored or spectrum.resolved else None,
            )
    missing = spectral.too_few(work, spectrum, k) if isinstance(job.values, Relative) else []
    certificate = replace(certificate, statement=_statement(job, certificate, spectrum, k))
    small = {"s": s, **bounds} | ({"singular_values": spectrum.s} if spectrum.exact else {})
    if job.vectors != "none" and not (wide and job.vectors == "right"):
        name, array = ("U", Vh.conj().T) if wide else ("Vt", Vh)
        small[name] = np.ascontiguousarray(array).astype(work.dtype, copy=False)
    return Outcome(
        arrays=small | large,
        dimensions={
            "s": ("component",), "singular_values": ("value",), "error_bound": ("component",),
            "U": ("row", "component"), "Vt": ("component", "column"),
        },
        certificate=certificate,
        shortfalls=(*missing, *shortfalls_of(certificate, job.require)),
        identity=spectrum.tally.identity,
        preview={"s": [float(value) for value in s[:8]]},
    )  # fmt: skip


def spectrum_of(work: Work) -> Spectrum:
    """The values that the job asks for, and perhaps more."""
    return spectral.spectrum_of(work, lambda found, width: _above(work.job, found.s) < width)


def off_orthonormal(Vh: np.ndarray) -> float:
    """‖VᴴV − I‖_F of rows, summed in double precision."""
    Vh = Vh.astype(np.result_type(Vh.dtype, np.float64))
    return float(np.linalg.norm(Vh @ Vh.conj().T - np.eye(len(Vh))))


def _above(job: SVD, s: np.ndarray) -> int:
    """How many values the tolerance asks for."""
    return int((s > job.values.tolerance * s[0]).sum()) if isinstance(job.values, Relative) and len(s) else 0


def _kept(job: SVD, s: np.ndarray, decision: Decision) -> int:
    """How many values there are vectors for: none for zeros, whose vectors A does not determine."""
    if isinstance(job.values, Relative):
        return _above(job, s) if decision.rank else 0
    if job.vectors == "none":
        return min(_most(job, len(s)), len(s))
    return min(_most(job, len(s)), decision.rank)


def _written(work: Work, s: np.ndarray, Vh: np.ndarray, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, Projected]:
    """s, Vᴴ and what the last read measured."""
    job, layout, wide, k = work.job, work.layout, work.layout.shape.wide, len(s)
    stored = writes(job, wide=wide)
    basis, T = right_basis(Vh, np.where(s > 0, s, 1)), None
    if stored:
        basis, T, s, Vh = corrected(work, s, Vh, spectrum)
    F = s[:, None] * spectral.as_stored(Vh, work.dtype)
    name, dimensions = ("Vt", ("component", "column")) if wide else ("U", ("row", "component"))
    step = Project(
        basis, T, F if job.verify else None, layout.shape.dtype, work.dtype, layout.slab_rows,
        target_of(work, name, k, dimensions, columns=wide) if stored else None,
        back=layout.shape.columns if job.verify and not spectrum.exact else 0, keep=stored,
        name="write" if stored else "verify",
    )  # fmt: skip
    written: Projected
    written, seen = work.passes(step, work.system(), layout.spans)
    unchanged(spectrum.tally, seen)
    return s, Vh, written


def corrected(
    work: Work, s: np.ndarray, Vh: np.ndarray, spectrum: Spectrum
) -> tuple[Basis, np.ndarray | None, np.ndarray, np.ndarray]:
    """U as a basis times T, with its s and Vᴴ: with Q = A V S⁻¹ R₂⁻¹ the SVD of R₂ S corrects all three."""
    basis = right_basis(Vh, np.where(s > 0, s, 1))
    rough = not spectrum.resolved or (len(s) and s[0] > STEADY * s[-1])
    if not len(s) or not rough:
        return basis, None, s, Vh
    basis = orthonormal(work.passes, work.system(), work.layout, basis, spectrum.tally)
    assert basis.R2 is not None
    T, s, Z = np.linalg.svd(basis.R2 * s)
    return basis, T, s, Z @ Vh


def _statement(job: SVD, c: FactorCertificate, spectrum: Spectrum, k: int) -> str:
    if not spectrum.exact:
        return _randomized_statement(job, c, spectrum, k)
    if c.orthogonality is None or c.reconstruction_error is None:
        return (
            "These are the singular values of a matrix that differs from yours by a few roundings in each entry "
            "(Householder QR is backward stable); no further read measured that."
        )
    best = f", and no matrix of rank {k:,} comes nearer than {c.best_error:.2e}" if c.best_error else ""
    return (
        f"U S Vᴴ differs from your matrix by {parts(c.reconstruction_error)}{best}; the vectors are orthonormal up to "
        f"{c.orthogonality:.1e}. Both were measured on what was written."
    )


def _randomized_statement(job: SVD, c: FactorCertificate, spectrum: Spectrum, k: int) -> str:
    if c.reconstruction_error is None or c.values_error is None:
        each = "each at most the true one of its number" if spectrum.resolved else "known to about 1e-8 of the largest"
        return (
            f"An estimate of the {k:,} largest singular values from random columns, {each}. What they leave out of "
            f"your matrix is about {c.reconstruction_error:.2e} of it; `verify: false` left out the read that bounds "
            "their errors."
        )
    best = f", and about {c.best_error:.3e} is the least that any {k:,} could" if c.best_error is not None else ""
    said = (
        f"{'' if spectrum.resolved else 'An estimate. '}Each of the {k:,} values lies within {c.values_error:.1e} of "
        f"the largest from a singular value of your matrix. What they leave out of it is {c.reconstruction_error:.3e} "
        f"of its norm{best}. Measured in a further read."
    )
    if isinstance(job.values, Relative):
        # σₖ₊₁² ≤ sₖ₊₁² + ‖A − A V Vᴴ‖², of all that was found.
        rest = spectrum.tail(len(spectrum.s)) * spectrum.norm
        following = float(spectrum.s[k]) if k < len(spectrum.s) else 0.0
        proven = k > 0 and np.hypot(following, rest) <= job.values.tolerance * spectrum.s[0]
        said += (
            " No value above the tolerance was missed."
            if proven
            else (" That no value above the tolerance was missed is likely, and not proven.")
        )
    return said
