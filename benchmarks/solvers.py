"""Who solves the problem: Tallgrass, dask and NumPy."""

import json
import os
import subprocess
import sys
import time

import dask.array as da
import numpy as np
import zarr
from distributed import Client

from benchmarks.cluster import WORKERS
from benchmarks.data import DataSet
from benchmarks.rounds import Timed
from benchmarks.settings import ROOT
from pipelines import LeastSquares, run


def tallgrass(data: DataSet, client: Client, *, verify: bool, method: str = "auto", checkpoints: bool = True) -> Timed:
    """All that `run` does: opening, planning, the passes, the certificate, writing the result."""
    job = LeastSquares(
        matrix=data.A, rhs=data.b, output=data.result, verify=verify, method=method, checkpoints=checkpoints,
        overwrite=True,
    )  # fmt: skip
    began = time.perf_counter()
    result = run(job, client)
    return Timed(time.perf_counter() - began, result.x, result.summary["timings"])


def dask(data: DataSet, client: Client) -> Timed:
    """dask.array.linalg.lstsq, of which only x is asked for: the time to compute it."""
    A, b = (da.from_zarr(zarr.open_array(url, mode="r")) for url in (data.A, data.b))
    x = da.linalg.lstsq(A, b)[0]
    began = time.perf_counter()
    found = client.compute(x).result()
    return Timed(time.perf_counter() - began, found)


def numpy(data: DataSet) -> Timed:
    """numpy.linalg.lstsq on all cores, in a process of its own; reading the data is not counted."""
    environment = os.environ | {name: str(WORKERS) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.inmemory", data.A, data.b]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return Timed(found["seconds"], np.array(found["x"]))
