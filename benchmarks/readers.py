"""A process that reads an array once, in one of several ways, and prints the seconds that took as JSON.

    python -m benchmarks.readers WAY URL

An environment of its own is half of what is measured: how malloc gets memory is decided before the interpreter starts.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import zarr

from benchmarks.limits import system_of
from pipelines.storage.arrays import open_array


def files(url: str) -> None:
    """The bytes of all files, into the same memory again and again: nothing is decoded."""
    room = memoryview(np.empty(2**26, np.uint8))
    for path in sorted(Path(url).rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(room):
                    pass


def files_afresh(url: str) -> None:
    """The bytes of all files, each into memory of its own, as numpy.fromfile does."""
    for path in sorted(Path(url).rglob("*")):
        if path.is_file():
            np.fromfile(path, np.uint8)


def through_zarr(url: str) -> None:
    """Chunks (or shards) as Zarr reads them."""
    array: zarr.Array = open_array(url)
    rows = (array.shards or array.chunks)[0]
    for start in range(0, array.shape[0], rows):
        array[start : start + rows]


def ours(url: str) -> None:
    """All spans, as a pass reads them."""
    system, spans = system_of(url)
    for span in spans:
        for _ in system.blocks(span):
            pass


WAYS = {"files": files, "files_afresh": files_afresh, "zarr": through_zarr, "ours": ours}


def main(way: str, url: str) -> None:
    WAYS[way](url)  # what is imported and opened, is now
    before, began = os.times(), time.perf_counter()
    WAYS[way](url)
    seconds, after = time.perf_counter() - began, os.times()
    processor = after.user + after.system - before.user - before.system
    print(json.dumps({"seconds": seconds, "processor_seconds": processor}))


if __name__ == "__main__":
    main(*sys.argv[1:])
