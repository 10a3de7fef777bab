"""What a job will cost, decided before anything is read."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.errors import PlanRefused
from pipelines.inputs import Inputs, open_inputs
from pipelines.jobs import Apply, Job
from pipelines.kinds import kind_of, resolved
from pipelines.kinds.apply import as_factored
from pipelines.kinds.base import Step
from pipelines.layout import Layout, factor_flops, lay_out, tree_depth, tree_levels
from pipelines.methods.cholesky_qr import PIECES, sample_spans
from pipelines.methods.options import Exact, PlainGram, Tsqr
from pipelines.rates import Rates, load_rates
from pipelines.units import counted, format_bytes

IDLE_BYTES = 128 * 2**20
"""Resident memory of a worker that has imported NumPy, SciPy, Zarr and Dask and does nothing."""
CHECKPOINT_BYTES = 4096
"""What a checkpoint takes besides its arrays."""
MOST_DECODED = 4
"""Times that a chunk may be decoded in one pass before the plan refuses."""
OF_GEMM, OF_GEMM_OTHERWISE = 0.6, 0.1
"""Rates of products with a few dozen columns, and of passes with fewer or with much else to do, of that of dgemm."""
LARGEST_SVD = 5e-10
"""Seconds of an SVD with vectors, in units of n³, on one core."""


@dataclass(frozen=True)
class Resources:
    """What a cluster offers."""

    workers: int
    threads: int
    """Of each worker."""
    memory_bytes: int
    """Of each worker."""
    tightest: str = ""
    """The worker whose threads and memory these are, where workers differ: the one with the least for each thread."""


UNLIMITED = 2**40
"""Bytes that a worker without a memory limit is taken to have."""


def offered_by(workers: Collection[Mapping[str, Any]]) -> Resources:
    """What workers offer, as the scheduler describes them: a task that fits into the tightest fits into any."""
    sizes = {(worker["memory_limit"] or UNLIMITED, worker["nthreads"]): str(worker["name"]) for worker in workers}
    if not sizes:
        return Resources(0, 1, 0)
    memory, threads = min(sizes, key=lambda size: ((size[0] - IDLE_BYTES) / size[1], size))
    return Resources(len(workers), threads, memory, sizes[memory, threads] if len(sizes) > 1 else "")


@dataclass(frozen=True)
class PassPlan:
    """What one read of the matrix will cost."""

    name: str
    bytes: int
    """That are read, or made from a seed."""
    flops: float
    tasks: int
    seconds: float
    limit: str
    """reading, making rows, or arithmetic: what the time goes to."""


@dataclass(frozen=True)
class Plan:
    """How a job will be done and what that costs; all of it known from metadata."""

    kind: str
    method: str
    reason: str
    shape: tuple[int, ...]
    """m and n, and k where there are right-hand sides."""
    dtype: str
    """Of A as stored."""
    orientation: str
    chunks: tuple[int, int] | None
    shards: tuple[int, ...] | None
    passes: tuple[PassPlan, ...]
    spans: int
    span_rows: int
    block_rows: int
    slab_rows: int
    tasks: int
    bytes: int
    flops: float
    seconds: float
    peak_bytes_per_worker: int
    memory_bytes_per_worker: int
    scratch_bytes: int
    """What the spans keep beside the output until the job is done."""
    workers: int
    threads: int
    rates: str
    warnings: tuple[str, ...]
    key: str
    """A hash of the job and the cut: equal plans give equal bits."""
    synthetic: bool = False
    """True when the rows of A are made from a seed, and nothing of it is read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def make_plan(job: Job, resources: Resources | None = None, rates: Rates | None = None) -> Plan:
    """The plan of a job on a cluster (default: this machine), from metadata alone.

    Raises:
        BadData: an array is not there, or its shape or type does not fit the job.
        PlanRefused: it cannot fit or cannot be done.
    """
    job = resolved(job)
    inputs = open_inputs(job, run="plan")
    return plan_of(job, inputs, layout_of(job, inputs), resources or this_machine(), rates or load_rates())


def this_machine() -> Resources:
    """The cores and the memory that this process may use, as one worker."""
    import psutil

    return Resources(1, len(os.sched_getaffinity(0)), psutil.virtual_memory().available)


