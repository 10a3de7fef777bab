"""From a job to a result: open, plan, run the passes, certify, and let the result appear."""

import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pipelines.certify import Certificate, certify, shortfalls
from pipelines.engine import Engine, Work, graph_of, one_blas_thread
from pipelines.inputs import DaskRows, Inputs, open_inputs
from pipelines.jobs import LeastSquares
from pipelines.layout import Layout
from pipelines.matrix import Source, Span, System
from pipelines.methods import tsqr
from pipelines.methods.problem import Problem, Solution
from pipelines.plan import Plan, Resources, layout_of, plan_of, this_machine
from pipelines.progress import Listener, ignore
from pipelines.rates import load_rates
from pipelines.result import KEY, Result
from pipelines.storage import Staging

PREVIEW = 8
"""Entries of x that the summary shows."""
PACKAGES = ("tallgrass", "numpy", "scipy", "zarr", "dask", "distributed")


def run(
    job: LeastSquares, client: Any = None, listener: Listener = ignore, resources: Resources | None = None
) -> Result:
    """The certified result of a job, stored at its output (when it has one) and returned.

    `client` is a distributed.Client.  Without one the current client is used, as Dask does; if there is none
    either, the passes run in the threads of this process.

    Raises:
        BadData: the input is missing, damaged, not finite, or its shapes disagree.
        PlanRefused: it cannot fit, or the output cannot be written.
        RunFailed: workers died again and again, or nothing moved for `no_progress_timeout`.
    """
    began = time.monotonic()
    client = client or _current_client()
    run_id = uuid.uuid4().hex[:12]
    inputs = open_inputs(job, run_id)
    layout = layout_of(job, inputs)
    resources = resources or (_resources_of(client) if client else this_machine())
    plan = plan_of(job, inputs, layout, resources, load_rates())
    staging = None if job.output is None else Staging(job.output, run_id, overwrite=job.overwrite)
    engine = Engine(client, listener, job.no_progress_timeout, resources.threads)
    try:
        if staging is not None:
            staging.need_space(_result_bytes(job, layout))
        with one_blas_thread():
            solution = _solve(job, inputs, layout, engine, staging)
            certificate = certify(solution, wide=layout.shape.wide, ridge=job.ridge, warnings=plan.warnings)
        timings = engine.timings | {"total": time.monotonic() - began}
        return _result(job, inputs, plan, solution, certificate, timings, staging)
    except BaseException:
        if staging is not None:
            staging.discard()
        raise


def _result_bytes(job: LeastSquares, layout: Layout) -> int:
    """What the result takes on a disk, and a mebibyte for what describes it."""
    shape = layout.shape
    n = shape.rows if shape.wide else shape.columns
    numbers = n * shape.k + ("R" in job.arrays) * shape.columns**2
    return numbers * _answer_dtype(job, layout).itemsize + 2**20


def _current_client() -> Any:
    """The client that Dask would use, or None."""
    import sys

    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def _resources_of(client: Any) -> Resources:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    memory = [worker["memory_limit"] for worker in workers if worker["memory_limit"]]
    threads = min((worker["nthreads"] for worker in workers), default=1)
    return Resources(max(1, len(workers)), threads, min(memory, default=2**50))


def _solve(job: LeastSquares, inputs: Inputs, layout: Layout, engine: Engine, staging: Staging | None) -> Solution:
    spans = layout.spans
    wide = layout.shape.wide
    b, weights = (inputs.b, inputs.weights) if wide else (_cut(inputs.b, spans), _cut(inputs.weights, spans))
    assert b is not None
    system = System(
        A=inputs.A, b=None if wide else b, weights=None if wide else weights, dtype=layout.shape.dtype,
        omit_rows=job.nan == "omit_rows", block_rows=layout.block_rows,
    )  # fmt: skip
    target = None if staging is None else _Target(staging, _answer_dtype(job, layout), inputs)
    problem = Problem(
        system=system, layout=layout, b=b, weights=weights, rtol=job.rtol, ridge=job.ridge, verify=job.verify,
        exact_values="singular_values" in job.arrays, target=target,
    )  # fmt: skip
    extra = graph_of([source.array for source in (inputs.A, b, weights) if isinstance(source, DaskRows)])

    def passes(step: Any, system: System, spans: tuple[Span, ...]) -> Any:
        return engine(step, Work(system, spans, layout.shape.row_bytes, extra))

    return tsqr.solve(problem, passes)


def _cut(source: Source | None, spans: tuple[Span, ...]) -> Source | None:
    return source.cut(spans) if isinstance(source, DaskRows) else source


