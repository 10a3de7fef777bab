"""Where a job runs: one model per kind of cluster, and a client for any of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from workers.clusters.address import Address, Tls
from workers.clusters.local import Local, resources_of_local

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.plan import Resources

Cluster = Annotated[Local | Address, Field(discriminator="kind")]
"""Every kind of cluster, told apart by `kind`."""


@contextmanager
def open_cluster(model: Cluster | None = None, spans: int | None = None) -> Iterator["Client"]:
    """A client of the cluster, open for as long as the context; a local one with defaults when none is named.

    `spans` is the number of tasks that could run at the same time: `processes: auto` starts no more workers.

    Raises:
        ClusterUnreachable: an existing cluster does not answer, or runs other versions than we do.
        PlanRefused: a local one is given more memory than there is.
        RunFailed: a local one does not start.
    """
    from workers.clusters.address import open_address
    from workers.clusters.local import open_local

    with open_address(model) if isinstance(model, Address) else open_local(model or Local(), spans) as client:
        yield client


def resources(client: "Client") -> "Resources":
    """What a cluster offers now: its workers, the fewest threads and the least memory of any of them."""
    from pipelines.plan import Resources

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    memory = min((worker["memory_limit"] or _UNLIMITED for worker in workers), default=0)
    return Resources(len(workers), min((worker["nthreads"] for worker in workers), default=1), memory)


_UNLIMITED = 2**40
"""Bytes that a worker without a memory limit is taken to have."""


def resources_of(model: Cluster | None = None, spans: int | None = None) -> "Resources":
    """What a cluster would offer: a local one is not started for it, a running one is asked.

    Raises:
        ClusterUnreachable: a running one does not answer, or has no workers.
        PlanRefused: a local one is given more memory than there is.
    """
    if isinstance(model, Address):
        with open_cluster(model) as client:
            return resources(client)
    return resources_of_local(model or Local(), spans)


def dashboard_link(client: "Client") -> str | None:
    """The address of Dask's dashboard, if it shows one."""
    try:
        link: str | None = client.dashboard_link
    except KeyError:  # a scheduler without one
        return None
    return link or None


__all__ = ["Address", "Cluster", "Local", "Tls", "dashboard_link", "open_cluster", "resources", "resources_of"]
