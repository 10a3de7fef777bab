"""PCA: the SVD of A without the mean of its columns, whose factor comes from A and a column of ones."""

from dataclasses import replace

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.errors import BadData, PlanRefused
from pipelines.jobs import PCA
from pipelines.kernels.basis import Basis
from pipelines.kinds.base import Outcome, Step, Work, answer_dtype, exact_method, no_basis
from pipelines.kinds.centred import columns_centred, cut_of, nothing_but_nan, rows_centred, uncorrelated
from pipelines.kinds.factors import (
    certificate_of,
    in_memory,
    needs_tall_for_nan,
    shortfalls_of,
    target_of,
    written_bytes,
)
from pipelines.layout import Layout, factor_flops
from pipelines.matrix import System, Tally
from pipelines.methods.orthonormal import orthonormal, right_basis
from pipelines.methods.problem import unchanged
from pipelines.passes.components import Components, Written
from pipelines.passes.project import Project, Projected

STEADY = 10.0
"""Up to this condition number Aᴴ V S⁻¹ is orthonormal to roundoff by itself, and one read is saved."""


method, basis_of = exact_method, no_basis


def writes(job: PCA, *, wide: bool) -> bool:
    """True when scores are asked for; of a wide matrix the components are what is large."""
    return job.scores or wide


def steps(job: PCA, layout: Layout) -> list[Step]:
    """One read for the components; one for means that NaN take the place of, one for scores."""
    shape = layout.shape
    needs_tall_for_nan(job, layout)
    if isinstance(job.n_components, int) and job.n_components > shape.columns:
        most = "rows" if shape.wide else "columns"
        raise PlanRefused(
            f"{job.n_components:,} components are asked for, and the matrix has {shape.columns:,} {most}. Set "
            f"`n_components` to at most {shape.columns:,}, or to all."
        )
    complex_ = 4 if shape.dtype.kind == "c" else 1
    found = [Step("factor", factor_flops(shape.rows, shape.columns + 1, 0) * complex_, factors=True)]
    if shape.wide:
        k = job.n_components if isinstance(job.n_components, int) else shape.columns
        project = 2.0 * shape.rows * shape.columns * k * complex_
        found.append(Step("orthogonalise", project + factor_flops(shape.rows, k, 0) * complex_))
        size = written_bytes(layout, k, answer_dtype(job, layout).itemsize)
        return [*found, Step("write", 2 * project, writes=size)]
    if job.nan == "mean":
        found.insert(0, Step("means", 0.0))
    if job.scores:
        k = job.n_components if isinstance(job.n_components, int) else shape.columns
        size = written_bytes(layout, k, answer_dtype(job, layout).itemsize)
        found.append(Step("write", 2.0 * shape.rows * shape.columns * k * complex_, writes=size))
    return found


def result_bytes(job: PCA, layout: Layout) -> int:
    """Components, and scores where they are asked for."""
    n, size = layout.shape.columns, answer_dtype(job, layout).itemsize
    large = job.scores or layout.shape.wide
    return (n + 4) * n * size + (written_bytes(layout, n + 2, size) if large else 0)


def buffer_bytes(layout: Layout) -> int:
    """Centred rows, and scores on their way to a chunk."""
    shape = layout.shape
    return (4 * layout.out_rows + 2 * layout.block_rows) * (shape.columns + 1) * shape.dtype.itemsize


def reason(job: PCA, layout: Layout) -> str:
    """Why this method."""
    what = "the correlation" if job.scale else "the covariance"
    if layout.shape.wide:
        return f"exact through TSQR of the centred columns: components of {what} matrix without forming it"
    return f"exact through TSQR of [1 A]: components of {what} matrix without forming it or a copy of A"


def solve(work: Work) -> Outcome:
    """Components, variances, and scores."""
    if work.layout.shape.wide:
        return _solve_wide(work)
    job, found = work.job, columns_centred(work)
    mean, spread, by, tally = found.mean, found.spread, found.by, found.tally
    _, spectrum, Vh = np.linalg.svd(found.R)
    decision = cut_of(work, spectrum, tally.rows)
    variance = spectrum**2 / (tally.rows - 1)
    k = _kept(job, variance, decision.rank)
    Vh = _signed(Vh[:k])
    certificate = certificate_of(work, decision, tally)
    scores: dict[str, np.ndarray] = {}
    if job.scores:
        written = _written(work, found.with_means(mean, by), Vh, variance[:k], tally)
        scores = in_memory(work, "scores", written.rows, k, columns=False)
        if job.verify:
            gram = uncorrelated(written.gram, spectrum[:k] if not job.whiten else np.full(k, (tally.rows - 1) ** 0.5))
            certificate = replace(certificate, verified=True, orthogonality=gram)
    small = {"components": Vh.astype(work.dtype, copy=False), "mean": mean} | ({"scale": spread} if job.scale else {})
    return _outcome(work, certificate, tally, small | scores, spectrum, tally.rows, k)


