"""Is this installation, and this machine, as the work needs it? One finding per thing that can be wrong."""

import platform
import shutil
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.units import format_bytes, format_seconds
from workers.clusters import Local, open_cluster, resources_of
from workers.clusters.address import PACKAGES
from workers.clusters.machine import this_machine
from workers.findings import SCRATCH_BYTES, Finding, looked_at

if TYPE_CHECKING:
    from pipelines.rates import Rates


OLDEST_PYTHON = (3, 12)


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
    return [looked_at(name, check) for name, check in checks.items()]


def calibrate() -> "Rates":
    """Measure this machine's rates and keep them for the plans to come."""
    from pipelines.rates import measure_rates, save_rates

    rates = measure_rates()
    save_rates(rates)
    return rates


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
    from workers.cluster_doctor import worker_processes

    start = time.perf_counter()
    with open_cluster(Local(processes=1, dashboard=False)) as client:
        seconds = time.perf_counter() - start
        finding = worker_processes(client)
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
