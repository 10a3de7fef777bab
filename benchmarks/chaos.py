"""Chaos: jobs on a real cluster, one part of it killed or cut off at a random moment, and the same command again.

Scheduler, workers and driver are processes of their own; each worker has a network of its own where that can be had
(Linux, root), so that its cable can be pulled. Each answer is compared, bit by bit, with that of a quiet run.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import zarr

from benchmarks.data import DataSet, stored
from benchmarks.settings import Settings, say
from pipelines.result import read_summary

RUNS = 200
ROWS, COLUMNS, CHUNK_ROWS = 150_000, 192, 2000
METHOD = {"name": "tsqr", "span_seconds": 0.03}
JOBS: dict[str, dict[str, Any]] = {
    "least_squares": {"kind": "least_squares", "rhs": "b", "method": METHOD},
    "pseudoinverse": {"kind": "pseudoinverse", "form": "explicit", "method": METHOD},
    "randomized svd": {"kind": "svd", "vectors": "both", "values": 12,
                       "method": {"name": "block_krylov", "span_seconds": 0.03}},
}  # fmt: skip
FAULTS = ("worker", "scheduler", "driver", "network")
HUNG = 120.0
"""Seconds after which a run of a few seconds counts as one that hangs."""
LONGEST_CUT = 4.0
TALLGRASS, DASK = (str(Path(sys.executable).with_name(name)) for name in ("tallgrass", "dask"))


def measure(settings: Settings) -> dict[str, Any]:
    """Many runs; quick ones are few."""
    return chaos(settings.folder, max(len(FAULTS) * len(JOBS), int(RUNS * settings.scale)), seed=1)


def chaos(folder: Path, runs: int, seed: int, jobs: Sequence[str] = tuple(JOBS)) -> dict[str, Any]:
    """So many runs with a fault in each, and what they showed.

    Raises:
        AssertionError: an answer is wrong, half there, or not there; a run hangs; something is left over.
    """
    chance, found = random.Random(seed), []
    data = DataSet(folder, ROWS, COLUMNS, CHUNK_ROWS)
    with stored(data), _fleet(folder) as fleet:
        quiet = {name: _quiet(fleet, data, folder, name, 1 + 2 * (runs > 2 * len(FAULTS))) for name in jobs}
        faults = [fault for fault in FAULTS if fault != "network" or fleet.networks]
        for number in range(runs):
            name, fault = jobs[number % len(jobs)], faults[number // len(jobs) % len(faults)]
            one = _broken(fleet, data, folder, name, fault, chance, quiet[name])
            found.append(one)
            if (number + 1) % 20 == 0:
                say(f"  {number + 1} of {runs}")
    return {"runs": found, "quiet": {name: one.seconds for name, one in quiet.items()}}


@dataclass(frozen=True)
class Quiet:
    """A run that nothing happened to."""

    seconds: float
    arrays: dict[str, bytes]


def _quiet(fleet: "Fleet", data: DataSet, folder: Path, name: str, times: int) -> Quiet:
    job = _job(data, folder, name)
    each = []
    for _ in range(times):
        shutil.rmtree(job.output, ignore_errors=True)
        began = time.monotonic()
        subprocess.run(fleet.command(job.file), check=True, capture_output=True, timeout=HUNG)
        each.append(time.monotonic() - began)
    arrays = _arrays(job.output)
    shutil.rmtree(job.output)
    return Quiet(median(each), arrays)


@dataclass(frozen=True)
class Job:
    """A job file, and where its result goes."""

    file: Path
    output: Path


def _job(data: DataSet, folder: Path, name: str) -> Job:
    output = folder / "chaos.zarr"
    fields = JOBS[name] | {"matrix": data.A, "output": str(output), "no_progress_timeout": "60s"}
    if "rhs" in fields:
        fields["rhs"] = data.b
    file = folder / "chaos.yaml"
    file.write_text(json.dumps(fields))
    return Job(file, output)


def _broken(
    fleet: "Fleet", data: DataSet, folder: Path, name: str, fault: str, chance: random.Random, quiet: Quiet
) -> dict[str, Any]:
    """One run, broken at a random moment, and gone on with if it ended; what that took."""
    job, at = _job(data, folder, name), chance.uniform(0, quiet.seconds)
    what = f"{fault} at {at:.2f} s of {name}"
    began = time.monotonic()
    with subprocess.Popen(fleet.command(job.file), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(at)
        fleet.fault(fault, process, chance)
        said = _end(process, what)
    commands, mended = 1, 0.0
    if process.returncode != 0:
        assert "Traceback" not in said, said
        assert not job.output.exists() or fault == "driver", f"a result after exit code {process.returncode}: {what}"
        before = time.monotonic()
        fleet.mend()
        mended = time.monotonic() - before
        if not job.output.exists():  # a driver may die after the last thing that it had to do
            commands = 2
            subprocess.run(fleet.command(job.file), check=True, capture_output=True, timeout=HUNG)
    seconds = time.monotonic() - began - mended
    assert _arrays(job.output) == quiet.arrays, f"other bits after {what}"
    if commands == 1 and fault == "driver" and process.returncode != 0:
        subprocess.run([TALLGRASS, "clean", str(job.output)], check=True, capture_output=True)
    left = [entry for entry in os.listdir(folder) if entry.startswith(f".{job.output.name}")]
    assert left == [], f"left over after {what}: {left}"
    resumed = int(read_summary(str(job.output))["resumed_spans"])
    spans = read_summary(str(job.output))["plan"]["spans"]
    shutil.rmtree(job.output)
    fleet.mend()
    return {"job": name, "fault": fault, "at": round(at, 2), "commands": commands, "resumed_spans": resumed,
            "spans": spans, "seconds": round(seconds, 2), "lost": round(seconds - quiet.seconds, 2)}  # fmt: skip


def _end(process: "subprocess.Popen[bytes]", what: str) -> str:
    try:
        return process.communicate(timeout=HUNG)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"a run hangs: {what}") from None


def _arrays(url: Path) -> dict[str, bytes]:
    return {name: array[...].tobytes() for name, array in zarr.open_group(str(url), mode="r").arrays()}


@dataclass
class Fleet:
    """A scheduler and two workers, which are killed, cut off, and started again."""

    folder: Path
    host: str
    networks: list[str]
    """Of the workers; empty where they share ours."""
    port: int = 0
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, file: Path) -> list[str]:
        """What runs a job here."""
        cluster = self.folder / "chaos-cluster.yaml"
        cluster.write_text(f"kind: address\naddress: tcp://{self.host}:{self.port}\n")
        return [TALLGRASS, "run", str(file), "--cluster", str(cluster)]

    def mend(self) -> None:
        """Start again what is dead; with another scheduler, all of it."""
        dead = [name for name, process in self.processes.items() if process.poll() is not None]
        if not self.processes or "scheduler" in dead:
            self.end()
            self.port = _free_port(self.host)
            self._start("scheduler", [], "scheduler", "--host", self.host, "--port", str(self.port), "--no-dashboard")
            dead = ["worker0", "worker1"]
        for name in dead:
            inside = ["ip", "netns", "exec", self.networks[int(name[-1])]] if self.networks else []
            self._start(name, inside, "worker", f"tcp://{self.host}:{self.port}", "--nthreads", "1", "--no-dashboard",
                        "--memory-limit", "2GiB", "--local-directory", str(self.folder / "chaos-spill"))  # fmt: skip
        self._wait(f"tcp://{self.host}:{self.port}")

    def _start(self, name: str, inside: list[str], *words: str) -> None:
        with (self.folder / "chaos.log").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            command = [*inside, DASK, *words]
            # A worker whose nanny watches over it would be two processes to kill.
            command += ["--no-nanny"] if name.startswith("worker") else []
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _wait(self, address: str) -> None:
        from distributed import Client

        with Client(address, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)

    def fault(self, kind: str, driver: "subprocess.Popen[bytes]", chance: random.Random) -> None:
        """Let something happen now."""
        if kind == "network":
            link = f"{chance.choice(self.networks)}-l"
            _ip("link", "set", link, "down")
            time.sleep(chance.uniform(0.2, LONGEST_CUT))
            _ip("link", "set", link, "up")
            return
        process = driver if kind == "driver" else self.processes[
            "scheduler" if kind == "scheduler" else f"worker{chance.randrange(2)}"
        ]  # fmt: skip
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        if process is not driver:
            process.wait()

    def end(self) -> None:
        """No process stays."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.processes.clear()


