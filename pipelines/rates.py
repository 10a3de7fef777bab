"""How fast one core of this machine is: what a plan needs to say seconds instead of flops and bytes."""

import json
import math
import os
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rates:
    """Speeds of one core with one BLAS thread, in units of 10⁹ per second."""

    gemm_gflops: float
    """Gflop/s of dgemm on large matrices: the most that any method can reach."""
    factor_gflops: tuple[tuple[int, float], ...]
    """(columns, Gflop/s) of the sweep, 2 m n² flops for m rows, in increasing order of columns."""
    merge_gflops: float
    """Gflop/s of merging two triangles, (2/3) n³ flops."""
    read_gigabytes: float
    """GB/s of decoded data from an uncompressed Zarr array on the local disk, read from the page cache."""
    task_seconds: float
    """Seconds that Dask spends on one task."""
    source: str
    """Where the numbers are from: "nominal", or "calibrated on HOST, DATE"."""
    made_gigabytes: float = 0.8
    """GB/s of float64 entries of a synthetic matrix, b beside them; files of before it could be measured lack it."""

    def factor_flops_per_second(self, columns: int) -> float:
        """The rate of the sweep at this many columns, between the measured ones on logarithmic axes."""
        points = [(math.log(n), math.log(rate * 1e9)) for n, rate in self.factor_gflops]
        x = min(max(math.log(max(columns, 1)), points[0][0]), points[-1][0])
        for (left, low), (right, high) in pairwise(points):
            if x <= right:
                return math.exp(low + (high - low) * (x - left) / (right - left))
        return math.exp(points[-1][1])

    def gemm_flops_per_second(self) -> float:
        """flop/s of dgemm."""
        return self.gemm_gflops * 1e9

    def merge_flops_per_second(self) -> float:
        """flop/s of a merge."""
        return self.merge_gflops * 1e9

    def read_bytes_per_second(self) -> float:
        """Decoded bytes per second."""
        return self.read_gigabytes * 1e9

    def made_numbers_per_second(self) -> float:
        """Entries of a synthetic matrix per second."""
        return self.made_gigabytes * 1e9 / 8


NOMINAL = Rates(
    # Medians of one core of a server processor of 2023 (AVX-512, 2 MB of second-level cache), measured on a
    # quiet machine: OpenBLAS dgemm; the sweep over slabs of 0.5 to 4 MB; merge of 512 columns; Zarr 3.4 from
    # the page cache, with huge pages; Dask 2026 with one thread per worker; rows of 16 columns from a seed.
    gemm_gflops=50.0,
    factor_gflops=((16, 8.0), (64, 23.0), (256, 37.0), (1024, 38.0)),
    merge_gflops=15.0,
    read_gigabytes=2.5,
    task_seconds=0.0016,
    source="nominal",
)
"""Rates of a typical machine, until `tallgrass doctor --calibrate` has measured this one."""


def rates_path() -> Path:
    """Where measured rates are kept, per user and machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tallgrass" / "rates.json"


def load_rates(path: Path | None = None) -> Rates:
    """The measured rates of this machine, or the nominal ones; `source` says which, and why if a file is damaged."""
    path = path or rates_path()
    try:
        return _from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return NOMINAL
    except (OSError, ValueError, TypeError, KeyError) as error:
        return replace(NOMINAL, source=f"nominal ({path} cannot be used: {type(error).__name__}: {error})")


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Keep rates for the plans to come; the file appears whole or not at all."""
    path = path or rates_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(rates), indent=2) + "\n")
    partial.replace(path)
    return path


def _from_dict(fields: dict[str, Any]) -> Rates:
    points = tuple((int(n), float(rate)) for n, rate in fields["factor_gflops"])
    single = ("gemm_gflops", "merge_gflops", "read_gigabytes", "task_seconds")
    numbers = {name: float(fields[name]) for name in single}
    numbers["made_gigabytes"] = float(fields.get("made_gigabytes", NOMINAL.made_gigabytes))
    rates = Rates(factor_gflops=points, source=str(fields["source"]), **numbers)
    positive = all(0 < number < math.inf for number in (*numbers.values(), *(rate for _, rate in points)))
    if not positive or len(points) < 2 or [n for n, _ in points] != sorted({max(n, 1) for n, _ in points}):
        raise ValueError("the numbers in it cannot be rates")
    return rates


