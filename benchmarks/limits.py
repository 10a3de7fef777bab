"""The limits of the machine: how fast its workers read and decode, and how fast they multiply."""

import time
import uuid
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from distributed import Client, wait

from benchmarks.data import DataSet
from benchmarks.rounds import Timed
from pipelines.inputs import open_inputs
from pipelines.jobs import QR
from pipelines.matrix import Span, System
from pipelines.plan import layout_of

SPANS = 32
"""Tasks that read with Zarr: many enough for both workers to end together."""
GEMM_SIZE, GEMM_SECONDS = 2000, 1.0


def zarr_reads(data: DataSet, client: Client) -> Timed:
    """The workers read every chunk of A through Zarr and do nothing else."""
    rows = -(-data.chunks // SPANS) * data.chunk_rows
    starts = list(range(0, data.rows, rows))
    stops = [min(start + rows, data.rows) for start in starts]
    began = time.perf_counter()
    wait(client.map(_read_with_zarr, starts, stops, url=data.A, chunk_rows=data.chunk_rows, pure=False))
    return Timed(time.perf_counter() - began)


def _read_with_zarr(start: int, stop: int, url: str, chunk_rows: int) -> None:
    array = _opened(url)
    for first in range(start, stop, chunk_rows):
        array[first : min(first + chunk_rows, stop)]


@lru_cache(maxsize=1)
def _opened(url: str) -> zarr.Array[Any]:
    return zarr.open_array(url, mode="r")


def own_reads(data: DataSet, client: Client) -> Timed:
    """The workers read every chunk of A as a pass of ours does, read-ahead included, and do nothing else."""
    system, spans = system_of(data.A)
    began = time.perf_counter()
    wait(client.map(_read_as_we_do, spans, system=system, pure=False))
    return Timed(time.perf_counter() - began)


def system_of(url: str) -> tuple[System, tuple[Span, ...]]:
    """The rows of a matrix, and the spans in which a pass reads them."""
    job = QR(matrix=url)
    inputs = open_inputs(job, run=uuid.uuid4().hex)
    layout = layout_of(job, inputs)
    system = System(inputs.A, None, None, layout.shape.dtype, omit_rows=False, block_rows=layout.block_rows)
    return system, layout.spans


def _read_as_we_do(span: Span, system: System) -> None:
    for _ in system.blocks(span):
        pass


def multiplies(data: DataSet, client: Client) -> Timed:
    """The time for 2mn² flops at the rate at which the workers together multiply matrices."""
    return Timed(2 * data.rows * data.columns**2 / gemm_flops_per_second(client))


def gemm_flops_per_second(client: Client) -> float:
    """flop/s of dgemm, all workers at the same time with one BLAS thread each: the sum."""
    together = time.time() + 0.2
    workers = client.scheduler_info(n_workers=-1)["workers"]
    rates = [client.submit(_gemm_rate, together, workers=[address], pure=False) for address in workers]
    return float(sum(client.gather(rates)))


def _gemm_rate(start: float) -> float:
    from threadpoolctl import threadpool_limits

    A = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE))
    out, count = np.empty_like(A), 0
    with threadpool_limits(1):
        np.matmul(A, A, out=out)
        time.sleep(max(0.0, start - time.time()))
        began = time.perf_counter()
        while time.perf_counter() - began < GEMM_SECONDS:
            np.matmul(A, A, out=out)
            count += 1
        return 2 * GEMM_SIZE**3 * count / (time.perf_counter() - began)