@dataclass(frozen=True)
class _Target:
    """Where the tasks of a wide problem store their rows of x."""

    staging: Staging
    dtype: np.dtype[Any]
    inputs: Inputs

    def __call__(self, rows: int, columns: int, chunk_rows: int) -> str:
        axes = 1 if self.inputs.vector else 2
        shape, chunks = (rows, columns)[:axes], (min(chunk_rows, max(rows, 1)), columns)[:axes]
        dimensions = ("column", "rhs")[:axes]
        named = _named(self.inputs)
        return self.staging.create("x", shape, self.dtype, chunks, dimension_names=dimensions, attributes=named)


def _named(inputs: Inputs) -> dict[str, Any]:
    return {"columns": list(inputs.names)} if inputs.names else {}


def _answer_dtype(job: LeastSquares, layout: Layout) -> np.dtype[Any]:
    return layout.shape.dtype if job.dtype == "auto" else np.dtype(job.dtype)


def _result(
    job: LeastSquares, inputs: Inputs, plan: Plan, solution: Solution, certificate: Certificate,
    timings: Mapping[str, float], staging: Staging | None,
) -> Result:  # fmt: skip
    arrays = _arrays(job, inputs, solution)
    summary = _summary(job, inputs, plan, solution, certificate, timings, arrays)
    falls = tuple(shortfalls(certificate, job.require))
    if staging is None:
        return Result(None, summary, arrays, falls)
    for name, array in arrays.items():
        staging.put(name, array, _dimensions(name, array), _named(inputs) if name == "x" else None)
    staging.commit({KEY: summary})
    return Result(job.output, summary, arrays, falls)


def _arrays(job: LeastSquares, inputs: Inputs, solution: Solution) -> dict[str, np.ndarray]:
    """What the result holds by name; a vector right-hand side makes vectors and scalars."""
    measured = solution.measured
    arrays = {"residual_norm": np.sqrt(solution.rss)}
    if measured is not None:
        arrays |= {"backward_error": measured.backward, "forward_error_bound": measured.forward}
    arrays = {name: array[0] if inputs.vector else array for name, array in arrays.items()}
    if solution.x is not None:
        x = solution.x.astype(_answer_dtype_of(job, solution.x), copy=False)
        arrays["x"] = x[:, 0] if inputs.vector else x
    if solution.decision.singular_values is not None:
        arrays["singular_values"] = solution.decision.singular_values
    if "R" in job.arrays:
        arrays["R"] = _positive_diagonal(solution.R)
    return {name: np.asarray(array) for name, array in arrays.items()}


def _answer_dtype_of(job: LeastSquares, x: np.ndarray) -> np.dtype[Any]:
    return x.dtype if job.dtype == "auto" else np.dtype(job.dtype)


def _positive_diagonal(R: np.ndarray) -> np.ndarray:
    """The same factor with a real, non-negative diagonal, which makes it unique at full rank."""
    d = R.diagonal()
    sign = np.where(d == 0, 1, d / np.where(d == 0, 1, np.abs(d)))
    return np.triu(sign.conj()[:, None] * R)


def _dimensions(name: str, array: np.ndarray) -> tuple[str, ...]:
    """Xarray's names of the axes."""
    first = {"x": "column", "R": "row_of_R", "singular_values": "value"}.get(name, "rhs")
    second = "column" if name == "R" else "rhs"
    return (first, second)[: array.ndim]


def _summary(
    job: LeastSquares, inputs: Inputs, plan: Plan, solution: Solution, certificate: Certificate,
    timings: Mapping[str, float], arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    return {
        "schema": "result/1",
        "kind": job.kind,
        "status": "complete",
        "certificate": certificate.to_dict(),
        "job": job.model_dump(mode="json"),
        "plan": plan.to_dict(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "input": _described(inputs, solution),
        "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
        "preview": {"x": _first(arrays.get("x")), "names": list(inputs.names[:PREVIEW])},
        "shortfalls": shortfalls(certificate, job.require),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _described(inputs: Inputs, solution: Solution) -> dict[str, Any]:
    """Each stored input with its fingerprint: the same number means that no chunk was written since."""
    found = {}
    for name, identity in zip(("matrix", "rhs", "weights"), solution.identity, strict=True):
        if name in inputs.infos:
            info = inputs.infos[name]
            shape, chunks = list(info.shape), list(info.chunks)
            found[name] = {"url": info.url, "shape": shape, "dtype": str(info.dtype), "chunks": chunks,
                           "fingerprint": f"{identity:032x}"}  # fmt: skip
    return found


def _first(x: np.ndarray | None) -> list[Any]:
    if x is None or x.dtype.kind == "c":
        return []
    column = x if x.ndim == 1 else x[:, 0] if x.shape[1] else x[:, :0].ravel()
    return [float(value) for value in column[:PREVIEW]]