def measure_rates() -> Rates:
    """The rates of this machine, measured in about three seconds on one core."""
    import platform

    from threadpoolctl import threadpool_limits

    import pipelines.kernels.sweep  # noqa: F401  # loads SciPy's BLAS, so that the limit reaches it

    with threadpool_limits(1):
        return Rates(
            gemm_gflops=_gemm(),
            factor_gflops=tuple((n, _factor(n)) for n, _ in NOMINAL.factor_gflops),
            merge_gflops=_merge(512),
            read_gigabytes=_read(),
            made_gigabytes=_make(),
            task_seconds=NOMINAL.task_seconds,  # nearly the same everywhere, and it takes a cluster to measure
            source=f"calibrated on {platform.node()}, {time.strftime('%Y-%m-%d')}",
        )


def _per_second(work: float, run: Callable[[], object], seconds: float = 0.3) -> float:
    """Units of 10⁹ per second: the median over runs that together take about this long, after one to warm up."""
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(work / 1e9 / sorted(times)[len(times) // 2], 3)


def _gemm() -> float:
    import numpy as np

    n = 1024
    A = np.random.default_rng(0).standard_normal((n, n))
    out = np.empty_like(A)
    return _per_second(2 * n**3, lambda: np.matmul(A, A, out=out))


def _factor(n: int) -> float:
    """The sweep as a span does it, on rows that are like each other: most of them are added by products."""
    import numpy as np

    from pipelines.kernels.growth import Growth
    from pipelines.kernels.sweep import Sweep, Triangle, slab_rows
    from pipelines.matrix import Slab

    dtype = np.dtype(float)
    slab = slab_rows(n, 0, dtype.itemsize)
    rows = slab * max(1, int(1e8 / (2 * slab * n**2)))
    chunk = np.random.default_rng(n).standard_normal((rows, n))
    sweep, triangle = Sweep(n, 0, dtype, slab), Triangle.empty(n, 0, dtype)
    triangle.growth = Growth()

    def run() -> None:
        for start in range(0, rows, slab):
            part = chunk[start : start + slab]
            sweep.add(triangle, slab, Slab(part, None, None, start).fill, (part, None))

    return _per_second(2 * rows * n**2, run)


def _merge(n: int) -> float:
    import numpy as np

    from pipelines.kernels.sweep import Triangle, merge

    rng = np.random.default_rng(n)
    left, right = (Triangle(np.asfortranarray(np.triu(rng.standard_normal((n, n)))), *_no_tail(n)) for _ in range(2))
    return _per_second(2 / 3 * n**3, lambda: merge(left, right))


def _no_tail(n: int) -> tuple[Any, Any]:
    import numpy as np

    return np.zeros((n, 0), order="F"), np.zeros(0)


def _make() -> float:
    """Rows of 16 entries made from a seed, with their b, in blocks as a span makes them."""
    import numpy as np

    from pipelines.synthetic import Synthetic, SyntheticRhs

    rows, columns = 2**14, 16
    A = Synthetic(2**40, columns, 1e3, 0, np.dtype(float))
    b = SyntheticRhs(A, 0.1)
    return _per_second(rows * columns * 8, lambda: (b.read(0, rows), A.read(0, rows)))


def _read() -> float:
    """An array of 128 MB in chunks of 16 MB, written to a scratch folder and read back from the page cache."""
    import tempfile

    import numpy as np

    from pipelines.storage import Reader

    rows, columns = 2**17, 128
    with tempfile.TemporaryDirectory(prefix="tallgrass-rates-") as folder:
        _write_ones(Path(folder), rows, columns, rows // 8)
        reader, out = Reader(folder, fill_missing=False), np.empty((rows // 8, columns))
        chunks = [slice(start, start + rows // 8) for start in range(0, rows, rows // 8)]
        return _per_second(rows * columns * 8, lambda: [reader.read(chunk, slice(0, columns), out) for chunk in chunks])


def _write_ones(folder: Path, rows: int, columns: int, chunk_rows: int) -> None:
    """A Zarr array of ones, uncompressed: few enough words to need no library."""
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, columns],
        "data_type": "float64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_rows, columns]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    (folder / "zarr.json").write_text(json.dumps(metadata))
    one_chunk = struct.pack("<d", 1.0) * (chunk_rows * columns)
    for i in range(rows // chunk_rows):
        (folder / f"c/{i}").mkdir(parents=True)
        (folder / f"c/{i}/0").write_bytes(one_chunk)