def layout_of(job: Job, inputs: Inputs) -> Layout:
    """The cut that the job's method asks for."""
    kind = kind_of(job)
    if isinstance(job, Apply):
        return as_factored(job, inputs)
    chosen = kind.method(job, inputs.shape)
    options = chosen if isinstance(chosen, Exact) else Tsqr()
    layout = lay_out(
        inputs.shape,
        block=None if options.block == "auto" else options.block,
        products=getattr(options, "products", True),
        slab_bytes=None if options.slab_bytes == "auto" else options.slab_bytes,
        span_seconds=chosen.span_seconds,
        writes=kind.writes(job, wide=inputs.shape.wide),
        basis=kind.basis_of(job, inputs.shape),
        sample=getattr(options, "sample", 0),
        refined=isinstance(options, PlainGram),
    )
    layout = replace(layout, asked=job.method != "auto")
    if not inputs.given:
        return layout
    largest = max((span.stop - span.start for span in inputs.given), default=1)
    return replace(layout, given=inputs.given, span_rows=largest, block_rows=max(1, min(layout.block_rows, largest)))


def plan_of(job: Job, inputs: Inputs, layout: Layout, resources: Resources, rates: Rates) -> Plan:
    """The plan of inputs that are open already."""
    shape = inputs.shape
    m, n = (shape.columns, shape.rows) if shape.wide else (shape.rows, shape.columns)
    kind = kind_of(job)
    info, keeps = inputs.infos.get("matrix"), job.output is not None and job.checkpoints
    reads = 0 if inputs.synthetic else 1 if info is None or job.fingerprint == "stat" else 3 if keeps else 2
    steps = kind.steps(job, layout)
    passes = tuple(_pass(step, layout, resources, rates, reads) for step in steps)
    if layout.sample and not layout.given:
        passes = (_sample(layout, resources, rates, reads), *passes)
    plan = Plan(
        kind=job.kind,
        method=kind.method(job, shape).name,
        reason=_reason(kind.reason(job, layout), layout),
        shape=(m, n) if inputs.b is None else (m, n, shape.k),
        dtype=str(inputs.A.dtype),
        orientation="wide" if shape.wide else "tall",
        chunks=None if info is None else (info.chunks[0], info.chunks[1]),
        shards=info.shards if info else None,
        passes=passes,
        spans=layout.span_count,
        span_rows=layout.span_rows,
        block_rows=layout.block_rows,
        slab_rows=layout.slab_rows,
        tasks=sum(one.tasks for one in passes),
        bytes=sum(one.bytes for one in passes),
        flops=sum(one.flops for one in passes),
        seconds=sum(one.seconds for one in passes) + _small_seconds(layout, job.verify),
        peak_bytes_per_worker=peak_bytes(job, layout, resources.threads),
        memory_bytes_per_worker=resources.memory_bytes,
        scratch_bytes=_scratch_bytes(job, layout, steps),
        workers=resources.workers,
        threads=resources.threads,
        rates=rates.source,
        warnings=tuple(_warnings(job, inputs, layout)),
        key=_key(job, layout),
        synthetic=inputs.synthetic,
    )
    _refuse(job, inputs, layout, plan, resources.tightest)
    return plan


