"""What several files of tests share: stored arrays, a problem on disk, and the command as a user types it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

ROOT = Path(__file__).parents[1]

# Started in the background of a shell, or by nohup, this process ignores signals, and so would the commands that it
# starts, which the tests interrupt as a person would.
for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def stored(path: Path | str, array: np.ndarray, chunks: tuple[int, ...] | None = None, **options: Any) -> str:
    """A Zarr array of these numbers, every chunk written; its path."""
    options = {"compressors": None, "config": {"write_empty_chunks": True}} | options
    made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=chunks or array.shape, **options)
    made[...] = array
    return str(path)


@pytest.fixture(scope="session")
def store() -> Callable[..., str]:
    """Stores an array at a path; gives the path."""
    return stored


@pytest.fixture
def save(tmp_path) -> Callable[..., str]:
    """Stores an array by name in the test's folder; gives its path."""
    return lambda name, array, chunks=None, **options: stored(tmp_path / name, array, chunks, **options)


@pytest.fixture
def client(served):
    """Speaks with the server of a module that serves."""
    from workers import Client

    with Client(served.url) as made:
        yield made


@pytest.fixture
def problem(tmp_path) -> Callable[..., SimpleNamespace]:
    """Stores a matrix with its right-hand side, with checksums: m × n numbers in chunks of `rows` rows."""

    def make(m: int = 60, n: int = 3, rows: int = 10, seed: int = 1, **options: Any) -> SimpleNamespace:
        random = np.random.default_rng(seed)
        A, b = random.standard_normal((m, n)), random.standard_normal(m)
        options = {"compressors": [Crc32cCodec()]} | options
        data = tmp_path / "data"
        matrix = stored(data / "A", A, (rows, min(n, rows) if m < n else n), **options)
        rhs = stored(data / "b", b, (rows,), **options)
        x = np.linalg.lstsq(A, b, rcond=None)[0]
        return SimpleNamespace(A=A, b=b, x=x, matrix=matrix, rhs=rhs, fields={"matrix": matrix, "rhs": rhs})

    return make


@pytest.fixture
def command(tmp_path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Types `tallgrass ...` in the test's folder, with fields for the job file if there are any."""

    def run(*words: str, job: dict[str, Any] | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
        if job is not None:
            written(tmp_path, job)
        typed = [sys.executable, "-m", "workers.cli", *words]
        return subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, env=environment(), **options)

    return run


def written(folder: Path, job: dict[str, Any]) -> Path:
    """The job as a file: JSON is YAML."""
    path = folder / "job.yaml"
    path.write_text(json.dumps({"kind": "least_squares"} | job))
    return path


def environment() -> dict[str, str]:
    """A user's environment from which the tests' own packages can be imported; its streams have their usual buffers."""
    mine = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return mine | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
