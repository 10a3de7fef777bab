"""Clusters: worker processes of this machine, and schedulers that run already. All of them are real here."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil
import pytest
from pydantic import ValidationError

from pipelines.errors import ClusterUnreachable, JobCancelled, PlanRefused, RunFailed, Stalled
from pipelines.failures import cluster_state, explain
from workers.clusters import Address, Local, Tls, dashboard_link, open_cluster, resources, resources_of, spawn
from workers.clusters.address import check_versions
from workers.clusters.local import OF_CLIENTS, SETTINGS, resources_of_local
from workers.clusters.machine import Machine, this_machine
from workers.clusters.spawn import ENVIRONMENT, SERVER, _Server

GIB = 2**30
ROOM = 300 * 2**20


@pytest.fixture(scope="module")
def small() -> Iterator[distributed.Client]:
    """Two small workers, opened by a user whose environment asks for seven threads."""
    before = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "7"
    try:
        with open_cluster(Local(processes=2, memory=ROOM)) as client:
            yield client
    finally:
        for name, value in zip(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), before, strict=True):
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def everywhere(client: distributed.Client, function: Callable[..., Any]) -> list[Any]:
    """What a function gives in each worker process; it has to be a local one, so that it travels by value."""
    return list(client.run(function).values())


# What a local cluster is


def test_workers_have_our_environment_whatever_the_user_has(small):
    for environment in everywhere(small, lambda: dict(os.environ)):
        assert {name: environment.get(name) for name in ENVIRONMENT} == ENVIRONMENT
        assert "MALLOC_TRIM_THRESHOLD_" not in environment


def test_numpy_and_scipy_use_one_blas_thread_in_each_worker(small):
    def threads() -> list[int]:
        import numpy as np  # noqa: F401
        import scipy.linalg  # noqa: F401
        from threadpoolctl import threadpool_info

        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    assert everywhere(small, threads) == [[1, 1], [1, 1]]


def test_the_environment_of_the_driver_stays_as_it_was(small):
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "GLIBC_TUNABLES" not in os.environ


def test_each_worker_has_its_memory_limit_and_our_settings(small):
    def limits(dask_worker: Any) -> Any:
        import dask

        manager = dask_worker.memory_manager
        keys = ("memory_limit", "memory_target_fraction", "memory_spill_fraction", "memory_pause_fraction")
        return [getattr(manager, key) for key in keys], dask.config.get("distributed.comm.timeouts.tcp")

    assert everywhere(small, limits) == [([ROOM, 0.6, False, False], "30s")] * 2


def test_resources_are_what_was_asked_for(small):
    offered = resources(small)
    assert (offered.workers, offered.threads, offered.memory_bytes) == (2, 1, ROOM)


def test_nothing_listens_to_other_machines(small):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"]
    assert len(listening) >= 6
    assert set(listening) == {"127.0.0.1"}


def test_a_server_that_was_stopped_is_not_started_again_by_a_nanny_that_is_late():
    """It would never end, and Python would wait for it at its own end: a run that was stopped once did that."""
    server = _Server()
    server.begin()
    process = psutil.Process(server._forkserver_pid)
    server.stop()
    assert not process.is_running()
    for late in (server.ensure_running, lambda: server.connect_to_new_process([])):
        with pytest.raises(RuntimeError, match="the server that forks workers was stopped"):
            late()
    assert server._forkserver_pid is None


def test_a_server_that_never_answers_is_a_letter_and_no_wait(monkeypatch):
    def refused(popen, process):
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(spawn._Popen, "_ask_server", refused)
    monkeypatch.setattr(spawn, "PAUSE", 0.0)
    says = r"The local cluster of 1 workers .* did not start: .*died 8 times: Connection refused. `tallgrass doctor`"
    with pytest.raises(RunFailed, match=says), open_cluster(Local(processes=1, memory=ROOM, dashboard=False)):
        raise AssertionError("it opened")


def test_the_server_that_workers_are_forked_from_has_a_single_thread(small):
    assert psutil.Process(SERVER._forkserver_pid).num_threads() == 1


def test_control_c_is_blocked_in_the_server_and_in_each_worker(small):
    def blocked(pid: int) -> bool:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return bool(int(lines["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)

    pids = [SERVER._forkserver_pid, *everywhere(small, os.getpid)]
    assert [blocked(pid) for pid in pids] == [True, True, True]
    assert not blocked(os.getpid())


def test_workers_have_imported_what_tasks_need_before_the_first_task(small):
    wanted = {"numpy", "scipy.linalg", "zarr", "pipelines.engine"}
    assert everywhere(small, lambda: wanted - set(sys.modules)) == [set(), set()]


def test_the_dashboard_appears_on_the_first_visit(small):
    link = dashboard_link(small)
    assert link is not None
    assert link.startswith("http://127.0.0.1:")
    for _ in range(2):
        with urllib.request.urlopen(link) as page:
            assert b"<title>Dask" in page.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(link.replace("status", "nonsense"))


def test_the_page_groups_draws_a_merge_whose_name_comes_before_its_parts(small):
    graph = {("zzz-merge-0123abcd", 0): (sum, [("aaa-0123abcd", i) for i in range(3)])}
    graph |= {("aaa-0123abcd", i): (abs, -i) for i in range(3)}
    future = small.get(graph, ("zzz-merge-0123abcd", 0), sync=False)
    assert future.result() == 3
    with urllib.request.urlopen(dashboard_link(small).replace("status", "groups")) as page:
        assert page.status == 200


def test_the_state_of_a_cluster_in_one_phrase(small):
    assert cluster_state(small).startswith("2 workers running, memory ")


def test_a_cluster_leaves_no_process_no_file_and_no_setting_behind(tmp_path):
    timeout = dask.config.get("distributed.scheduler.no-workers-timeout")
    with open_cluster(Local(processes=1, scratch=str(tmp_path), dashboard=False)) as client:
        [pid] = everywhere(client, os.getpid)
        assert dashboard_link(client) is None
        assert len(list(tmp_path.iterdir())) == 1
        client.submit(time.sleep, 60)
        time.sleep(0.2)
        start = time.perf_counter()
    assert time.perf_counter() - start < 3  # the task that sleeps is not waited for
    assert not psutil.pid_exists(pid)
    assert list(tmp_path.iterdir()) == []
    assert dask.config.get("distributed.scheduler.no-workers-timeout") == timeout


def test_a_small_job_gets_no_more_workers_than_tasks():
    with open_cluster(Local(dashboard=False), spans=1) as client:
        assert resources(client).workers == 1


def test_a_worker_that_is_killed_comes_back(small):
    def pids() -> set[int]:
        try:
            return set(everywhere(small, os.getpid))
        except OSError:  # it asked the one that was dying
            return set()

    killed = min(pids())
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(pids()) == 2 and killed not in pids(), 10)
    assert len(everywhere(small, os.getpid)) == 2


def test_a_taken_port_for_the_dashboard_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunFailed, match=f"Port {port} for the dashboard is taken. Set `dashboard: auto`"):
            open_cluster(Local(processes=1, dashboard=port)).__enter__()


def test_a_scratch_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"No scratch folder in .*file: .*Name another one as `scratch`"):
        open_cluster(Local(processes=1, scratch=str(tmp_path / "file"))).__enter__()


# What it does in the hands of a person


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, as a terminal starts it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with ExitStack() as stack:
                stack.callback(process.wait)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def word(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "it says nothing"
    return process.stdout.readline().strip()


def test_a_script_needs_no_main_guard_and_says_nothing_of_its_own(tmp_path):
    text = """
        from workers.clusters import Local, open_cluster

        print("starts")
        with open_cluster(Local(processes=2, dashboard=False)) as client:
            print(client.submit(sum, [1, 2]).result())
    """
    done = subprocess.run(script(tmp_path, text), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "starts\n3\n", "")


WAITING = """
    import os, time
    from workers.clusters import Local, open_cluster

    try:
        with open_cluster(Local(processes=2, dashboard=False, scratch={scratch!r})) as client:
            print(*client.run(os.getpid).values(), flush=True)
            client.submit(time.sleep, 60).result()
    except KeyboardInterrupt:
        raise SystemExit(130)
