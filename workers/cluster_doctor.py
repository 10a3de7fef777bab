"""Is a cluster as the work needs it, and does all of it see the data? One finding per thing that can be wrong."""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.errors import TallgrassError
from pipelines.units import format_bytes, format_seconds
from workers.clusters.address import Tls, check_versions
from workers.findings import SCRATCH_BYTES, Finding, looked_at

if TYPE_CHECKING:
    from distributed import Client

SKEW_SECONDS = 5.0
"""Difference of clocks from which times in logs and results of several machines contradict each other."""


def examine_cluster(client: "Client", job: Any = None) -> list[Finding]:
    """A cluster that is open, and whether all of it sees a job's arrays and can write its result."""
    checks = {
        "versions": _versions,
        "workers": _workers,
        "clocks": _clocks,
        "worker processes": worker_processes,
        "scratch of workers": _scratch,
        "accidents": accidents,
    }
    if job is not None:
        checks |= {"arrays": partial(_arrays, job=job)}
        if job.output is not None:
            checks |= {"output": partial(_output, job=job)}
    return [looked_at(name, partial(check, client)) for name, check in checks.items()]


def examine_certificates(tls: Tls) -> Finding:
    """How long our certificate for a cluster, and its authority, are still valid."""
    return looked_at("certificates", partial(_certificates, tls))


def _certificates(tls: Tls) -> Finding:
    try:
        from workers.certificates import SOON_DAYS, days_left
    except ImportError:
        return Finding("certificates", True, 'not looked at: that takes pip install "tallgrass[tls]"')
    days = {file: days_left(file) for file in (tls.ca, tls.cert)}
    file = min(days, key=lambda file: days[file])
    return Finding(
        "certificates",
        days[file] >= SOON_DAYS,
        f"{file} ends in {days[file]:.0f} days" if days[file] >= 0 else f"{file} ended {-days[file]:.0f} days ago",
        "Renew the certificates, tallgrass certs FOLDER --renew; an authority that ends is made anew.",
    )


def _versions(client: "Client") -> Finding:
    try:
        check_versions(client)
    except TallgrassError as error:
        return Finding("versions", False, str(error))
    return Finding("versions", True, "Python and packages are the same on client, scheduler and workers")


def _workers(client: "Client") -> Finding:
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if not workers:
        return Finding("workers", False, "none connected", "Start workers.")
    paused = sum(worker["status"] == "paused" for worker in workers)
    least = min(worker["memory_limit"] or 0 for worker in workers)
    hosts = len({worker["host"] for worker in workers})
    detail = (
        f"{len(workers)} with {sum(worker['nthreads'] for worker in workers)} threads on {hosts} "
        f"host{'s' if hosts > 1 else ''}, {f'at least {format_bytes(least)} each' if least else 'no memory limit'}"
        + (f", {paused} paused" if paused else "")
    )
    advice = (
        "Free memory and disk on the paused ones, or restart them." if paused else "Start workers with --memory-limit."
    )
    return Finding("workers", not paused and least > 0, detail, advice)


clock = time.time
"""A built-in function, which also a scheduler without Tallgrass can find by its name."""


def _clocks(client: "Client") -> Finding:
    """Each worker's and the scheduler's, between the moments in which they were asked and answered."""
    before = time.time()
    times = [*client.run(clock).values(), client.run_on_scheduler(clock)]
    after = time.time()
    skew = max((max(before - told, told - after, 0.0) for told in times), default=0.0)
    return Finding(
        "clocks", skew < SKEW_SECONDS, f"at most {format_seconds(skew)} apart", "Set the clocks of the machines (NTP)."
    )


def free_scratch(dask_worker: Any) -> int:
    """Bytes free where this worker puts what does not fit in memory."""
    return shutil.disk_usage(dask_worker.local_directory).free


def _scratch(client: "Client") -> Finding:
    free = client.run(free_scratch)
    short = sum(size < SCRATCH_BYTES for size in free.values())
    detail = f"at least {format_bytes(min(free.values(), default=0))} free on each"
    return Finding(
        "scratch of workers",
        not short,
        detail + (f", too little on {short} of {len(free)}" if short else ""),
        f"Free {format_bytes(SCRATCH_BYTES)} there, or start workers with another --local-directory (`scratch`).",
    )


def accidents(client: "Client") -> Finding:
    """What the scheduler and the workers were told to do when something freezes, dies, or is full."""
    from dask.config import get as told  # which also a scheduler without Tallgrass can find by its name
    from dask.utils import parse_timedelta

    scheduler = {name: client.run_on_scheduler(told, f"distributed.scheduler.{name}", None) for name in DECIDES}
    pauses = [part for part in client.run(told, "distributed.worker.memory.pause", False).values() if part]
    frozen, empty = (
        "never" if scheduler[name] is None else f"after {format_seconds(parse_timedelta(scheduler[name]))}"
        for name in ("worker-ttl", "no-workers-timeout")
    )
    detail = (
        f"frozen workers are given up {frozen}, tasks without any worker {empty}, a task that kills its workers after "
        f"{scheduler['allowed-failures'] + 1} of them"
        + (f"; {len(pauses)} of the workers pause at {100 * min(pauses):.0f} % of their memory" if pauses else "")
    )
    advice = "Start the scheduler with DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=60s in its environment."
    return Finding("accidents", frozen != "never", detail, advice)


