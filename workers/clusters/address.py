"""A cluster that runs already: its scheduler's address, and everything that has to agree before we use it."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.errors import ClusterUnreachable
from pipelines.failures import ASK_SECONDS, ask_scheduler, cluster_state, workers_now
from pipelines.fields import Model, Seconds, Url, needed
from pipelines.units import format_seconds

if TYPE_CHECKING:
    from distributed import Client

_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")

HANDSHAKE_SECONDS = 2.0
"""A scheduler speaks first, as soon as the connection stands; what is silent for longer is something else."""


class Tls(Model):
    """Certificates for an encrypted connection, as files in PEM format."""

    ca: Url
    """The authority that signed the certificates of scheduler, workers and client."""
    cert: Url
    """Our own certificate."""
    key: Url
    """The private key of our certificate."""


class Address(Model):
    """A scheduler that is running already, with workers of the same Python and the same packages."""

    kind: Literal["address"] = "address"
    """The kind of cluster."""
    address: str
    """Where the scheduler listens: tcp://host:8786, or tls://host:8786 for an encrypted connection."""
    tls: Tls | None = None
    """Certificates; needed for tls:// and for nothing else."""
    connect_timeout: Seconds = Field("30s", validate_default=True)
    """Time to wait for the scheduler to answer, and then for its first worker."""

    @field_validator("address")
    @classmethod
    def _has_scheme_and_port(cls, address: str) -> str:
        match = _ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match[3]) < 65536:
            raise needed("tcp://host:port or tls://host:port, such as tcp://10.0.0.1:8786")
        return address

    @model_validator(mode="after")
    def _has_certificates(self) -> Self:
        if self.address.startswith("tls://") and self.tls is None:
            raise needed("tls: {ca: ..., cert: ..., key: ...}, since the address begins with tls://")
        if self.address.startswith("tcp://") and self.tls is not None:
            raise needed("an address that begins with tls://, since certificates are given")
        return self


@contextmanager
def open_address(model: Address) -> Iterator["Client"]:
    """A client of the running cluster, after its versions are found to be ours; it goes on running afterwards.

    Raises:
        ClusterUnreachable: no answer, no trust, no workers, or other versions than ours.
    """
    deadline = time.monotonic() + model.connect_timeout
    security = _security(model)
    _wait_for_a_scheduler(model, security, deadline)
    import dask

    from workers.clusters.local import OF_CLIENTS
    from workers.clusters.logs import quiet

    with ExitStack() as stack:
        stack.enter_context(quiet())
        patient = {"distributed.comm.timeouts.connect": model.connect_timeout}
        stack.enter_context(dask.config.set(OF_CLIENTS | patient))
        client = stack.enter_context(_client(model, security))
        _wait_for_workers(client, model)
        check_versions(client, model.connect_timeout)
        yield client


def _security(model: Address) -> Any:
    """Dask's Security, with the files found and readable."""
    from distributed.security import Security

    if model.tls is None:
        return Security(require_encryption=False)
    security = Security(
        require_encryption=True,
        tls_ca_file=model.tls.ca,
        tls_client_cert=model.tls.cert,
        tls_client_key=model.tls.key,
    )
    try:
        for name, path in model.tls:
            _readable(name, Path(path))
        security.get_connection_args("client")
    except ssl.SSLError as error:
        raise ClusterUnreachable(_bad_certificate(model.tls, error)) from error
    return security