def _pass(step: Step, layout: Layout, resources: Resources, rates: Rates, reads: int) -> PassPlan:
    shape, spans, flops = layout.shape, layout.span_count, step.flops
    size = shape.rows * shape.row_bytes * (layout.amplification + max(reads, 1) - 1)
    fan_in = layout.fan_in if step.factors else 8
    merges = sum(tree_levels(spans, fan_in))
    part = OF_GEMM if step.products else OF_GEMM_OTHERWISE
    speed = rates.factor_flops_per_second(layout.p) if step.factors else part * rates.gemm_flops_per_second()
    cores = max(1, min(resources.workers * resources.threads, spans))
    rounds = -(-spans // cores) / max(spans, 1)
    making = 0.0 if reads else shape.rows * shape.columns / rates.made_numbers_per_second()
    moved = size + step.writes if reads else step.writes
    rows = (making + moved / rates.read_bytes_per_second()) * rounds
    arithmetic = flops / speed * rounds
    merging = 2 / 3 * layout.p**3 / rates.merge_flops_per_second() if step.factors and not layout.sample else 0.0
    tree = tree_depth(spans, fan_in) * (fan_in - 1) * merging
    seconds = rows + arithmetic + tree + (spans + merges) * rates.task_seconds
    slow = "reading" if reads else "making rows"
    return PassPlan(step.name, size, flops, spans + merges, seconds, slow if rows > arithmetic else "arithmetic")


def _sample(layout: Layout, resources: Resources, rates: Rates, reads: int) -> PassPlan:
    """The read of a few rows, before all are divided by what comes out."""
    spans = sample_spans(layout)
    rows = min(sum(span.stop - span.start for span in spans), layout.shape.rows)
    part = replace(layout, shape=replace(layout.shape, rows=rows), span_rows=-(-rows // len(spans)), sample=0)
    return _pass(Step("sample", factor_flops(rows, layout.p, 0), factors=True), part, resources, rates, reads)


def _scratch_bytes(job: Job, layout: Layout, steps: list[Step]) -> int:
    """One state for each span of each pass, and one more: triangles are packed, and QᴴB is beside them."""
    if job.output is None or not job.checkpoints:
        return 0
    n, k, p = layout.shape.columns, layout.shape.k, layout.p
    triangle, other = p * (p + 1) // 2 + p * layout.t, n * max(p, k)
    entries = [triangle if step.factors else 2 * n * k if step.sums else other for step in steps]
    states = layout.span_count * (sum(entries) + max(entries))
    states += len(sample_spans(layout)) * triangle if layout.sample else 0
    files = layout.span_count * (len(steps) + 1) + PIECES
    return states * layout.shape.dtype.itemsize + files * CHECKPOINT_BYTES


def _small_seconds(layout: Layout, verify: bool) -> float:
    n = min(layout.shape.columns, layout.p)
    return LARGEST_SVD * n**3 * (2 if n <= 512 else 0.1) + (1e-10 * n**3 if verify else 0)


def peak_bytes(job: Job, layout: Layout, threads: int) -> int:
    """Resident memory of a worker at its fullest: a few blocks, a slab, and some n × n states; never the rows."""
    shape, size = layout.shape, layout.shape.dtype.itemsize
    block = layout.block_bytes
    # Two blocks, since one is read ahead; the pipeline of Zarr holds each once more as it came from the store, and what
    # malloc has not given back yet was measured as a fifth.
    blocks = 2 * block if shape.partial else 5 * block + 2 * min(shape.chunk[0] * shape.row_bytes, 2**31)
    if not shape.partial and shape.unit > shape.chunk[0]:  # of a shard, Zarr asks for large parts at once
        blocks += 3 * min(shape.unit * shape.row_bytes, 2**31)
    computed = layout.block_rows * shape.columns * size
    # Masks and copies of rows without NaN; a copy in the order of rows, and one that is scaled.
    blocks += 3 * computed * (getattr(job, "nan", "error") != "error") + 2 * computed * shape.wide
    if layout.given:  # what the graph behind the blocks takes is known to nobody; measured, where it is short
        blocks = 6 * layout.span_rows * shape.columns * max(size, shape.stored_itemsize)
    sides = kind_of(job).buffer_bytes(layout)
    slab = (layout.slab_rows + layout.block) * (layout.p + layout.t) * size
    state = layout.p * (layout.p + layout.t) * size
    # R⁻¹, two Gram matrices, and the copies that bring R up to date.
    growing = 6 * layout.p**2 * size if layout.products and not layout.t else 0
    chain = max(1, layout.span_rows // max(1, layout.slab_rows * layout.group)).bit_length()
    sides += 4 * shape.side_chunk_bytes  # the one that is kept, and the next: as stored, decoded, and in place
    threads = 1 if layout.alone else threads
    per_thread = blocks + sides + slab + growing + (chain + layout.fan_in + 3) * state
    return IDLE_BYTES + threads * per_thread


def _reason(why: str, layout: Layout) -> str:
    wide = "rows of Aᴴ are read, since A is wide; " if layout.shape.wide else ""
    if layout.sample:
        wide += f"a triangle of {layout.sample:,} rows comes first, so that products of all others can be summed; "
    size = format_bytes(layout.p**2 * layout.shape.dtype.itemsize)
    return f"{why}; {wide}R is {layout.p:,} × {layout.p:,}, {size}"


def _warnings(job: Job, inputs: Inputs, layout: Layout) -> list[str]:
    found = []
    if unchecked := _without_checksums(inputs):
        found.append(
            f"The {' and the '.join(unchecked)} {'carry' if len(unchecked) > 1 else 'carries'} no checksums: damage to "
            "stored bytes could go unseen. Write with a CRC-32C codec to have it found, and set "
            "`require: {checksums: true}` to insist."
        )
    if layout.amplification > 1:
        size = format_bytes(layout.shape.chunk[0] * layout.shape.row_bytes)
        found.append(
            f"A row of chunks is {size}: each chunk is decoded {layout.amplification} times in a pass. Fewer rows per "
            "chunk would avoid that."
        )
    if not job.verify:
        found.append("verify is false: the answer comes without a certificate of its error.")
    return found


def _without_checksums(inputs: Inputs) -> list[str]:
    return [name for name, info in inputs.infos.items() if not info.checksums]


def _refuse(job: Job, inputs: Inputs, layout: Layout, plan: Plan, tightest: str) -> None:
    unchecked = _without_checksums(inputs)
    if job.require.checksums and unchecked:
        verb, them = ("carry", "them") if len(unchecked) > 1 else ("carries", "it")
        raise PlanRefused(
            f"The job requires checksums, and the {' and the '.join(unchecked)} {verb} none. Write {them} again with a "
            "CRC-32C codec, or take `checksums` out of `require`."
        )
    if layout.shape.dtype.kind == "c" and job.dtype in ("float32", "float64"):
        raise PlanRefused(
            f"The answer is complex, since the input is, and `dtype: {job.dtype}` has no room for imaginary parts. "
            "Set `dtype` to complex128, complex64 or auto."
        )
    if layout.amplification > MOST_DECODED:
        chunk = layout.shape.chunk
        raise PlanRefused(
            f"Chunks of {chunk[0]:,} rows × {chunk[1]:,} columns would be decoded {layout.amplification} times in each "
            f"pass, since all {layout.shape.columns:,} columns of so many rows "
            f"({format_bytes(chunk[0] * layout.shape.row_bytes)}) are too much to hold. Write the array in chunks of "
            f"at most {layout.block_rows:,} rows."
        )
    if plan.peak_bytes_per_worker > plan.memory_bytes_per_worker:
        letter = _too_large(job, layout, plan)
        name = f"The worker {tightest}, which has the least of {plan.workers} for each thread,"
        raise PlanRefused(letter.replace("A worker", name, 1) if tightest else letter)


def _too_large(job: Job, layout: Layout, plan: Plan) -> str:
    needed, there = plan.peak_bytes_per_worker, plan.memory_bytes_per_worker
    states, blocks = layout.p * (layout.p + layout.t) * layout.shape.dtype.itemsize, layout.block_bytes
    if layout.shape.side_chunk_bytes > max(states, blocks):
        return (
            f"A worker would need {format_bytes(needed)} and has {format_bytes(there)}: one chunk of the rhs or the "
            f"weights alone takes {format_bytes(layout.shape.side_chunk_bytes)} and has to be decoded whole. Write "
            "that array in smaller chunks, such as 64 MB each."
        )
    found = (
        f"A worker would need {format_bytes(needed)} and has {format_bytes(there)}: {counted(plan.threads, 'thread')} "
        f"with reads of {format_bytes(blocks)} and triangles of {format_bytes(states)} each. "
    )
    one = peak_bytes(job, layout, 1)
    if plan.threads > 1 and one <= there:
        return found + f"Use one thread per worker ({format_bytes(one)})."
    if blocks > states:
        rows = max(1, layout.block_rows * there // (2 * needed))
        return found + (
            f"Give each worker at least {format_bytes(needed)}, or write the array in chunks of about {rows:,} rows."
        )
    return found + f"Give each worker at least {format_bytes(needed)}: use fewer and larger workers."


def _key(job: Job, layout: Layout) -> str:
    cut = (
        layout.p,
        layout.t,
        layout.block,
        layout.products,
        layout.sample,
        layout.refined,
        layout.slab_rows,
        layout.group,
        layout.fan_in,
        layout.block_rows,
        layout.span_rows,
    )
    text = json.dumps([job.model_dump(mode="json"), cut], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