"""


def test_control_c_reaches_the_driver_only_and_nothing_is_printed(tmp_path):
    with running(script(tmp_path, WAITING.format(scratch=str(tmp_path)))) as process:
        pids = [int(pid) for pid in word(process).split()]
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process of the group
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "")
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_control_c_while_workers_start_prints_nothing_from_them(tmp_path):
    text = """
        print("starts", flush=True)
        try:
            from workers.clusters import Local, open_cluster
            with open_cluster(Local(processes=2, dashboard=False)):
                while True:
                    pass
        except KeyboardInterrupt:
            raise SystemExit(130)
    """
    with running(script(tmp_path, text)) as process:
        word(process)
        wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2, 10)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")


def test_when_the_driver_is_killed_its_workers_go_and_the_next_run_sweeps_up(tmp_path):
    with running(script(tmp_path, WAITING.format(scratch=str(tmp_path)))) as process:
        pids = [int(pid) for pid in word(process).split()]
        children = psutil.Process(process.pid).children(recursive=True)
        assert {child.pid for child in children} >= set(pids)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() for child in children), 10)
    assert len(list(tmp_path.glob("tallgrass-*"))) == 1
    with open_cluster(Local(processes=1, dashboard=False, scratch=str(tmp_path))):
        assert len(list(tmp_path.glob("tallgrass-*"))) == 1
    assert list(tmp_path.glob("tallgrass-*")) == []


# How many workers, how much memory


def offers(machine: Machine, spans: int | None = None, **fields: Any) -> tuple[int, int, int]:
    found = resources_of_local(Local(**fields), spans, machine)
    return found.workers, found.threads, found.memory_bytes


def test_by_default_there_is_one_worker_per_core_and_a_tenth_is_held_back():
    workers, threads, memory = offers(Machine(8, 64 * GIB, 40 * GIB))
    assert (workers, threads) == (8, 1)
    assert 35.5 * GIB < workers * memory <= 36 * GIB


def test_where_memory_is_short_there_are_fewer_workers():
    assert offers(Machine(64, 3 * GIB, 2 * GIB)) == (3, 1, 512 * 2**20)
    assert offers(Machine(4, GIB, 0)) == (1, 1, 256 * 2**20)


def test_threads_share_the_cores_and_a_worker_for_a_task_keeps_its_share_of_memory():
    assert offers(Machine(8, 64 * GIB, 40 * GIB), threads=4)[:2] == (2, 4)
    assert offers(Machine(8, 64 * GIB, 40 * GIB), spans=3) == (3, *offers(Machine(8, 64 * GIB, 40 * GIB))[1:])
    assert offers(Machine(8, 64 * GIB, 40 * GIB), spans=3, processes=5)[0] == 5


def test_more_memory_than_the_machine_has_is_refused_with_a_way_out():
    with pytest.raises(PlanRefused, match=r"2 workers of 3.0 GiB are 6.0 GiB; .* 4.0 GiB. Lower `memory`"):
        offers(Machine(2, 4 * GIB, 4 * GIB), processes=2, memory="3 GiB")


def test_this_machine_has_cores_and_memory():
    machine = this_machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.available_bytes <= machine.memory_bytes <= psutil.virtual_memory().total
    offered = resources_of(None)
    assert 1 <= offered.workers <= machine.cores


def files(root: Path, **contents: str) -> Path:
    """A small /proc and /sys; a double underscore stands for a slash."""
    memory = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"
    for name, text in {"proc__meminfo": memory, **contents}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_the_memory_is_the_machine_s(tmp_path):
    machine = this_machine(files(tmp_path))
    assert (machine.memory_bytes, machine.available_bytes) == (16 * GIB, 8 * GIB)


def test_limits_of_control_groups_version_2_count_also_those_above(tmp_path):
    group = {
        "proc__self__cgroup": "0::/user/job\n",
        "sys__fs__cgroup__user__memory.max": f"{4 * GIB}\n",
        "sys__fs__cgroup__user__memory.current": f"{3 * GIB}\n",
        "sys__fs__cgroup__user__memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys__fs__cgroup__user__job__memory.max": "max\n",
        "sys__fs__cgroup__user__job__cpu.max": "50000 100000\n",
    }
    assert this_machine(files(tmp_path, **group)) == Machine(1, 4 * GIB, 2 * GIB)


def test_limits_of_control_groups_version_1_count_also_in_a_container(tmp_path):
    group = {
        "proc__self__cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:pids:/\n",
        "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{GIB}\n",
        "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "-1\n",
        "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "100000\n",
    }
    machine = this_machine(files(tmp_path, **group))
    assert (machine.memory_bytes, machine.available_bytes) == (2 * GIB, GIB)
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us").write_text("60000\n")
    assert this_machine(tmp_path).cores == 1


# What a cluster file may say


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"memory": "50 MiB"}, "auto, or at least 256 MiB: an idle worker takes half of that"),
        ({"processes": True}, "a number"),
        ({"processes": 0}, "greater than or equal to 1"),
        ({"dashboard": 99999}, "less than or equal to 65535"),
        ({"proceses": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_local_cluster_that_cannot_be_is_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        Local(**fields)


TLS = Tls(ca="ca.pem", cert="cert.pem", key="key.pem")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"address": "10.0.0.1:8786"}, "tcp://host:port or tls://host:port, such as tcp://10.0.0.1:8786"),
        ({"address": "tcp://10.0.0.1"}, "tcp://host:port or tls://host:port"),
        ({"address": "tcp://host:99999"}, "tcp://host:port or tls://host:port"),
        ({"address": "tls://host:8786"}, "since the address begins with tls://"),
        ({"address": "tcp://host:8786", "tls": TLS}, "begins with tls://, since certificates are given"),
    ],
)
def test_an_address_that_cannot_be_is_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        Address(**fields)


def test_a_dashboard_can_be_a_port_or_none():
    assert Local(dashboard=8788).dashboard == 8788
    assert Local(dashboard=False).dashboard is False
    assert Address(address="tcp://[::1]:8786").connect_timeout == 30


# Why a cluster failed


def failure(client: distributed.Client, task: Callable[[], Any], **options: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the point is to explain it
        client.submit(task, key="factor-0123abcd", pure=False, **options).result(timeout=30)
    return explain(client, caught.value)


def test_a_task_that_needs_more_memory_than_the_limit_is_explained(small):
    def greedy() -> None:
        blocks = []
        while True:
            blocks.append(bytearray(b"x" * 2**24))
            time.sleep(0.02)

    error = failure(small, greedy)
    assert isinstance(error, RunFailed)
    assert 'The task "factor" was run by 4 workers, and each of them died' in str(error)
    assert "it took more than 95 % of the memory limit of 300 MiB. Give each worker more memory" in str(error)


@pytest.mark.parametrize(
    ("die", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "something outside killed it with SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "it crashed with signal 11, inside compiled code"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "something outside ended it with signal 15"),
        (lambda: os._exit(3), "the process exited with status 3"),
    ],
)
def test_a_task_whose_worker_dies_again_and_again_is_explained(die, says):
    with open_cluster(Local(processes=1, memory=ROOM, dashboard=False)) as client:
        error = failure(client, die)
    assert isinstance(error, RunFailed)
    assert f"was run by 4 workers, and each of them died: {says}" in str(error)


def test_an_error_of_our_own_stays_as_it_is(small):
    error = PlanRefused("no")
    assert explain(small, error) is error


def test_other_errors_of_tasks_are_explained(small):
    full, broken = explain(small, MemoryError("9 GiB")), explain(small, ZeroDivisionError("division by zero"))
    assert "A worker could not get the memory that it asked for (9 GiB). Give each worker more" in str(full)
    assert str(broken) == "A task failed with ZeroDivisionError: division by zero."
    stopped = explain(small, TimeoutError())
    assert isinstance(stopped, ClusterUnreachable)
    assert "stopped answering (TimeoutError): 2 workers running" in str(stopped)


def test_cancelled_tasks_are_explained(small):
    future = small.submit(time.sleep, 5, pure=False)
    future.cancel()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        future.result(timeout=10)
    error = explain(small, caught.value)
    assert isinstance(error, JobCancelled)
    assert "were cancelled at the scheduler" in str(error)


def test_a_cluster_without_workers_is_explained():
    settings = {"distributed.scheduler.no-workers-timeout": "300ms"}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        cluster = stack.enter_context(distributed.LocalCluster(n_workers=0, dashboard_address=":0"))
        client = stack.enter_context(distributed.Client(cluster))
        assert cluster_state(client) == "no workers connected"
        error = failure(client, lambda: 1)
    assert isinstance(error, Stalled)
    assert 'The task "factor" waited 0.30 s for a worker that could run it: no workers connected.' in str(error)


def test_paused_workers_are_said(small, monkeypatch):
    paused = [{"status": "paused", "metrics": {"memory": 95}, "memory_limit": 100}] * 2
    monkeypatch.setattr("pipelines.failures.workers_now", lambda client: paused)
    assert cluster_state(small) == "2 workers, all paused: memory 95 % used"


# Schedulers that run already


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Dask process of its own."""
    quiet = subprocess.DEVNULL
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, *command], stdout=quiet, stderr=quiet, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def scheduler(*options: str, scheme: str = "tcp") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    fixed = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    with started("-m", "distributed.cli.dask_scheduler", *fixed, *options) as process:
        yield f"{scheme}://127.0.0.1:{port}", process


