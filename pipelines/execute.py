"""From a job to a result: open, plan, run the passes, certify, and let the result appear."""

import platform
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipelines.checkpoints import Place
from pipelines.engine import Engine, graph_of, one_blas_thread
from pipelines.errors import BadData, InputChanged
from pipelines.inputs import DaskRows, Inputs, open_inputs
from pipelines.jobs import Job
from pipelines.jobs.base import address_of
from pipelines.kinds import kind_of, resolved
from pipelines.kinds.base import Outcome, Work
from pipelines.layout import Layout
from pipelines.matrix import NAMES, Span, System
from pipelines.meter import Work as Rows
from pipelines.plan import UNLIMITED, Plan, Resources, layout_of, offered_by, plan_of, this_machine
from pipelines.progress import Listener, Note, ignore
from pipelines.rates import load_rates
from pipelines.result import KEY, SCHEMA, Result
from pipelines.storage import Scratch, Staging, StoreError, Writer
from pipelines.units import format_bytes

PACKAGES = ("tallgrass", "numpy", "scipy", "zarr", "dask", "distributed")


@dataclass(frozen=True)
class Submission:
    """What a run is told by the service that it runs for."""

    id: str
    name: str
    """What the job is called, on the dashboard too."""
    attempt: int
    before_commit: Callable[[], None]
    """Called when the result is complete and is about to appear; by raising an error it forbids that."""


def run(
    job: Job,
    client: Any = None,
    listener: Listener = ignore,
    resources: Resources | None = None,
    submission: Submission | None = None,
    *,
    restart: bool = False,
) -> Result:
    """The certified result of a job, stored at its output (when it has one) and returned.

    `client` is a distributed.Client.  Without one the current client is used, as Dask does; if there is none
    either, the passes run in the threads of this process.  What an interrupted run of the same job has done is not
    done again, unless `restart` is true; the answer has the same bits either way.

    Raises:
        BadData: the input is missing, damaged, not finite, or its shapes disagree.
        PlanRefused: it cannot fit, or the output cannot be written.
        RunFailed: workers died again and again.
        Stalled: nothing moved for `no_progress_timeout`; the same job goes on from what is kept.
    """
    began = time.monotonic()
    client = client or _current_client()
    job = resolved(job)
    run_id = uuid.uuid4().hex[:12]
    inputs = open_inputs(job, run_id)
    layout = layout_of(job, inputs)
    inputs = inputs.cut(layout)
    resources = resources or (resources_of(client) if client else this_machine())
    plan = plan_of(job, inputs, layout, resources, load_rates())
    staging = _staging(job, run_id, submission, restart)
    label = None if submission is None else submission.name
    engine = Engine(client, listener, job.no_progress_timeout, resources.threads, label)
    kind = kind_of(job)
    kept = None if staging is None else staging.checkpoints
    try:
        if staging is not None:
            left = staging.need_space(kind.result_bytes(job, layout) + 2**20)
            if kept is None and job.checkpoints:
                listener(Note(f"another run may be writing to {staging.url} now, so this one keeps nothing for later"))
            if kept is not None and _fits(kept, plan, left, listener):
                engine.kept = Place(kept.address, staging.where)
        with one_blas_thread():
            passes = passes_of(engine, inputs, layout)
            outcome = kind.solve(Work(job, inputs, layout, passes, staging, plan.warnings))
        timings = engine.timings | {"total": time.monotonic() - began}
        summary = _summary(job, inputs, plan, outcome, timings) | {"resumed_spans": engine.loaded}
        return _result(summary, outcome, staging, submission, engine.check_written)
    except BaseException as error:
        if staging is not None:
            staging.discard(keep=kept is not None and _worth_keeping(kept, error, engine))
        raise


def passes_of(engine: Engine, inputs: Inputs, layout: Layout) -> "Passes":
    """How passes over these inputs are run."""
    extra = graph_of([source.array for source in inputs.sources if isinstance(source, DaskRows)])
    return Passes(engine, layout.shape.row_bytes, extra)


