"""Is this installation, this machine and its cluster as the work needs it? One finding per thing that can be wrong."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import TallgrassError
from pipelines.units import format_bytes, format_seconds
from workers.clusters import Local, open_cluster, resources_of
from workers.clusters.address import PACKAGES, check_versions
from workers.clusters.machine import this_machine

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.rates import Rates


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    name: str
    """What was examined, in two or three words."""
    ok: bool
    """Whether it is as it should be."""
    detail: str
    """What was found, with its numbers."""
    advice: str = ""
    """What to do, when it is not as it should be."""


OLDEST_PYTHON = (3, 12)
SCRATCH_BYTES = 2 * 2**30
"""Free disk below which a worker that has to put states on disk may get stuck."""

SKEW_SECONDS = 5.0
"""Difference of clocks from which times in logs and results of several machines contradict each other."""

OURS = "tallgrass"
NAMES = ("pipelines", "workers")


def examine() -> list[Finding]:
    """This installation and this machine; starts one worker process for a moment."""
    checks = {
        "Python": _python,
        "packages": _packages,
        "import names": _import_names,
        "LAPACK": _lapack,
        "cores and memory": _machine,
        "a worker": _worker,
        "scratch disk": _scratch,
        "huge pages": _huge_pages,
        "rates for plans": _rates,
    }
    return [_looked_at(name, check) for name, check in checks.items()]


def examine_cluster(client: "Client") -> list[Finding]:
    """A cluster that is open: versions, workers, memory, clocks, and how each worker process was started."""
    checks = {"versions": _versions, "workers": _workers, "clocks": _clocks, "worker processes": _worker_processes}
    return [_looked_at(name, partial(check, client)) for name, check in checks.items()]


def calibrate() -> "Rates":
    """Measure this machine's rates and keep them for the plans to come."""
    from pipelines.rates import measure_rates, save_rates

    rates = measure_rates()
    save_rates(rates)
    return rates


def _looked_at(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding, also when the check itself breaks on what it finds."""
    try:
        return check()
    except TallgrassError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001  # a doctor who faints at the sight of blood is of no use
        return Finding(name, False, f"{type(error).__name__}: {error}", "Install Tallgrass anew: make install")


def _python() -> Finding:
    found = platform.python_version()
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        "Python", sys.version_info >= OLDEST_PYTHON, f"{found} at {sys.executable}", f"Use Python {wanted} or newer."
    )


def _packages() -> Finding:
    found = {name: _installed(name) for name in (*PACKAGES, "obstore", "pydantic", "bokeh")}
    missing = [name for name, number in found.items() if number is None]
    detail = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    return Finding("packages", not missing, detail, f"Install {', '.join(missing)}: pip install tallgrass")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _import_names() -> Finding:
    """Tasks are pickled by the names of their functions, so these names must mean the same everywhere."""
    distributions = packages_distributions()
    others = {other for name in NAMES for other in distributions.get(name, []) if other.lower() != OURS}
    homes = {str(Path(str(import_module(name).__file__)).parents[1]) for name in NAMES}
    advice = "Give Tallgrass an environment of its own: other packages there use its names."
    detail = f"{' and '.join(NAMES)} from {' and '.join(sorted(homes))}"
    if others:
        detail += f", and from the distributions {', '.join(sorted(others))}"
    return Finding("import names", not others and len(homes) == 1, detail, advice)


def _lapack() -> Finding:
    from pipelines.kernels.pointers import releases_the_gil

    if releases_the_gil():
        return Finding(
            "LAPACK", True, "called without the interpreter's lock, through scipy.linalg.cython_blas and cython_lapack"
        )
    return Finding(
        "LAPACK",
        False,
        f"SciPy {_installed('scipy')} does not publish tpqrt and trmm as expected: right answers, slower in threads",
        "Use the SciPy version of requirements.lock, or one thread per worker.",
    )


def _machine() -> Finding:
    machine, offers = this_machine(), resources_of(Local())
    detail = (
        f"{machine.cores} cores, {format_bytes(machine.memory_bytes)} of memory, "
        f"{format_bytes(machine.available_bytes)} free; by default {offers.workers} "
        f"worker{'s' if offers.workers > 1 else ''} with {format_bytes(offers.memory_bytes)} each"
    )
    fits = offers.workers * offers.memory_bytes <= machine.available_bytes
    return Finding(
        "cores and memory", fits, detail, "Close other programs: a worker needs 256 MiB, the driver 512 MiB."
    )


def _worker() -> Finding:
    """One worker process, started as any job starts it."""
    start = time.perf_counter()
    with open_cluster(Local(processes=1, dashboard=False)) as client:
        seconds = time.perf_counter() - start
        finding = _worker_processes(client)
    return Finding("a worker", finding.ok, f"starts in {format_seconds(seconds)}; {finding.detail}", finding.advice)


def _scratch() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    return Finding(
        "scratch disk",
        free >= SCRATCH_BYTES,
        f"{format_bytes(free)} free in {folder}",
        f"Free {format_bytes(SCRATCH_BYTES)}, or name another folder as `scratch` in the cluster file.",
    )


def _huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> Finding:
    """They halve the processor time of reading large chunks."""
    name, glibc = "huge pages", platform.libc_ver()[1]
    if not setting.exists():
        return Finding(name, True, "not known on this system; reading takes up to twice the processor time without")
    chosen = setting.read_text().split("[")[1].split("]")[0]
    recent = tuple(int(part) for part in glibc.split(".")[:2] if part.isdigit()) >= (2, 35)
    return Finding(
        name,
        chosen in ("always", "madvise") and recent,
        f"the kernel offers them: {chosen}; glibc {glibc or 'not in use'}",
        f"Reading is slower than it could be: write madvise to {setting}, and use glibc 2.35 or newer.",
    )


def _rates() -> Finding:
    from pipelines.rates import load_rates

    source = load_rates().source
    return Finding(
        "rates for plans",
        source.startswith("calibrated"),
        source,
        "Plans estimate seconds for a typical machine: tallgrass doctor --calibrate measures this one.",
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


def clock() -> float:
    """Seconds since 1970 as a worker sees them."""
    return time.time()


def _clocks(client: "Client") -> Finding:
    before = time.time()
    times = client.run(clock).values()
    after = time.time()
    skew = max((max(before - told, told - after, 0.0) for told in times), default=0.0)
    return Finding(
        "clocks", skew < SKEW_SECONDS, f"at most {format_seconds(skew)} apart", "Set the clocks of the machines (NTP)."
    )


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


def _worker_processes(client: "Client") -> Finding:
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