def _outcome(
    work: Work,
    certificate: FactorCertificate,
    tally: Tally,
    arrays: dict[str, np.ndarray],
    spectrum: np.ndarray,
    samples: int,
    k: int,
) -> Outcome:
    """What both orientations say in the same way."""
    variance = spectrum**2 / (samples - 1)
    whole = float(variance.sum()) or 1.0
    what = "components" if work.layout.shape.wide else "scores"
    statement = _statement(certificate, k, float(variance[:k].sum()) / whole, what)
    certificate = replace(certificate, statement=statement)
    about = {
        "explained_variance": variance[:k],
        "explained_variance_ratio": variance[:k] / whole,
        "singular_values": spectrum[:k],
    }
    return Outcome(
        arrays=arrays | about,
        dimensions={
            "components": ("component", "column"), "scores": ("row", "component"), "mean": ("column",),
            "scale": ("column",), "explained_variance": ("component",), "explained_variance_ratio": ("component",),
            "singular_values": ("component",),
        },
        certificate=certificate,
        shortfalls=tuple(shortfalls_of(certificate, work.job.require)),
        identity=tally.identity,
        preview={"ratio": [float(value) for value in variance[: min(k, 8)] / whole]},
    )  # fmt: skip


def _solve_wide(work: Work) -> Outcome:
    """The same of a wide A, whose columns are read one by one: R of Aᴴ, centred, gives the scores at once."""
    job, layout = work.job, work.layout
    samples = layout.shape.columns
    found = rows_centred(work)
    system, centring, tally = found.system, found.centring, found.tally
    spectrum, Vh = found.spectrum, found.Vh
    decision = cut_of(work, spectrum, tally.rows)
    k = _kept(job, spectrum**2 / (samples - 1), decision.rank)
    s, Vh = spectrum[:k], _signed(Vh[:k])
    basis = right_basis(Vh, s / (samples - 1) ** 0.5 if job.scale else s)
    T = np.eye(k, dtype=layout.shape.dtype)
    if k and s[0] > STEADY * s[-1]:
        basis = orthonormal(work.passes, system, layout, basis, tally)
        assert basis.R2 is not None
        T, s, Z = np.linalg.svd(basis.R2 * s)
        # R₂ is nearly diagonal, and so is Z: each new direction is nearly an old one, and keeps its sign.
        d = Z.diagonal()
        signs = np.where(d == 0, 1, d.conj() / np.where(d == 0, 1, np.abs(d)))
        Vh, T = signs[:, None] * (Z @ Vh), T * signs.conj()
    step = Components(
        basis, T, centring, samples, layout.shape.dtype, work.dtype, layout.slab_rows,
        target_of(work, "components", k, ("component", "column"), columns=True),
        target_of(work, "mean", 1, ("column",), columns=False, vector=True, dtype=layout.shape.dtype),
        target_of(work, "scale", 1, ("column",), columns=False, vector=True, dtype=np.dtype(float))
        if job.scale else None,
    )  # fmt: skip
    written: Written
    written, seen = work.passes(step, replace(system, centring=None), layout.spans)
    unchanged(tally, seen)
    if written.empty is not None:
        raise BadData(nothing_but_nan(written.empty))
    arrays = in_memory(work, "components", written.rows, k, columns=True)
    if work.staging is None:
        arrays["mean"] = written.mean.together(1, layout.shape.dtype)[:, 0]
        if job.scale:
            arrays["scale"] = written.scale.together(1, np.dtype(float))[:, 0]
    if job.scores:
        lengths = np.full(k, (samples - 1) ** 0.5) if job.whiten else s
        arrays["scores"] = (Vh.conj().T * lengths).astype(work.dtype, copy=False)
    certificate = certificate_of(work, decision, tally)
    if job.verify:
        gram = float(np.linalg.norm(written.gram - np.eye(k)))
        certificate = replace(certificate, verified=True, orthogonality=gram)
    return _outcome(work, certificate, tally, arrays, np.r_[s, spectrum[k:]], samples, k)


def _kept(job: PCA, variance: np.ndarray, rank: int) -> int:
    """How many components there are: none for directions without variance, which A does not determine."""
    if job.n_components == "all":
        return rank
    if isinstance(job.n_components, int):
        return min(job.n_components, rank)
    ratio = np.cumsum(variance) / (variance.sum() or 1.0)
    return min(int(np.searchsorted(ratio, job.n_components) + 1), rank)


def _signed(Vh: np.ndarray) -> np.ndarray:
    """Components whose largest entry is positive, as in scikit-learn: else the sign would be anybody's guess."""
    if not Vh.size:
        return Vh
    largest = Vh[np.arange(len(Vh)), np.abs(Vh).argmax(axis=1)]
    return Vh * (np.abs(largest) / largest)[:, None]


def _written(work: Work, system: System, Vh: np.ndarray, variance: np.ndarray, tally: Tally) -> Projected:
    """Scores (A − mean) V, of variance one when they are whitened."""
    W = Vh.conj().T / np.sqrt(variance) if work.job.whiten else Vh.conj().T
    step = Project(
        Basis(W=W), None, None, work.layout.shape.dtype, work.dtype, work.layout.slab_rows,
        target_of(work, "scores", len(Vh), ("row", "component"), columns=False), measure=work.job.verify,
    )  # fmt: skip
    written: Projected
    written, seen = work.passes(step, system, work.layout.spans)
    unchanged(tally, seen)
    return written


def _statement(c: FactorCertificate, k: int, explained: float, what: str) -> str:
    found = f"{k:,} component{'s' if k != 1 else ''}, which explain {100 * explained:.4g} % of the variance"
    if c.orthogonality is None:
        return f"{found}; from the factor of a matrix that differs from yours by a few roundings in each entry."
    if what == "components":
        return f"{found}; as written, they are orthonormal up to {c.orthogonality:.1e}."
    return f"{found}; their scores, as written, are uncorrelated up to {c.orthogonality:.1e}."