@dataclass(frozen=True)
class Passes:
    """An engine that knows where rows come from."""

    engine: Engine
    row_bytes: int
    extra: dict[Any, Any]
    said: list[str] = field(default_factory=list)
    """What came out otherwise than planned."""

    def __call__(self, step: Any, system: System, spans: tuple[Span, ...]) -> Any:
        return self.engine(step, Rows(system, spans, self.row_bytes, self.extra))


def _staging(job: Job, run_id: str, submission: Submission | None, restart: bool) -> Staging | None:
    """Where the result is prepared."""
    if job.output is None:
        return None
    name = "" if submission is None else f"job {submission.id}"
    writer = Writer(run_id, job.checkpoints, name, restart)
    compressor = getattr(job, "compressor", "none")
    return Staging(address_of(job.output, job), writer, overwrite=job.overwrite, compressor=compressor)


def _worth_keeping(kept: Scratch, error: BaseException, engine: Engine) -> bool:
    """Whether a later run of this job could go on from here: not where the data itself was found wanting."""
    if isinstance(error, BadData) and not isinstance(error, InputChanged) and not engine.broke:
        return False
    try:
        return bool(kept.names())
    except (OSError, StoreError):
        return True  # nobody knows


def _fits(kept: Scratch, plan: Plan, left: int, listener: Listener) -> bool:
    """Whether there is room for what spans make; it is ready then."""
    if plan.scratch_bytes > left + kept.size():
        listener(
            Note(
                f"{format_bytes(plan.scratch_bytes)} for what spans have done would not fit beside the output, so an "
                "interrupted run will start again"
            )
        )
        return False
    with suppress(OSError):  # spans will say so, and the run goes on
        kept.begin()
    return True


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


def resources_of(client: Any) -> Resources:
    """What a client's cluster offers."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return offered_by(workers) if workers else Resources(1, 1, UNLIMITED)  # they may all be away for a moment


def _result(
    summary: dict[str, Any],
    outcome: Outcome,
    staging: Staging | None,
    submission: Submission | None,
    check: Callable[[], None],
) -> Result:
    arrays = dict(outcome.arrays)
    if staging is None:
        return Result(None, summary, arrays, outcome.shortfalls)
    for name, array in arrays.items():
        staging.put(name, array, outcome.dimensions[name], outcome.attributes.get(name))
    if submission is not None:
        summary |= {"submitted": {"id": submission.id, "name": submission.name, "attempt": submission.attempt}}
        submission.before_commit()
    staging.commit({KEY: summary}, check)
    return Result(staging.url, summary, arrays, outcome.shortfalls)


def _summary(job: Job, inputs: Inputs, plan: Plan, outcome: Outcome, timings: Mapping[str, float]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": job.kind,
        "status": "complete",
        **({} if outcome.form is None else {"form": outcome.form}),
        "certificate": outcome.certificate.to_dict(),
        "job": job.model_dump(mode="json"),
        "plan": plan.to_dict(),
        "versions": dict(versions()),
        "input": _described(inputs, outcome.identity),
        "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
        "preview": dict(outcome.preview),
        "shortfalls": list(outcome.shortfalls),
    }


@cache
def versions() -> dict[str, str | None]:
    """Python and the packages that decide what comes out; looking for them takes longer than a small pass."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _described(inputs: Inputs, identity: tuple[int, int, int]) -> dict[str, Any]:
    """Each stored input with its fingerprint: the same number means that no chunk was written since."""
    found = {}
    for name, number in zip(NAMES, identity, strict=True):
        if name in inputs.infos:
            info = inputs.infos[name]
            shape, chunks = list(info.shape), list(info.chunks)
            found[name] = {"url": str(info.url), "shape": shape, "dtype": str(info.dtype), "chunks": chunks,
                           "fingerprint": f"{number:032x}"}  # fmt: skip
    return found
