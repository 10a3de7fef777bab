"""Memory: what a worker holds at most while the matrix grows from 1 to 8 GB at the same width."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from benchmarks import solvers
from benchmarks.cluster import MOST_MEMORY, WORKERS, process_ids, two_workers
from benchmarks.data import DataSet, stored, tall
from benchmarks.settings import Settings, say
from pipelines import LeastSquares, make_plan
from pipelines.plan import Resources

COLUMNS, CHUNK_ROWS = 128, 8192
GIGABYTES = (1, 2, 4, 8)
DASK_GIGABYTES = (1, 2)
EVERY = 0.02
"""Seconds between two looks at a process."""
SETTLE = 1.0
"""Seconds after which a new worker is taken to be idle."""
MEGABYTES = (20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Marks of the plot."""
MOST_ABOVE_IDLE = 500e6
"""Bytes that were promised."""


def measure(settings: Settings) -> dict[str, Any]:
    """Each size on fresh workers, Tallgrass with verification, dask for comparison."""
    cases = []
    for gigabytes in GIGABYTES:
        with stored(tall(settings.folder, settings.bytes(gigabytes), COLUMNS, CHUNK_ROWS)) as data:
            cases.append(_tallgrass(data))
            if gigabytes in DASK_GIGABYTES:
                cases.append(_watched("dask", data, solvers.dask))
    return {"workers": 2, "columns": COLUMNS, "chunk_rows": CHUNK_ROWS, "every_seconds": EVERY, "cases": cases}


def _tallgrass(data: DataSet) -> dict[str, Any]:
    case = _watched("tallgrass", data, lambda data, client: solvers.tallgrass(data, client, verify=True))
    offered = Resources(WORKERS, 1, MOST_MEMORY)
    plan = make_plan(LeastSquares(matrix=data.A, rhs=data.b), offered)
    return case | {"planned_peak_bytes": plan.peak_bytes_per_worker}


def _watched(name: str, data: DataSet, solve: Callable[[DataSet, Client], Any]) -> dict[str, Any]:
    """The resident memory of each worker, idle and at its peak."""
    with two_workers() as client:
        time.sleep(SETTLE)
        ids = process_ids(client)
        idle = resident(ids)
        with peaks(ids) as peak:
            solve(data, client)
    above = max(most - least for most, least in zip(peak, idle, strict=True))
    say(f"  {name}, {data.bytes / 1e9:.2f} GB: at most {above / 1e6:.0f} MB above an idle worker")
    case = {"name": name, "rows": data.rows, "bytes": data.bytes, "idle_bytes": idle, "peak_bytes": list(peak)}
    return case | {"above_idle_bytes": above}


def resident(ids: Sequence[int]) -> list[int]:
    """Resident memory of each process, in bytes."""
    return [psutil.Process(number).memory_info().rss for number in ids]


@contextmanager
def peaks(ids: Sequence[int]) -> Iterator[list[int]]:
    """The largest resident memory of each process, complete when the context ends."""
    processes, over = [psutil.Process(number) for number in ids], threading.Event()
    most = [process.memory_info().rss for process in processes]

    def watch() -> None:
        while not over.wait(EVERY):
            most[:] = [max(old, process.memory_info().rss) for old, process in zip(most, processes, strict=True)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def plot(found: dict[str, Any], path: Path) -> None:
    """The peaks above an idle worker against the size of the matrix, with what the plan had said."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "tallgrass"  # the same numbers give the same file
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("tallgrass", "#2a7f3f"), ("dask", "#b5651d")):
        cases = [case for case in found["cases"] if case["name"] == name]
        label = {"tallgrass": "Tallgrass, measured", "dask": "dask lstsq, measured"}[name]
        axes.plot(
            _gigabytes(cases), [case["above_idle_bytes"] / 1e6 for case in cases], "o-", color=colour, label=label
        )
    ours = [case for case in found["cases"] if case["name"] == "tallgrass"]
    planned = [(case["planned_peak_bytes"] - max(case["idle_bytes"])) / 1e6 for case in ours]
    axes.plot(_gigabytes(ours), planned, "--", color="#2a7f3f", label="Tallgrass, planned")
    axes.axhline(MOST_ABOVE_IDLE / 1e6, color="#888888", linewidth=0.8, linestyle=":", label="promised limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(_gigabytes(ours), [f"{size:.3g}" for size in _gigabytes(ours)])
    axes.set_xlabel(f"Size of the matrix in GB (n = {found['columns']}, chunks of {found['chunk_rows']:,} rows)")
    axes.set_ylabel("Peak above an idle worker, MB")
    axes.set_yticks(MEGABYTES, [f"{number:,}" for number in MEGABYTES])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _gigabytes(cases: Sequence[dict[str, Any]]) -> list[float]:
    return [case["bytes"] / 1e9 for case in cases]