def listens(address: str) -> None:
    """Returns once somebody listens there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens at {address}")


WORKER = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "1GiB")


@contextmanager
def worker(address: str, folder: Path, *options: str, before: str = "pass") -> Iterator[None]:
    code = f"{before}\nfrom distributed.cli.dask_worker import main\nmain()"
    with started("-c", code, address, *WORKER, "--local-directory", str(folder), *options):
        yield


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[str]:
    """The address of a scheduler with one worker."""
    with scheduler() as (address, _), worker(address, tmp_path_factory.mktemp("worker")):
        yield address


def test_a_running_cluster_is_used_and_goes_on_running(there):
    for _ in range(2):
        with open_cluster(Address(address=there)) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            offered = resources(client)
    assert (offered.workers, offered.threads, offered.memory_bytes) == (1, 1, GIB)
    assert resources_of(Address(address=there)) == offered


def test_a_client_of_a_running_cluster_decides_what_a_client_can(there):
    """The other settings are the scheduler's and the workers'; `doctor` looks at them."""
    with open_cluster(Address(address=there, connect_timeout="7s")):
        decided = {key: dask.config.get(key) for key in OF_CLIENTS}
    assert decided == OF_CLIENTS | {"distributed.comm.timeouts.connect": 7.0}
    assert decided["distributed.comm.retry.count"] == 3


def refusal(model: Address) -> str:
    with pytest.raises(ClusterUnreachable) as caught, open_cluster(model):
        pass
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_port_where_nothing_listens_is_said_after_the_timeout():
    start = time.monotonic()
    letter = refusal(Address(address=f"tcp://127.0.0.1:{free_port()}", connect_timeout="0.3s"))
    assert 0.3 <= time.monotonic() - start < 10
    assert re.search(r"did not answer within [\d.]+ s: nothing listens there", letter)
    assert "nothing listens there. Start the scheduler, or check host and port." in letter


def test_a_scheduler_that_starts_within_the_timeout_is_waited_for(tmp_path):
    with scheduler() as (address, _), worker(address, tmp_path), open_cluster(Address(address=address)) as client:
        assert resources(client).workers == 1


def test_a_name_that_no_machine_has_is_said():
    letter = refusal(Address(address="tcp://nowhere.invalid:8786", connect_timeout="0.2s"))
    assert 'no machine is known by the name "nowhere.invalid"' in letter


def test_a_listener_that_never_answers_is_said():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        letter = refusal(Address(address=f"tcp://127.0.0.1:{silent.getsockname()[1]}", connect_timeout="0.5s"))
    assert "something listens there but does not answer. Restart the scheduler, or check the port." in letter


def test_a_listener_that_hangs_up_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        letter = refusal(Address(address=f"tcp://127.0.0.1:{server.getsockname()[1]}", connect_timeout="0.3s"))
    assert "it closes the connection at once: no Dask scheduler" in letter


def hang_up(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_a_scheduler_without_workers_is_said():
    with scheduler() as (address, process):
        listens(address)
        letter = refusal(Address(address=address, connect_timeout="2s"))
        assert f"no worker joined it within 2.0 s. Start one: dask worker {address}" in letter
        assert process.poll() is None


@pytest.mark.parametrize(("name", "shown"), [("python", "Python"), ("zarr", "zarr"), ("tallgrass", "tallgrass")])
def test_other_versions_are_refused_with_both_versions_and_the_place(there, monkeypatch, name, shown):
    import distributed.versions as versions

    ours = versions.get_versions(packages=["tallgrass", "scipy", "zarr"])
    ours["packages"][name] = "3.11.0.final.0" if name == "python" else "0.0.1"
    monkeypatch.setattr(versions, "get_versions", lambda packages=None: ours)
    number = "3.11" if name == "python" else "0.0.1"
    letter = refusal(Address(address=there))
    place = "The scheduler" if name == "python" else "Worker tcp://127.0.0.1:"
    assert letter.startswith(place)
    assert f"this process has {shown} {number}".replace(f"{shown} ", "") in letter
    assert f"install {shown} {number} there" in letter


def test_workers_that_cannot_import_tallgrass_are_refused(tmp_path):
    hidden = "import sys; sys.modules['workers'] = None"
    with scheduler() as (address, _), worker(address, tmp_path, before=hidden):
        letter = refusal(Address(address=address))
    assert "The workers cannot import Tallgrass (" in letter
    assert "Install it on each of them." in letter


def test_a_scheduler_that_stops_answering_is_said(there):
    with open_cluster(Address(address=there)) as client:
        pid = client.run_on_scheduler(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ClusterUnreachable, match=r"does not say its versions within 0.50 s\. Restart it"):
                check_versions(client, 0.5)
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_scheduler_that_dies_during_the_run_is_explained(tmp_path):
    with ExitStack() as stack:
        address, process = stack.enter_context(scheduler())
        stack.enter_context(worker(address, tmp_path))
        client = stack.enter_context(open_cluster(Address(address=address)))
        future = client.submit(time.sleep, 60)
        process.kill()
        with pytest.raises(Exception) as caught:  # noqa: PT011
            future.result(timeout=20)
        error, state = explain(client, caught.value), cluster_state(client)
    assert isinstance(error, ClusterUnreachable)
    assert "The connection to the scheduler was lost while the job ran." in str(error)
    assert state == "the scheduler does not answer"


# The same with TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, Tls]:
    """Files of two authorities that do not know each other."""
    return {name: written(tmp_path_factory.mktemp(name)) for name in ("one", "other")}


def written(folder: Path) -> Tls:
    security = distributed.Security.temporary()
    contents = {"ca": security.tls_ca_file, "cert": security.tls_client_cert, "key": security.tls_client_key}
    for name, text in contents.items():
        (folder / f"{name}.pem").write_text(text)
    return Tls(**{name: str(folder / f"{name}.pem") for name in contents})


@pytest.fixture(scope="module")
def encrypted(certificates, tmp_path_factory) -> Iterator[str]:
    """The address of an encrypting scheduler with one worker."""
    one = certificates["one"]
    options = ("--tls-ca-file", one.ca, "--tls-cert", one.cert, "--tls-key", one.key)
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler("--protocol", "tls", *options, scheme="tls"))
        stack.enter_context(worker(address, tmp_path_factory.mktemp("tls-worker"), "--protocol", "tls", *options))
        yield address


def test_an_encrypting_cluster_is_used(encrypted, certificates):
    with open_cluster(Address(address=encrypted, tls=certificates["one"])) as client:
        assert client.submit(sum, [1, 2]).result() == 3


def test_an_unknown_authority_is_refused_at_once(encrypted, certificates):
    start = time.monotonic()
    letter = refusal(Address(address=encrypted, tls=certificates["other"]))
    assert "the scheduler's certificate is not signed by the authority in tls.ca" in letter
    assert time.monotonic() - start < 5


def test_a_certificate_that_the_scheduler_does_not_know_is_said(encrypted, certificates):
    one, other = certificates["one"], certificates["other"]
    letter = refusal(Address(address=encrypted, tls=Tls(ca=one.ca, cert=other.cert, key=other.key)))
    assert "the scheduler refuses our certificate (" in letter


def test_tcp_to_a_scheduler_that_encrypts_is_said(encrypted):
    letter = refusal(Address(address=encrypted.replace("tls", "tcp"), connect_timeout="1s"))
    assert "the scheduler encrypts. Write tls:// in the address, and name the certificates under tls." in letter


def test_tls_to_a_scheduler_that_does_not_encrypt_is_said(there, certificates):
    letter = refusal(Address(address=there.replace("tcp", "tls"), tls=certificates["one"]))
    assert "the scheduler does not encrypt. Write tcp:// in the address, and leave tls out." in letter


def test_certificate_files_that_are_missing_or_wrong_are_said(certificates, tmp_path):
    one, address = certificates["one"], "tls://127.0.0.1:1"
    letter = refusal(Address(address=address, tls=Tls(ca=one.ca, cert=one.cert, key="nothing.pem")))
    assert "tls.key: cannot read nothing.pem: No such file or directory. Name a PEM file." in letter
    letter = refusal(Address(address=address, tls=Tls(ca=one.ca, cert=one.cert, key=certificates["other"].key)))
    assert "do not make a certificate (" in letter


# The files in configs/


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("configs/clusters/*.yaml")), ids=lambda p: p.name
)
def test_every_example_is_a_cluster_file(path):
    from pipelines.load import load_file
    from workers.clusters import Cluster

    assert load_file(path, Cluster).kind == {"compose": "address", "demo": "local", "tls": "address"}.get(
        path.stem, path.stem
    )


def test_the_example_of_a_local_cluster_shows_every_default():
    from pipelines.load import load_file
    from workers.clusters import Cluster

    path = Path(__file__).parents[1] / "configs/clusters/local.yaml"
    assert load_file(path, Cluster) == Local()
    assert all(f"\n{name}:" in path.read_text() for name in Local.model_fields)


def test_models_of_clusters_import_nothing_heavy():
    code = "import sys, workers.clusters; print({'dask', 'distributed', 'numpy', 'zarr', 'asyncio'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "set()\n"


def test_each_setting_of_dask_is_one_that_dask_knows():
    unknown = object()
    assert [key for key in SETTINGS if dask.config.get(key, unknown) is unknown] == []