@contextmanager
def _fleet(folder: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        stack.callback(_tidy, folder)
        host, networks = _networks(stack)
        fleet = Fleet(folder, host, networks)
        stack.callback(fleet.end)
        fleet.mend()
        yield fleet


def _tidy(folder: Path) -> None:
    for file in folder.glob("chaos*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def _networks(stack: ExitStack) -> tuple[str, list[str]]:
    """The address of the scheduler, and two networks that lead to it; none where we may not make them."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("ip", path=_PATH) is None:
        return "127.0.0.1", []
    tag, net = f"tgc{os.getpid() % 10_000}", f"10.78.{os.getpid() % 250}"
    _ip("link", "add", tag, "type", "bridge")
    stack.callback(_ip, "link", "del", tag)
    _ip("addr", "add", f"{net}.1/24", "dev", tag)
    _ip("link", "set", tag, "up")
    names = [f"{tag}-{number}" for number in range(2)]
    for number, name in enumerate(names):
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", f"{name}-l", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}-l", "master", tag, "up")
        for words in (("addr", "add", f"{net}.{number + 2}/24", "dev", "eth0"), ("link", "set", "eth0", "up"),
                      ("link", "set", "lo", "up")):  # fmt: skip
            _ip("-n", name, *words)
    return f"{net}.1", names


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, env=os.environ | {"PATH": _PATH})


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
