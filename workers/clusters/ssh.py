"""Machines that are reached by SSH: workers start there when the cluster opens, and go when it closes."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipelines.errors import ClusterUnreachable, PlanRefused
from pipelines.fields import Url, needed
from workers.clusters.address import check_versions
from workers.clusters.elsewhere import (
    Elsewhere,
    Whole,
    await_worker,
    extra,
    scheduler_options,
    settings,
    trusted,
)
from workers.clusters.local import WorkerBytes, watched
from workers.output import say

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

    from workers.clusters.connected import Machine


def _each_once(hosts: list[str]) -> list[str]:
    if len(set(hosts)) < len(hosts):
        raise needed("each machine once; `processes` says how many workers it gets")
    if bad := [host for host in hosts if not host or host.startswith("-") or set(host) & set(" \t\r\n/")]:
        raise needed(f"names or addresses of machines, which {bad[0]!r} is not")
    return hosts


class Ssh(Elsewhere):
    """Workers on machines that are reached by SSH, as `ssh HOST` reaches them: without a password.

    The scheduler runs where the command runs, and the machines must be able to connect to it. Everything is
    encrypted, with a key that is made for this cluster and travels by SSH. Workers end when the command does,
    however it does; a machine that was away is taken back when it can be reached again.
    """

    kind: Literal["ssh"] = "ssh"
    """The kind of cluster."""
    hosts: Annotated[list[str], Field(min_length=1), AfterValidator(_each_once)]
    """The machines, by names that SSH knows. Users, ports, keys and gateways come from SSH's own configuration."""
    config: Url | None = None
    """SSH's configuration file; ~/.ssh/config when left out."""
    python: str | None = None
    """The Python that has Tallgrass on these machines; left out, the same path as here."""
    processes: Literal["auto"] | Whole = "auto"
    """Worker processes on each machine; auto is as many as a local cluster would have there."""
    threads: Whole = 1
    """Tasks that one process runs at a time, each with one BLAS thread."""
    memory: Literal["auto"] | WorkerBytes = "auto"
    """Memory of each worker process, such as "4 GiB"; auto is an equal part of what is free on its machine."""
    scratch: str | None = None
    """Folder on each machine for what does not fit in memory; its folder for temporary files when left out."""


@contextmanager
def open_ssh(model: Ssh) -> Iterator["Client"]:
    """A client of workers that start on these machines now, and are gone afterwards.

    Raises:
        ClusterUnreachable: no machine can be used; the letter says of each why.
        PlanRefused: what SSH needs is not here: its package, its configuration, or the interface.
    """
    extra("asyncssh", "ssh")
    if model.config is not None and not os.path.isfile(model.config):
        raise PlanRefused(
            f"There is no file {model.config} for SSH's configuration. Correct `config`, or leave it out."
        )
    with ExitStack() as stack:
        stack.enter_context(settings(model.start_timeout))
        security = stack.enter_context(trusted())
        import distributed

        cluster = stack.enter_context(watched(_cluster(model, security), model.dashboard))
        client = stack.enter_context(distributed.Client(cluster))
        machines = list(cluster.workers.values())
        await_worker(client, model.start_timeout, lambda: _trouble(machines))
        _await_others(machines)
        check_versions(client)
        yield client


def _cluster(model: Ssh, security: "Security") -> Any:
    import distributed

    from workers.clusters.connected import Machine

    task = {
        "processes": model.processes, "threads": model.threads, "memory": model.memory, "scratch": model.scratch,
        "folder": os.getcwd(),
        "certificate": _text(security.tls_worker_cert), "key": _text(security.tls_worker_key),
    }  # fmt: skip
    return distributed.SpecCluster(
        workers={host: {"cls": Machine, "options": {"model": model, "task": task}} for host in model.hosts},
        scheduler={"cls": distributed.Scheduler, "options": scheduler_options(model, security)},
        security=security,
        silence_logs=50,
    )


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _trouble(machines: "list[Machine]") -> str:
    """What is wrong with each machine; raises when there is none left to hope for."""
    told = sorted(f"{machine.name}: {machine.trouble}" for machine in machines)
    if all(machine.error for machine in machines):
        raise ClusterUnreachable("\n  ".join(["None of the machines can be used.", *told]))
    return "\n  ".join(["What is known of the machines:", *told])


def _await_others(machines: "list[Machine]") -> None:
    """The rest of the machines, which take about as long as the first: until each has come or failed."""
    deadline = time.monotonic() + OTHERS_SECONDS
    while not all(machine.joined or machine.error for machine in machines) and time.monotonic() < deadline:
        time.sleep(0.05)
    for machine in machines:
        if not machine.joined:
            say(f"{machine.name}: {machine.trouble}")
            say(f"The job goes on without {machine.name}, which is tried again meanwhile.")


OTHERS_SECONDS = 20.0
"""After the first worker has joined, those of other machines are waited for this long."""
