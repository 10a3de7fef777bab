"""`tallgrass serve`: the HTTP API here, an agent with its cluster in a process beside it, started again if it dies."""

import fcntl
import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ClusterUnreachable, JobFileError, PlanRefused, RunFailed
from pipelines.roots import confine
from workers.processes import LAST_SECONDS

if TYPE_CHECKING:
    from pipelines.plan import Resources
    from workers.queue import Queue

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""What a server that only this machine reaches may be called."""
PAUSES = (0.2, 10.0)
"""Seconds before an agent that died is started again: at first, and at most."""


@dataclass(frozen=True)
class Options:
    """What `serve` is told."""

    host: str
    port: int
    state: Path
    database: str
    cluster: Any
    at_once: int
    roots: tuple[str, ...]
    most_open: int
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.cert else ''}://{host}:{self.port}"


def state_folder() -> Path:
    """Where a server keeps its queue and its locks unless it is told otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "tallgrass"


def serve(options: Options, tell: Any) -> None:
    """Serve until SIGINT or SIGTERM; then jobs that run wait for the next start.

    Raises:
        JobFileError: the address is not one of this machine, or its port is taken.
        PlanRefused: it would be open to others without a token.
        RunFailed: another server uses this folder, or the queue cannot be used.
    """
    import uvicorn

    from workers.queue import Queue
    from workers.server import Rules, create_app

    _check_options(options)
    confine(options.roots)  # plans open arrays in this process
    with ExitStack() as stack:
        stack.enter_context(_alone(options.state))
        listener = stack.enter_context(_listening(options))
        queue = Queue(options.database)
        stack.callback(queue.close)
        tokens = _tokens_needed(options, queue)
        agent = stack.enter_context(Supervised(options))
        rules = Rules(
            roots=options.roots, tokens=tokens, most_open=options.most_open,
            hosts=None if tokens else (*LOOPBACK, options.host.lower()),
            wake=agent.wake, plan=lambda job: _plan(job, options, queue),
        )  # fmt: skip
        config = uvicorn.Config(
            create_app(queue, rules), log_level="warning", access_log=False, lifespan="off",
            ssl_certfile=options.cert, ssl_keyfile=options.key, timeout_graceful_shutdown=2,
        )  # fmt: skip
        tell(f"serving at {options.url}; jobs may read and write below {', '.join(options.roots)}")
        if tokens and options.cert is None:
            tell("note: tokens and jobs travel as plain text. Encrypt them with --cert and --key (tallgrass certs)")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
        tell("stopping: jobs that run go on when the server is started again")


def _check_options(options: Options) -> None:
    """What would fail later, and less clearly."""
    for root in options.roots:
        if "://" not in root and not os.path.isdir(root):
            raise JobFileError(f"--root: there is no folder {root}. Make it first, or name another one.")
    if options.cert is not None:
        _check_certificate(options.cert, options.key)


def _check_certificate(cert: Path, key: Path | None) -> None:
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or error
        raise JobFileError(f"{cert} and {key} are no certificate with its key ({why}); needed PEM files.") from error
    with suppress(ImportError):  # without the package that reads certificates, clients find out
        from workers.certificates import days_left

        if (days := days_left(cert)) < 0:
            raise JobFileError(
                f"{cert} has ended {-days:.0f} days ago, and no client would trust it. Renew it: tallgrass certs "
                f"{cert.parent} --renew"
            )


def _plan(job: Any, options: Options, queue: "Queue") -> dict[str, Any]:
    from pipelines.plan import make_plan

    found: dict[str, Any] = make_plan(job, _offer(options, queue)).to_dict()
    return found


def _offer(options: Options, queue: "Queue") -> "Resources":
    """What jobs will get: of a cluster that has to be started to be asked, what the one of our agent offers."""
    from pipelines.plan import Resources
    from workers.clusters import Gateway, Ssh, resources_of

    if not isinstance(options.cluster, Ssh | Gateway):
        return resources_of(options.cluster)
    ours = [agent for agent in queue.agents() if agent["name"] == _place(options.state)]
    for agent in ours:
        if offered := agent.get("resources"):
            return Resources(**offered)
    why = next((agent["error"] for agent in ours if agent["error"]), "it starts")
    raise ClusterUnreachable(f"The server's cluster does not run yet, so no plan can be made for it: {why}")


class Supervised:
    """The agent: a process that is started again whenever it ends, and woken when there is something to do."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tend, daemon=True, name="agent")

    def __enter__(self) -> "Supervised":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            process = self._process
            if process is None:
                return
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        try:
            process.wait(3 * LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def wake(self) -> None:
        """There is something to do; an agent that is being started looks anyway."""
        with self._lock, suppress(OSError, ValueError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(b"\n")

    def _tend(self) -> None:
        pause = PAUSES[0]
        while not self._stopped.is_set():
            began = time.monotonic()
            with self._lock:
                if self._stopped.is_set():
                    return
                self._process = self._start()
            self._process.wait()
            pause = PAUSES[0] if time.monotonic() - began > 60 else min(2 * pause, PAUSES[1])
            self._stopped.wait(pause)

    def _start(self) -> subprocess.Popen[bytes]:
        options = self.options
        told = {
            "database": options.database, "name": _place(options.state),
            "state": str(options.state), "at_once": options.at_once, "roots": options.roots,
            "cluster": options.cluster.model_dump(mode="json"), "server": options.url,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.agent"], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(json.dumps(told).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)  # an agent that is busy has been woken already
        return process


def _place(state: Path) -> str:
    """A name for this folder that no other machine has, whatever its host is called."""
    file = state / "place"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return f"{socket.gethostname()}:{state}:{file.read_text()}"


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state / "server.lock").open("a")
    except OSError as error:
        raise RunFailed(
            f"The folder {state} for the queue cannot be used: {error.strerror}. Name another one with --state."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(
                f"Another server uses {state} already. Stop it, or give this one a folder of its own with --state."
            ) from None
        yield


@contextmanager
def _listening(options: Options) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
            listener.listen(1024)
        except OSError as error:
            why = error.strerror or str(error)
            raise JobFileError(
                f"The server cannot listen at {options.host}:{options.port}: {why}. Name another --host or --port."
            ) from error
        yield listener


def _tokens_needed(options: Options, queue: "Queue") -> bool:
    """Whether requests need tokens: where other machines can send them, or where somebody says so."""
    from workers.database import shown_url
    from workers.tokens import Tokens

    if options.token_file is not None:
        Tokens(queue.database).admit(_word_in(options.token_file), options.token_file.name, "submit")
    elif _is_loopback(options.host):
        return False
    if not any(token["revoked_at"] is None for token in Tokens(queue.database).all()):
        raise PlanRefused(
            f"At {options.host} other machines could submit jobs, and there is no token to keep them from it. Make one "
            f"first: tallgrass token create NAME --database {shown_url(options.database)}"
        )
    return True


def _word_in(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise JobFileError(
            f"--token-file: {file} cannot be read ({why}). Make it with tallgrass token create."
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