def _readable(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ClusterUnreachable(f"tls.{name}: cannot read {path}: {error.strerror}. Name a PEM file.") from error


def _bad_certificate(tls: Tls, error: ssl.SSLError) -> str:
    return (
        f"The files {tls.ca}, {tls.cert} and {tls.key} do not make a certificate ({error.reason or error}). "
        "Needed: PEM files, and the key that belongs to the certificate."
    )


def _wait_for_a_scheduler(model: Address, security: Any, deadline: float) -> None:
    """Until a scheduler speaks at the address; a wrong kind of answer will not get better, so it ends the wait."""
    context = security.get_connection_args("client").get("ssl_context")
    start = time.monotonic()
    while True:
        found, final = _listen(model, context)
        if not found:
            return
        if final:
            raise ClusterUnreachable(f"{model.address}: {found}")
        if time.monotonic() >= deadline:
            waited = format_seconds(time.monotonic() - start)
            raise ClusterUnreachable(f"{model.address} did not answer within {waited}: {found}")
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


def _listen(model: Address, context: ssl.SSLContext | None) -> tuple[str, bool]:
    """("", True) when a scheduler speaks; otherwise what is wrong, and whether that is for good."""
    host, port = model.address.split("://")[1].rsplit(":", 1)
    seconds = min(HANDSHAKE_SECONDS, max(0.1, model.connect_timeout))
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            return _first_words(connection, context)
    except socket.gaierror:
        return f'no machine is known by the name "{host}". Check the name, or the network.', False
    except ConnectionRefusedError:
        return "nothing listens there. Start the scheduler, or check host and port.", False
    except OSError as error:
        return f"no connection ({error.strerror or error}). Check host, port and firewall.", False


def _first_words(connection: socket.socket, context: ssl.SSLContext | None) -> tuple[str, bool]:
    """What a listener says first: a scheduler begins with the length of its greeting, after encryption."""
    try:
        if context is None:
            first = connection.recv(1)
        else:
            with context.wrap_socket(connection) as encrypted:
                first = encrypted.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _not_trusted(error), True
    except ssl.SSLError as error:
        return _not_encrypted_as_we(error), True
    except TimeoutError:
        return _silence(connection, context), False
    if not first:
        return "it closes the connection at once: no Dask scheduler, or one that refuses us.", False
    return "", True


def _not_trusted(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message:
        return f"the certificate of the scheduler, or of its authority, has ended. {RENEW}"
    return "the scheduler's certificate is not signed by the authority in tls.ca. Name the right one."


RENEW = "Renew it (tallgrass certs FOLDER --renew), and restart who uses it."


def _not_encrypted_as_we(error: ssl.SSLError) -> str:
    if "EXPIRED" in (error.reason or ""):
        return f"the scheduler refuses our certificate, tls.cert, which has ended. {RENEW}"
    if "ALERT" in (error.reason or ""):
        return (
            f"the scheduler refuses our certificate ({error.reason}). "
            "Use one that its authority has signed as tls.cert and tls.key."
        )
    return "the scheduler does not encrypt. Write tcp:// in the address, and leave tls out."


def _silence(connection: socket.socket, context: ssl.SSLContext | None) -> str:
    """A listener that waits for us to speak: one that encrypts, or no scheduler, or one that is stuck."""
    if context is None and _encrypts(connection):
        return "the scheduler encrypts. Write tls:// in the address, and name the certificates under tls."
    return "something listens there but does not answer. Restart the scheduler, or check the port."


def _encrypts(connection: socket.socket) -> bool:
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.check_hostname, probe.verify_mode = False, ssl.CERT_NONE
    try:
        probe.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True


@contextmanager
def _client(model: Address, security: Any) -> Iterator["Client"]:
    import warnings

    import distributed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Dask's word on versions; ours follows, and is final
            client = distributed.Client(model.address, security=security, timeout=model.connect_timeout)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterUnreachable(f"{model.address}: the scheduler answers, but {error}.") from error
    with client:
        yield client


def _wait_for_workers(client: "Client", model: Address) -> None:
    try:
        client.wait_for_workers(1, timeout=max(model.connect_timeout, 0.1))
    except TimeoutError:
        if client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterUnreachable(
                f"{model.address}: {cluster_state(client)}. Free memory and disk on their machines, or start workers "
                "with more."
            ) from None
        raise ClusterUnreachable(
            f"{model.address}: the scheduler answers, but no worker joined it within "
            f"{format_seconds(model.connect_timeout)}. Start one: dask worker {model.address}"
        ) from None


PACKAGES = ("tallgrass", "dask", "distributed", "cloudpickle", "numpy", "scipy", "zarr")
"""Packages whose versions have to be the same everywhere: tasks are pickled by the name of their function."""


def versions_of(client: "Client", seconds: float) -> dict[str, dict[str, str | None]]:
    """Python and package versions by place: "this process", "the scheduler", and the address of each worker.

    Raises:
        ClusterUnreachable: no answer within these seconds.
    """
    ask = client._get_versions  # noqa: SLF001  # get_versions itself takes no timeout
    try:
        found: Any = client.sync(ask, packages=PACKAGES, callback_timeout=seconds)
    except (TimeoutError, OSError) as error:
        raise ClusterUnreachable(
            _silent_workers(client, seconds)
            or f"The scheduler connects, but does not say its versions within {format_seconds(seconds)}. Restart it."
        ) from error
    places = {"this process": found["client"], "the scheduler": found["scheduler"]}
    places |= {f"worker {address}": said for address, said in found["workers"].items()}
    return {place: _versions(said["packages"]) for place, said in places.items() if said}


SILENT_SECONDS = 2.0
"""Workers of small clusters speak twice a second; of those that do not answer, the most silent is to blame."""


def _silent_workers(client: "Client", seconds: float) -> str:
    """A letter on the worker that the scheduler has not heard of for longest; "" where each has just spoken."""
    patience = min(seconds, ASK_SECONDS)
    workers, now = workers_now(client, patience) or [], ask_scheduler(client, time.time, patience)
    silent = {worker["name"]: now - worker["last_seen"] for worker in workers if now is not None}
    if not silent or max(silent.values()) < SILENT_SECONDS:
        return ""
    name = max(silent, key=lambda name: silent[name])
    return (
        f"The worker {name} does not answer, and the scheduler has not heard of it for {format_seconds(silent[name])}. "
        "End it if it is frozen (`ps` shows a T), or wait until the scheduler gives it up (its worker-ttl)."
    )


def _versions(packages: dict[str, str | None]) -> dict[str, str | None]:
    """Python as 3.12, since its bytecode changes with each minor version, and the packages that matter."""
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python} | {name: packages.get(name) for name in PACKAGES}


def check_versions(client: "Client", seconds: float = 30.0) -> None:
    """Nothing, when Python and packages are the same everywhere and Tallgrass is importable on every worker.

    Raises:
        ClusterUnreachable: the first difference, with both versions and the place.
    """
    places = versions_of(client, seconds)
    ours = places.pop("this process")
    for place, theirs in places.items():
        for name, version in ours.items():
            if theirs[name] != version and not (place == "the scheduler" and name in _ONLY_ON_WORKERS):
                raise ClusterUnreachable(_differs(place, name, theirs[name], version))
    _importable(client, seconds)


_ONLY_ON_WORKERS = ("tallgrass", "numpy", "scipy", "zarr")
"""The scheduler runs without these."""


def _differs(place: str, name: str, theirs: str | None, ours: str | None) -> str:
    shown = "Python" if name == "python" else name
    theirs, ours = theirs or "none at all", ours or "none at all"
    return (
        f"{place[0].upper()}{place[1:]} has {shown} {theirs}, this process has {ours}. Both have to be the same: "
        f"install {shown} {ours} there, or run from an environment like the cluster's."
    )


def importable() -> bool:
    """True; a worker that can answer has Tallgrass."""
    return True


def _importable(client: "Client", seconds: float) -> None:
    try:
        client.sync(client._run, importable, callback_timeout=seconds)  # noqa: SLF001  # run takes no timeout
    except TimeoutError:
        raise ClusterUnreachable(
            _silent_workers(client, seconds)
            or f"A worker does not answer within {format_seconds(seconds)}. Restart the workers."
        ) from None
    except Exception as error:  # whatever the worker raised when it looked for the module
        raise ClusterUnreachable(
            f"The workers cannot import Tallgrass ({type(error).__name__}: {error}). Install it on each of them."
        ) from error
