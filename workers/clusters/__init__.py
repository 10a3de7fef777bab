"""Where a job runs: one model per kind of cluster, and a client for any of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from workers.clusters.address import Address, Tls, open_address
from workers.clusters.gateway import Gateway, open_gateway
from workers.clusters.jobqueue import JobQueue, open_jobqueue, resources_of_jobqueue
from workers.clusters.local import Local, open_local, resources_of_local
from workers.clusters.ssh import Ssh, open_ssh

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.plan import Resources

Cluster = Annotated[Local | Address | Ssh | JobQueue | Gateway, Field(discriminator="kind")]
"""Every kind of cluster, told apart by `kind`."""


Reached = Annotated[Address | Gateway, Field(discriminator="kind")]
"""A cluster that runs, as other processes of this machine connect to it."""


def reached_by(model: Cluster, client: "Client") -> Reached:
    """How other processes of this machine connect to an open cluster."""
    if isinstance(model, Address):
        return model
    if isinstance(model, Gateway):
        return model.model_copy(update={"cluster": client.cluster.name})
    security = client.security
    tls = (
        Tls(ca=security.tls_ca_file, cert=security.tls_client_cert, key=security.tls_client_key)
        if security.require_encryption
        else None
    )
    return Address(address=client.scheduler.address, tls=tls)


@contextmanager
def open_cluster(model: Cluster | None = None, spans: int | None = None) -> Iterator["Client"]:
    """A client of the cluster, open for as long as the context; a local one with defaults when none is named.

    `spans` is the number of tasks that could run at the same time: `processes: auto` starts no more workers.

    Raises:
        ClusterUnreachable: an existing cluster does not answer, runs other versions than we do, or gets no workers.
        PlanRefused: a local one is given more memory than there is.
        RunFailed: a local one does not start.
    """
    model = model or Local()
    with open_local(model, spans) if isinstance(model, Local) else _opened(model) as client:
        yield client


def _opened(model: Any) -> AbstractContextManager["Client"]:
    match model:
        case Ssh():
            return open_ssh(model)
        case JobQueue():
            return open_jobqueue(model)
        case Gateway():
            return open_gateway(model)
        case _:
            return open_address(model)


def resources(client: "Client") -> "Resources":
    """What a cluster offers now: its workers, and the threads and memory of the one with the least for each thread."""
    from pipelines.plan import offered_by

    return offered_by(client.scheduler_info(n_workers=-1)["workers"].values())


def resources_of(model: Cluster | None = None, spans: int | None = None) -> "Resources":
    """What a cluster would offer: where the model tells it, nothing is started; others are opened and asked.

    Raises:
        ClusterUnreachable: it does not answer, or has no workers.
        PlanRefused: a local one is given more memory than there is.
    """
    if isinstance(model, JobQueue):
        return resources_of_jobqueue(model)
    if model is None or isinstance(model, Local):
        return resources_of_local(model or Local(), spans)
    with open_cluster(model) as client:
        return resources(client)


def promised(model: Cluster | None) -> "Resources | None":
    """What a cluster will offer, when its workers come one after the other: a plan made meanwhile counts with all."""
    return resources_of_jobqueue(model) if isinstance(model, JobQueue) else None


def dashboard_link(client: "Client") -> str | None:
    """The address of Dask's dashboard, if it shows one."""
    try:
        link: str | None = client.dashboard_link
    except KeyError:  # a scheduler without one
        return None
    return link or None


__all__ = [
    "Address", "Cluster", "Gateway", "JobQueue", "Local", "Reached", "Ssh", "Tls", "dashboard_link", "open_cluster",
    "promised", "reached_by", "resources", "resources_of",
]  # fmt: skip
