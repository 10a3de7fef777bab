"""Speed: 2 GB of float64 at four widths, side by side with dask, NumPy and what the machine can do at all."""

from functools import partial
from typing import Any

import numpy as np
from distributed import Client

from benchmarks import limits, solvers, spark
from benchmarks.cluster import two_workers
from benchmarks.data import DataSet, stored, tall
from benchmarks.rounds import Contender, Series, interleave
from benchmarks.settings import Settings, say

COLUMNS = (16, 64, 256, 1024)
GIGABYTES = 2.0
NUMPY_COLUMNS = 256
"""The width at which NumPy takes part, and Spark."""
SPARK_ROUNDS = 1
METHODS = ("tsqr", "cholesky_qr")
METHODS_FROM = 64
"""Columns from which both methods take part beside the one that is chosen."""
OPTIONAL = ("numpy", "spark", *METHODS)
OTHERS = ("dask", "numpy", "spark")
"""Who else solves the problem."""
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
"""Largest relative difference between two answers, by the type that dask computes in."""


def measure(settings: Settings) -> dict[str, Any]:
    """Each width on the same two workers."""
    cases = []
    with two_workers() as client:
        for n in COLUMNS:
            data = tall(settings.folder, settings.bytes(GIGABYTES), n)
            names = (METHODS if n >= METHODS_FROM else ()) + (("numpy",) if n == NUMPY_COLUMNS else ())
            names += ("spark",) if n == NUMPY_COLUMNS and spark.is_there() else ()
            dask_rounds = 2 if n >= 1024 else settings.rounds
            cases.append(compare(data, client, settings.rounds, dask_rounds, names))
    return {"workers": 2, "cases": cases}


def compare(data: DataSet, client: Client, rounds: int, dask_rounds: int, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """One data set, all contenders: their times, what they are to each other, and how far their answers differ."""
    say(f"  {data.name}: {data.bytes / 1e9:.2f} GB")
    with stored(data.head(4)) as small:
        for one in contenders(small, client, dask_rounds, more):
            one.run()  # to warm up
    with stored(data):
        return _case(data, interleave(contenders(data, client, dask_rounds, more), rounds))


def contenders(data: DataSet, client: Client, dask_rounds: int, more: tuple[str, ...]) -> list[Contender]:
    """Who is measured on a data set."""
    everybody = [
        Contender("tallgrass", partial(solvers.tallgrass, data, client, verify=False)),
        Contender("tallgrass_verified", partial(solvers.tallgrass, data, client, verify=True)),
        Contender("unkept", partial(solvers.tallgrass, data, client, verify=False, checkpoints=False)),
        Contender("dask", partial(solvers.dask, data, client), dask_rounds),
        Contender("zarr_reads", partial(limits.zarr_reads, data, client)),
        Contender("own_reads", partial(limits.own_reads, data, client)),
        Contender("dgemm", partial(limits.multiplies, data, client)),
        Contender("numpy", partial(solvers.numpy, data)),
        Contender("spark", partial(spark.linear_regression, data), SPARK_ROUNDS),
        *(Contender(one, partial(solvers.tallgrass, data, client, verify=False, method=one)) for one in METHODS),
    ]
    return [one for one in everybody if one.name not in OPTIONAL or one.name in more]


def _case(data: DataSet, found: dict[str, Series]) -> dict[str, Any]:
    seconds = {name: series.seconds for name, series in found.items()}
    return {
        "rows": data.rows, "columns": data.columns, "chunk_rows": data.chunk_rows, "chunks": data.chunks,
        "dtype": data.dtype, "compressed": data.compressed, "bytes": data.bytes, "stored_bytes": data.stored_bytes(),
        "seconds": {name: series.to_dict() for name, series in found.items()},
        "dgemm_gflops": 2 * data.rows * data.columns**2 / seconds["dgemm"] / 1e9,
        "times_faster_than": {name: seconds[name] / seconds["tallgrass"] for name in OTHERS if name in found},
        "over_limit": over_limit(seconds, "zarr_reads"),
        "over_limit_of_own_reads": over_limit(seconds, "own_reads"),
        "relative_differences": _differences(found, TOLERANCE[data.dtype]),
    }  # fmt: skip


def over_limit(seconds: dict[str, float], reads: str) -> float:
    """Our time over the longer of reading everything and 2mn² flops."""
    return seconds["tallgrass"] / max(seconds[reads], seconds["dgemm"])


def _differences(found: dict[str, Series], tolerance: float) -> dict[str, float]:
    """‖x − x'‖ / ‖x'‖ of our answers x to the others' x'; a race between different answers is none."""
    differences = {}
    for ours in ("tallgrass", "tallgrass_verified"):
        for other in OTHERS:
            if other in found:
                differences[f"{ours} - {other}"] = _relative(found[ours].x, found[other].x)
    if not all(difference < tolerance for difference in differences.values()):
        raise RuntimeError(f"The answers differ by more than {tolerance}: {differences}.")
    return differences


def _relative(x: np.ndarray | None, other: np.ndarray | None) -> float:
    assert x is not None
    assert other is not None
    return float(np.linalg.norm(x - other) / np.linalg.norm(other))
