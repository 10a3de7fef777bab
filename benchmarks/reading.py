"""Reading: chunks into memory, as files, through Zarr and as a pass does it, on one core and from far away."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from benchmarks.settings import ROOT, Settings, say
from workers.clusters.spawn import ENVIRONMENT, REMOVED

COLUMNS, CHUNK_BYTES = 64, 16 * 2**20
GIGABYTES, FAR_GIGABYTES = 1.0, 0.25
LATENCY, RATE = 0.03, 20e6
"""Seconds to the store and back, and bytes per second of one connection."""
BLOSC = {"compressors": [BloscCodec(cname="lz4", shuffle="shuffle")]}
FORMS: dict[str, dict[str, Any]] = {
    "float64": {"compressors": None},
    "float64, CRC-32C": {"compressors": [Crc32cCodec()]},
    "float64, zstd": {"compressors": [ZstdCodec()]},
    "float64, Blosc": BLOSC,
    "float32, zstd": {"compressors": [ZstdCodec()], "dtype": "f4"},
    "float32, Blosc": BLOSC | {"dtype": "f4"},
    "float64, zstd, in shards": {"compressors": [ZstdCodec()], "shards": 16},
}
FAR = ("float64", "float32, zstd")
"""Those that are also read from an object store that is far away."""
DASK = {"MALLOC_TRIM_THRESHOLD_": "65536"}
"""What Dask sets for its workers."""
WAYS = (
    ("files", "files", {}),
    ("files_afresh", "files_afresh", {}),
    ("zarr_dask", "zarr", DASK),
    ("zarr", "zarr", {}),
    ("zarr_tuned", "zarr", ENVIRONMENT),
    ("ours", "ours", ENVIRONMENT),
)
"""A name, a way of benchmarks.readers, and what is set in the environment for it."""


def measure(settings: Settings) -> dict[str, Any]:
    """Each form in each way, in turns; those that are far away through Zarr and as we do it."""
    cases = []
    for form in FORMS:
        with stored(settings, form, GIGABYTES) as url:
            cases.append(_case(form, url, WAYS, settings))
    for form in FAR:
        with stored(settings, form, FAR_GIGABYTES) as url, far_away(url) as (address, environment):
            ways = [(name, way, set_ | environment) for name, way, set_ in WAYS if name in ("zarr_tuned", "ours")]
            cases.append(_case(f"{form}, far away", address, ways, settings, Path(url)))
    return {"latency": LATENCY, "bytes_per_second": RATE, "cases": cases}


@contextmanager
def stored(settings: Settings, form: str, gigabytes: float) -> Iterator[str]:
    """An array of standard normal numbers in a form; Blosc's and zstd's have three digits, or nothing is compressed."""
    path = settings.folder / f"reading-{form.replace(', ', '-')}" / "A"
    options = {"dtype": "f8"} | FORMS[form]
    rows = CHUNK_BYTES // COLUMNS // np.dtype(options["dtype"]).itemsize
    chunks = max(1, round(settings.bytes(gigabytes) / CHUNK_BYTES))
    if "shards" in options:
        shard = options.pop("shards")
        rows, options["shards"] = rows // shard, (rows, COLUMNS)
        chunks *= shard
    try:
        array = zarr.create_array(path, shape=(chunks * rows, COLUMNS), chunks=(rows, COLUMNS), **options)
        height = (array.shards or array.chunks)[0]
        for number, start in enumerate(range(0, array.shape[0], height)):
            drawn = np.random.default_rng(number).standard_normal((height, COLUMNS))
            array[start : start + height] = drawn.round(3) if options["compressors"] else drawn
        os.sync()
        yield str(path)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def _case(form: str, url: str, ways: Any, settings: Settings, folder: Path | None = None) -> dict[str, Any]:
    say(f"  {form}")
    array = zarr.open_array(folder or url, mode="r")
    size = array.size * array.dtype.itemsize
    files = sum(path.stat().st_size for path in Path(folder or url).rglob("*") if path.is_file())
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(settings.rounds):
        for name, way, set_ in ways:
            found.setdefault(name, []).append(_read(way, url, set_))
    per_gigabyte = {
        name: {key: median(one[key] for one in each) / size * 1e9 for key in each[0]} for name, each in found.items()
    }
    for name, seconds in per_gigabyte.items():
        say(f"    {name}: {seconds['seconds']:.3f} s, {seconds['processor_seconds']:.3f} s of a core, for a gigabyte")
    return {"form": form, "bytes": size, "stored_bytes": files, "seconds_per_gigabyte": per_gigabyte}


def _read(way: str, url: str, set_: dict[str, str]) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED} | set_
    command = [sys.executable, "-m", "benchmarks.readers", way, url]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@contextmanager
def far_away(url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """An object store that has the array, behind a line with latency and a rate for each connection."""
    import obstore

    ports = [_free_port(), _free_port()]
    server = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(ports[0])]
    line = [sys.executable, "-m", "benchmarks.line", *map(str, (*ports, LATENCY, RATE))]
    settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    quiet = subprocess.DEVNULL
    with (
        subprocess.Popen(server, stdout=quiet, stderr=quiet) as moto,
        subprocess.Popen(line, cwd=ROOT, stdout=quiet, stderr=quiet) as proxy,
    ):
        try:
            near = {f"AWS_{name}": value for name, value in settings.items()}
            near["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[0]}"
            _answers(ports[0])
            _answers(ports[1])
            _make_bucket(near["AWS_ENDPOINT_URL"])
            store = obstore.store.from_url(
                "s3://reading", config={name.lower(): value for name, value in near.items()},
                client_options={"allow_http": True},
            )  # fmt: skip
            for path in Path(url).rglob("*"):
                if path.is_file():
                    obstore.put(store, f"A/{path.relative_to(url)}", path)
            yield "s3://reading/A", near | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[1]}"}
        finally:
            moto.kill()
            proxy.kill()


def _make_bucket(endpoint: str) -> None:
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/reading", method="PUT")).close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> None:
    import time

    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
