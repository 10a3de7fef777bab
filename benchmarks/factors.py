"""Pseudoinverse and singular values, from storage to storage, side by side with what a user of dask can write."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
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
from pipelines.methods.options import BlockKrylov
from workers.clusters import Local, open_cluster

PINV = (500_000, 128)
VALUES = (1_000_000, 256)
TRUNCATED = (100_000, 2000)
LARGEST = 20
"""Singular values asked for of the truncated SVD."""
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
        _case(
            f"{LARGEST} singular values",
            replace(_sized(settings, *TRUNCATED), decaying=True),
            TRUNCATEDS,
            settings.rounds,
        ),
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
    wrong = _wrong(values, data) if values is not None and data.decaying else None
    shutil.rmtree(data.result, ignore_errors=True)
    above = max(most - least for most, least in zip(peak, idle, strict=True))
    say(f"    {name}: {sorted(seconds)[len(seconds) // 2]:.2f} s, {above / 1e6:.0f} MB above an idle worker")
    return {
        "name": name,
        "reads": reads,
        "seconds": seconds,
        "above_idle_bytes": above,
        "XA_minus_I": error,
        "error_of_values": wrong,
    }


_truth: dict[str, np.ndarray] = {}


def _wrong(values: np.ndarray, data: DataSet) -> float:
    """The largest error of a value, of that value; the truth is that of TSQR, which the tests hold against NumPy."""
    if data.name not in _truth:
        _truth[data.name] = run(SVD(matrix=data.A))["s"]
    s = _truth[data.name][: len(values)]
    return float(np.abs(values / s - 1).max())


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


def _tallgrass_truncated(data: DataSet, client: Client, *, verify: bool, steps: int) -> np.ndarray:
    method = BlockKrylov(steps=steps)
    return run(SVD(matrix=data.A, values=LARGEST, vectors="right", method=method, verify=verify), client)["s"]


def _dask_truncated(data: DataSet, client: Client, *, steps: int) -> np.ndarray:
    A = da.from_zarr(zarr.open_array(data.A, mode="r"))
    with client.as_current():
        _, s, Vt = da.linalg.svd_compressed(A, LARGEST, n_power_iter=steps, iterator="QR", seed=0, compute=True)
        return np.asarray(client.gather(client.compute([s, Vt]))[0])


def _sklearn_truncated(data: DataSet, client: Client, *, steps: int) -> np.ndarray:  # noqa: ARG001  # in this process
    from sklearn.utils.extmath import randomized_svd

    A = zarr.open_array(data.A, mode="r")[...]
    return np.asarray(randomized_svd(A, LARGEST, n_iter=steps, random_state=0)[1])


PINVS: dict[str, tuple[Solve, str]] = {
    "Tallgrass": (partial(_tallgrass_pinv, verify=True), "3"),
    "Tallgrass, not verified": (partial(_tallgrass_pinv, verify=False), "2"),
    "dask: qr, then Q R⁻ᵀ": (_dask_tsqr_pinv, "1, Q held"),
    "dask: svd, then V S⁻¹ Uᵀ": (_dask_svd_pinv, "1, U held"),
}
VALUES_ONLY: dict[str, tuple[Solve, str]] = {"Tallgrass": (_tallgrass_values, "1"), "dask: svd": (_dask_values, "1")}
TRUNCATEDS: dict[str, tuple[Solve, str]] = {
    "Tallgrass": (partial(_tallgrass_truncated, verify=True, steps=2), "4"),
    "Tallgrass, not verified": (partial(_tallgrass_truncated, verify=False, steps=2), "3"),
    "Tallgrass, 3 steps": (partial(_tallgrass_truncated, verify=True, steps=3), "5"),
    "dask: svd_compressed, 3 QR iterations": (partial(_dask_truncated, steps=3), "8"),
    "dask: svd_compressed, 6 QR iterations": (partial(_dask_truncated, steps=6), "14"),
    "scikit-learn in memory, 2 iterations": (partial(_sklearn_truncated, steps=2), "1, A held"),
    "scikit-learn in memory, 6 iterations": (partial(_sklearn_truncated, steps=6), "1, A held"),
}
"""Who takes part, and how often each reads A."""
