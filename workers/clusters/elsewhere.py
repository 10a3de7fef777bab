"""What clusters share whose scheduler runs here and whose workers run on other machines: scaling, trust, waiting."""

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import psutil
from pydantic import Field, model_validator

from pipelines.errors import ClusterUnreachable, PlanRefused
from pipelines.fields import NOT_BOOL, Model, Seconds, needed
from pipelines.units import format_seconds
from workers.clusters.local import SETTINGS, dashboard_port

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

Whole = Annotated[int, Field(ge=1), NOT_BOOL]
"""A number of things, at least one."""


class Adaptive(Model):
    """Between two limits, as many as there is work for; Dask decides, and gives back what stands idle."""

    minimum: Whole = 1
    """Kept also when there is nothing to do."""
    maximum: Whole
    """Never more than that."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise needed(f"a minimum of at most the maximum, {self.maximum}")
        return self


Scale = Whole | Adaptive
"""A number, or `{minimum: 1, maximum: 20}`."""


def most(scale: "int | Adaptive") -> int:
    """What a plan may count with."""
    return scale.maximum if isinstance(scale, Adaptive) else scale


class Elsewhere(Model):
    """Fields of every cluster whose scheduler runs where the command runs, and whose workers run elsewhere."""

    interface: str | None = None
    """Network interface by which the machines reach each other, such as ib0; left out, Dask chooses one."""
    dashboard: Literal["auto", False] | Annotated[int, Field(ge=1, le=65535), NOT_BOOL] = "auto"
    """Port of Dask's dashboard on 127.0.0.1; auto is 8787, or another where that is taken; false shows none."""
    start_timeout: Seconds = Field("5m", validate_default=True)
    """Time to wait for the first worker."""


def extra(module: str, name: str) -> Any:
    """A module that only this kind of cluster needs.

    Raises:
        PlanRefused: it is not installed; the letter names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PlanRefused(
            f"This cluster needs {module.partition('.')[0]}, which is not installed ({error}). "
            f"Install it: pip install 'tallgrass[{name}]'"
        ) from error


@contextmanager
def settings(start_timeout: float) -> Iterator[None]:
    """Dask as our work needs it, and silent; a cluster without workers is given as long as it may take to start."""
    import dask
    import distributed  # noqa: F401  # its own settings have to be there, or they would go with ours

    from workers.clusters.logs import quiet

    ours = {
        "distributed.scheduler.no-workers-timeout": f"{max(60.0, start_timeout)}s",
        "distributed.dashboard.link": "{scheme}://127.0.0.1:{port}/status",  # the only address at which it answers
    }
    with quiet(), dask.config.set(SETTINGS | ours):
        yield


@contextmanager
def trusted(parent: Path | None = None) -> Iterator["Security"]:
    """Certificates for one cluster, as files that only this user can read, and that go with it, or with the next one.

    Scheduler, workers and clients of a cluster know each other by one key, made now: whoever has not got it can
    connect to none of them, though they can be reached over the network.
    """
    from distributed.security import Security

    extra("cryptography", "tls")
    made = Security.temporary()
    with _private_folder(parent) as folder:
        files = {"cert": folder / "certificate.pem", "key": folder / "key.pem"}
        for name, text in {"cert": made.tls_scheduler_cert, "key": made.tls_scheduler_key}.items():
            with open(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
        pair = {
            f"tls_{role}_{name}": str(path)
            for role in ("scheduler", "worker", "client")
            for name, path in files.items()
        }
        yield Security(require_encryption=True, tls_ca_file=str(files["cert"]), **pair)


@contextmanager
def _private_folder(parent: Path | None) -> Iterator[Path]:
    base = parent or Path(tempfile.gettempdir())
    ours = f"tallgrass-{os.uname().nodename}-"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base, ours)
        folder = Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=base))
    except OSError as error:
        raise PlanRefused(
            f"No folder can be made in {parent}: {error.strerror}. Name another one as `shared`."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path, ours: str) -> None:
    """Remove keys of processes of this machine that are no more; file systems that nodes share may know no locks."""
    for folder in base.glob(f"{ours}*"):
        number = folder.name.removeprefix(ours).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def scheduler_options(model: Elsewhere, security: "Security") -> dict[str, Any]:
    """For Dask's Scheduler: encrypted, with its dashboard on this machine only.

    Raises:
        PlanRefused: this machine has no such interface.
    """
    interfaces = psutil.net_if_addrs()
    if model.interface is not None and model.interface not in interfaces:
        raise PlanRefused(
            f"This machine has no network interface {model.interface}; it has {', '.join(sorted(interfaces))}. Name "
            "one of them as `interface` in the cluster file, or leave it out."
        )
    options: dict[str, Any] = {"protocol": "tls://", "security": security, "dashboard": False}
    options["dashboard_address"] = f"127.0.0.1:{dashboard_port(model.dashboard)}"
    if model.interface is not None:
        options["interface"] = model.interface
    return options


def await_worker(client: "Client", start_timeout: float, trouble: Callable[[], str]) -> None:
    """Nothing, as soon as a worker has joined.

    Raises:
        ClusterUnreachable: none did within `start_timeout`. The letter ends with what `trouble` says; it is asked again
            and again meanwhile, and raises when waiting is of no use.
    """
    began = time.monotonic()
    while not client.scheduler_info(n_workers=1)["workers"]:
        found = trouble()
        if time.monotonic() - began >= start_timeout:
            raise ClusterUnreachable(
                f"No worker joined the scheduler at {client.scheduler_info()['address']} within "
                f"{format_seconds(start_timeout)}. {found}"
            )
        time.sleep(0.1)
