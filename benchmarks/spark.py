"""Spark MLlib's LinearRegression beside the others: takes part where pyspark, pyarrow and Java are installed.

    .venv/bin/python -m pip install pyspark pyarrow

The rows are Parquet files of as many rows as the Zarr chunks have. The session is warm; reading and fitting count.
"""

import importlib.util
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.cluster import WORKERS
from benchmarks.data import DataSet
from benchmarks.rounds import Timed

MEMORY = "8g"


def is_there() -> bool:
    """True when Spark can take part."""
    return all(map(importlib.util.find_spec, ("pyspark", "pyarrow"))) and shutil.which("java") is not None


def linear_regression(data: DataSet) -> Timed:
    """The coefficients by the normal equations ("normal" takes up to 4,096 columns), without an intercept."""
    from pyspark.ml.functions import array_to_vector
    from pyspark.ml.regression import LinearRegression

    stored = _parquet(data)
    began = time.perf_counter()
    rows = _session().read.parquet(str(stored))
    rows = rows.select(array_to_vector("features").alias("features"), "label")
    model = LinearRegression(solver="normal", fitIntercept=False, standardization=False, regParam=0.0).fit(rows)
    return Timed(time.perf_counter() - began, np.array(model.coefficients))


@cache
def _session() -> Any:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{WORKERS}]").appName("benchmarks")
    for name, value in {
        "spark.driver.memory": MEMORY,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _parquet(data: DataSet) -> Path:
    """The data set as Parquet, beside its Zarr arrays, with which it goes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = data.folder / data.name / "parquet"
    if folder.exists():
        return folder
    folder.mkdir()
    A, b = zarr.open_array(data.A, mode="r"), zarr.open_array(data.b, mode="r")
    for start in range(0, data.rows, data.chunk_rows):
        a = np.asarray(A[start : start + data.chunk_rows])
        offsets = pa.array(np.arange(len(a) + 1, dtype=np.int32) * data.columns)
        features = pa.ListArray.from_arrays(offsets, pa.array(a.ravel()))
        table = pa.table({"features": features, "label": pa.array(np.asarray(b[start : start + data.chunk_rows]))})
        pq.write_table(table, folder / f"{start:012}.parquet", compression="none", use_dictionary=False)
    return folder