DECIDES = ("worker-ttl", "no-workers-timeout", "allowed-failures")
"""Settings of a scheduler that decide how accidents end; no client can change them."""


def process_facts() -> dict[str, Any]:
    """What can only be seen from inside a worker process."""
    import numpy as np
    import scipy.linalg  # noqa: F401  # its BLAS is another library than NumPy's
    from threadpoolctl import threadpool_info

    np.linalg.norm(np.ones((2, 2)), 2)
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return {
        "blas_threads": max(pools, default=1),
        "huge_pages": "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "writes_empty_chunks": os.environ.get("ZARR_ARRAY__WRITE_EMPTY_CHUNKS", "") == "True",
    }


def worker_processes(client: "Client") -> Finding:
    """How each process was started: what it costs when that was done otherwise than here."""
    facts = list(client.run(process_facts).values())
    threads = max((fact["blas_threads"] for fact in facts), default=1)
    faults = [
        *([f"up to {threads} BLAS threads per task"] if threads > 1 else []),
        *_count(facts, "huge_pages", "without huge pages"),
        *_count(facts, "writes_empty_chunks", "that leave chunks of zeros out"),
    ]
    if not faults:
        return Finding("worker processes", True, "one BLAS thread per task, huge pages asked for")
    advice = (
        "Start workers with OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "
        "ZARR_ARRAY__WRITE_EMPTY_CHUNKS=True in their environment."
    )
    return Finding("worker processes", False, ", ".join(faults), advice)


def _count(facts: Iterable[dict[str, Any]], name: str, words: str) -> list[str]:
    number = sum(not fact[name] for fact in facts)
    return [f"{number} worker{'s' if number > 1 else ''} {words}"] if number else []


def _arrays(client: "Client", job: Any) -> Finding:
    """Every worker opens what the job reads, and finds the same."""
    from pipelines.jobs.base import ArraySource, address_of, as_source

    sources = {name: as_source(getattr(job, name, None)) for name in ("matrix", "rhs", "weights")}
    wanted = {name: address_of(source, job) for name, source in sources.items() if isinstance(source, ArraySource)}
    seen = {name: sees(address) for name, address in wanted.items()}
    if faults := [fault for _, fault in seen.values() if fault]:
        return Finding("arrays", False, f"here: {faults[0]}", "Correct the job file first: tallgrass plan tells more.")
    for name, address in wanted.items():
        told = client.run(sees, address)
        for worker, (found, fault) in told.items():
            if fault or found != seen[name][0]:
                return Finding(
                    "arrays", False, f"{worker}: {fault or f'{address} is another array there: {found}'}",
                    "Give each worker the same view of the data: a file system that all mount, or an object store.",
                )  # fmt: skip
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    return Finding("arrays", True, f"{', '.join(wanted) or 'none'}: seen alike from here and by {workers} workers")


def sees(address: Any) -> tuple[str, str]:
    """What an array is here, and what keeps it from being opened."""
    from pipelines.storage import describe

    try:
        info = describe(address)
    except TallgrassError as error:
        return "", str(error)
    return f"{info.shape} of {info.dtype} in chunks of {info.chunks}", ""


def _output(client: "Client", job: Any) -> Finding:
    """Every worker writes a note beside the output, and all notes are found here."""
    from pipelines.jobs.base import address_of
    from pipelines.storage import Notes

    notes = Notes(address_of(job.output, job))
    try:
        notes.leave("here")
        told = client.run(leave_note, notes)
        faults = {worker: fault for worker, fault in told.items() if fault}
        found = notes.found()
    except TallgrassError as error:
        return Finding("output", False, f"here: {error}", "Let this account write there, or choose another output.")
    finally:
        with suppress(TallgrassError):
            notes.remove()
    if faults:
        worker, fault = next(iter(faults.items()))
        return Finding("output", False, f"{worker}: {fault}", "Let the workers' account write there.")
    if missing := len(told) + 1 - len(found):
        return Finding(
            "output", False, f"{missing} of {len(told)} workers write to another {job.output} than this process",
            "Choose an output on a file system that all mount, or in an object store.",
        )  # fmt: skip
    return Finding("output", True, f"{len(told)} workers can write beside {job.output}")


def leave_note(notes: Any, dask_worker: Any) -> str:
    """Write as a worker writes; what went wrong."""
    try:
        notes.leave(dask_worker.id)
    except (TallgrassError, OSError) as error:
        return str(error)
    return ""
