"""What several files of tests share: stored arrays, a problem on disk, and the command as a user types it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

ROOT = Path(__file__).parents[1]
CRC32C = (Crc32cCodec(),)

# Started in the background of a shell, or by nohup, this process ignores signals, and so would the commands that it
# starts, which the tests interrupt as a person would.
for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def stored(path: Any, array: np.ndarray, chunks: tuple[int, ...] | None = None, **options: Any) -> str:
    """A Zarr array of these numbers at a path or in a store, every chunk written; its path."""
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


@pytest.fixture(scope="session")
def moto():
    """An S3 of our own in another process; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Path(sys.executable).with_name("moto_server")
    quiet = subprocess.DEVNULL
    with subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stdout=quiet, stderr=quiet) as process:
        address = f"http://127.0.0.1:{port}"
        answers_at(f"{address}/moto-api/")
        yield address
        process.kill()


def answers_at(address: str) -> None:
    """Returns once a server answers there."""
    end = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.fixture
def s3(moto, monkeypatch, request):
    """The URL of an empty bucket."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {"ENDPOINT_URL": moto, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"{re.sub('[^a-z]+', '-', request.node.name)[:40].strip('-')}-{uuid.uuid4().hex[:8]}"
    urllib.request.urlopen(urllib.request.Request(f"{moto}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}"


@pytest.fixture
def remote(s3, problem):
    """A problem whose arrays lie in the bucket."""
    from pipelines.storage.arrays import open_store

    made = problem()
    for name, array, chunks in (("A", made.A, (10, 3)), ("b", made.b, (10,))):
        stored(open_store(f"{s3}/data/{name}"), array, chunks)
    made.fields, made.bucket = {"matrix": f"{s3}/data/A", "rhs": f"{s3}/data/b"}, s3
    return made


@pytest.fixture
def declared(tmp_path):
    """Job fields for arrays of which there is only the metadata: not one chunk is stored."""

    def declare(m, n, chunks, k=None, dtype="f8", compressors=CRC32C, rhs_rows=10_000, shards=None):
        options = {"dtype": dtype, "compressors": compressors, "overwrite": True}
        zarr.create_array(tmp_path / "A", shape=(m, n), chunks=chunks, shards=shards, **options)
        shape = (m,) if k is None else (m, k)
        zarr.create_array(tmp_path / "b", shape=shape, chunks=(min(m, rhs_rows), k)[: len(shape)], **options)
        return {"matrix": f"{tmp_path}/A", "rhs": f"{tmp_path}/b"}

    return declare
