"""Clusters that a Dask Gateway starts: on Kubernetes, on a batch system, or wherever it was set up to start them."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from pipelines.errors import ClusterUnreachable
from pipelines.fields import Model, Seconds, letter, needed
from workers.clusters.address import check_versions
from workers.clusters.elsewhere import Adaptive, Scale, await_worker, extra, settings

if TYPE_CHECKING:
    from distributed import Client


class Gateway(Model):
    """A cluster of a Dask Gateway: the usual way to Kubernetes, with its own users, limits and encryption.

    How we log in stands in Dask's configuration (`gateway.auth`, or DASK_GATEWAY__AUTH__TYPE), not here. The image
    that the gateway starts needs the same Python and the same packages as this installation.
    """

    kind: Literal["gateway"] = "gateway"
    """The kind of cluster."""
    address: str
    """Where the gateway answers: https://gateway.example.org"""
    proxy_address: str | None = None
    """Where its schedulers answer, when that is another address: gateway.example.org:8786"""
    workers: Scale = 4
    """Workers, as a number, or {minimum: 1, maximum: 20} to have as many as there is work for."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """The gateway's own options for a cluster, such as {worker_memory: 8, image: ...}."""
    cluster: str | None = None
    """The name of a cluster that it runs already, to be used as it is; left out, a new one is started."""
    start_timeout: Seconds = Field("10m", validate_default=True)
    """Time to wait for the first worker."""

    @field_validator("address")
    @classmethod
    def _is_http(cls, address: str) -> str:
        if not address.startswith(("http://", "https://")):
            raise needed("an address that begins with https:// or http://")
        if "@" in address or "?" in address:
            raise letter(
                "found a user, a password or a signature in the address. How we log in stands in Dask's settings"
            )
        return address


@contextmanager
def open_gateway(model: Gateway) -> Iterator["Client"]:
    """A client of a cluster that the gateway starts now and ends afterwards, or of a named one, which goes on.

    Raises:
        ClusterUnreachable: the gateway does not answer, does not let us in, or starts no worker.
        PlanRefused: dask-gateway is not installed here.
    """
    gateway = extra("dask_gateway", "gateway")
    _mend(gateway.Gateway)
    with ExitStack() as stack:
        stack.enter_context(settings(model.start_timeout))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Dask's word on versions; ours follows, and is final
        try:
            cluster = stack.enter_context(_cluster(gateway, model))
            client = stack.enter_context(cluster.get_client(set_as_default=False))
        except Exception as error:  # of aiohttp, of the gateway, of Dask
            raise ClusterUnreachable(_letter(model, error)) from error
        await_worker(client, model.start_timeout, lambda: "The gateway's own log tells why.")
        check_versions(client)
        yield client


@contextmanager
def _cluster(gateway: Any, model: Gateway) -> Iterator[Any]:
    """A cluster of our own, which ends with the context, or the named one."""
    where = {"address": model.address, "proxy_address": model.proxy_address}
    if model.cluster is not None:
        with gateway.GatewayCluster.from_name(model.cluster, **where) as cluster:
            yield cluster
        return
    with gateway.Gateway(**where) as asked, ThreadPoolExecutor(1) as thread:
        # Ctrl-C must not lose the answer, which is the cluster's name: nobody else would end it.
        asking = thread.submit(asked.submit, **model.options)
        try:
            with asked.connect(asking.result()) as cluster:
                _rescale(cluster, model.workers)
                yield cluster
        finally:
            if asking.exception() is None:
                with suppress(Exception):  # the gateway is away, or has ended it already
                    asked.stop_cluster(asking.result())


def _rescale(cluster: Any, workers: int | Adaptive) -> None:
    if isinstance(workers, Adaptive):
        cluster.adapt(minimum=workers.minimum, maximum=workers.maximum)
    else:
        cluster.scale(workers)


def _mend(kind: Any) -> None:
    """Let a Gateway be closed twice, as Python does when it forgets one; dask-gateway 2026.3 prints a traceback."""
    close = kind.close
    if getattr(close, "mended", False):
        return

    def closed(self: Any) -> Any:
        with suppress(RuntimeError):  # its loop has ended already
            return close(self)

    closed.mended = True  # type: ignore[attr-defined]
    kind.close = closed


def _letter(model: Gateway, error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"The Dask Gateway at {model.address} gives us no cluster: {said}. Check its address, options and our login."
