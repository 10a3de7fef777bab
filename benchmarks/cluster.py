"""Two single-threaded worker processes on this machine: the cluster that everybody runs on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client

from workers.clusters import Local, open_cluster, resources_of

WORKERS = 2
MOST_MEMORY = 8 * 2**30
"""Bytes of a worker, where the machine has them: enough for dask to hold Q."""


@contextmanager
def two_workers() -> Iterator[Client]:
    """A client of two fresh workers with 8 GiB each, or what there is."""
    offered = resources_of(Local(processes=WORKERS, dashboard=False)).memory_bytes
    cluster = Local(processes=WORKERS, memory=min(MOST_MEMORY, offered), dashboard=False)
    with open_cluster(cluster) as client:
        yield client


def process_ids(client: Client) -> list[int]:
    """Of the worker processes."""
    return list(client.run(os.getpid).values())
