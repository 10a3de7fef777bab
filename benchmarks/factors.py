"""Pseudoinverse and singular values, from storage to storage, side by side with what a user of dask can write."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import zarr
from distributed import Client

from benchmarks.cluster import WORKERS, process_ids, two_workers
from benchmarks.data import DataSet, stored, tall
from benchmarks.memory import EVERY, SETTLE, peaks, resident
from benchmarks.settings import Settings, say
from pipelines import SVD, Pseudoinverse, run
from workers.clusters import Local, open_cluster

PINV = (500_000, 128)
VALUES = (1_000_000, 256)
LARGE_GIGABYTES, LARGE_COLUMNS = 8.0, 128
SMALL_WORKER = 2**30
"""Memory of each worker for a matrix of 8 GB."""

Solve = Callable[[DataSet, Client], np.ndarray | None]
"""What is timed; gives the singular values, or stores the pseudoinverse."""


def measure(settings: Settings) -> dict[str, Any]:
    """Each contender on two fresh workers of its own, so that the peak of one is not that of another."""
    pinv = _sized(settings, *PINV)
    values = _sized(settings, *VALUES)
    large = tall(settings.folder, settings.bytes(LARGE_GIGABYTES), LARGE_COLUMNS)
    cases = [
        _case("pseudoinverse", pinv, PINVS, settings.rounds),
        _case("singular values", values, VALUES_ONLY, settings.rounds),
        _case("pseudoinverse, workers of 1 GiB", large, {"Tallgrass": PINVS["Tallgrass"]}, 1, memory=SMALL_WORKER),
    ]
    return {"workers": WORKERS, "every_seconds": EVERY, "cases": cases}


def _sized(settings: Settings, rows: int, columns: int) -> DataSet:
    return tall(settings.folder, int(rows * columns * 8 * settings.scale), columns)


def _case(
    what: str, data: DataSet, contenders: dict[str, tuple[Solve, str]], rounds: int, memory: int | None = None
) -> dict[str, Any]:
    say(f"  {what}: {data.name}, {data.bytes / 1e9:.2f} GB")
    with stored(data):
        found = [_measured(name, *one, data, rounds, memory) for name, one in contenders.items()]
    return {"what": what, "rows": data.rows, "columns": data.columns, "bytes": data.bytes, "found": found}


def _measured(name: str, solve: Solve, reads: str, data: DataSet, rounds: int, memory: int | None) -> dict[str, Any]:
    cluster = (
        two_workers() if memory is None else open_cluster(Local(processes=WORKERS, memory=memory, dashboard=False))
    )
    seconds: list[float] = []
    values = None
    with cluster as client:
        time.sleep(SETTLE)
        ids = process_ids(client)
        idle = resident(ids)
        with peaks(ids) as peak:
            for _ in range(rounds):
                shutil.rmtree(data.result, ignore_errors=True)
                began = time.perf_counter()
                values = solve(data, client)
                seconds.append(round(time.perf_counter() - began, 4))
    error = _error_of_pinv(data) if values is None else None
    shutil.rmtree(data.result, ignore_errors=True)
    above = max(most - least for most, least in zip(peak, idle, strict=True))
    say(f"    {name}: {sorted(seconds)[len(seconds) // 2]:.2f} s, {above / 1e6:.0f} MB above an idle worker")
    return {"name": name, "reads": reads, "seconds": seconds, "above_idle_bytes": above, "XA_minus_I": error}


def _error_of_pinv(data: DataSet) -> float:
    """‖XA − I‖ of what was stored, chunk by chunk."""
    A, X = (zarr.open_array(url, mode="r") for url in (data.A, f"{data.result}/pinv"))
    XA = np.zeros((data.columns, data.columns))
    for start in range(0, data.rows, data.chunk_rows):
        part = slice(start, start + data.chunk_rows)
        XA += np.asarray(X[:, part]) @ np.asarray(A[part])
    return float(np.linalg.norm(XA - np.eye(data.columns)))


def _tallgrass_pinv(data: DataSet, client: Client, *, verify: bool) -> None:
    run(Pseudoinverse(matrix=data.A, output=data.result, verify=verify), client)


def _dask_tsqr_pinv(data: DataSet, client: Client) -> None:
    Q, R = da.linalg.qr(da.from_zarr(zarr.open_array(data.A, mode="r")))
    _store((Q @ R.map_blocks(np.linalg.inv, dtype=R.dtype).T).T, data, client)


def _dask_svd_pinv(data: DataSet, client: Client) -> None:
    U, s, Vt = da.linalg.svd(da.from_zarr(zarr.open_array(data.A, mode="r")))
    _store((U @ (Vt / s[:, None])).T, data, client)


def _store(X: da.Array, data: DataSet, client: Client) -> None:
    target = zarr.create_array(
        f"{data.result}/pinv", shape=X.shape, dtype=X.dtype, chunks=(data.columns, data.chunk_rows), compressors=None
    )
    client.compute(da.store(X, target, lock=False, compute=False)).result()


def _tallgrass_values(data: DataSet, client: Client) -> np.ndarray:
    return run(SVD(matrix=data.A, output=data.result), client)["s"]


def _dask_values(data: DataSet, client: Client) -> np.ndarray:
    s = da.linalg.svd(da.from_zarr(zarr.open_array(data.A, mode="r")))[1]
    return np.asarray(client.compute(s).result())


PINVS: dict[str, tuple[Solve, str]] = {
    "Tallgrass": (partial(_tallgrass_pinv, verify=True), "4"),
    "Tallgrass, not verified": (partial(_tallgrass_pinv, verify=False), "3"),
    "dask: qr, then Q R⁻ᵀ": (_dask_tsqr_pinv, "1, Q held"),
    "dask: svd, then V S⁻¹ Uᵀ": (_dask_svd_pinv, "1, U held"),
}
VALUES_ONLY: dict[str, tuple[Solve, str]] = {"Tallgrass": (_tallgrass_values, "1"), "dask: svd": (_dask_values, "1")}
"""Who takes part, and how often each reads A."""
