"""The doctor: one finding per thing that can be wrong, each with its advice."""

import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import dask
import distributed
import numpy as np
import pytest

from pipelines import LeastSquares
from pipelines.errors import RunFailed
from pipelines.rates import NOMINAL, load_rates
from tests.conftest import stored
from tests.served import free_port
from workers import cluster_doctor, doctor
from workers.cluster_doctor import examine_cluster
from workers.clusters import Address, Local, open_cluster
from workers.clusters.machine import Machine
from workers.doctor import examine
from workers.findings import Finding, looked_at


@pytest.fixture(scope="module")
def client():
    with open_cluster(Local(processes=1, memory="400 MiB", dashboard=False)) as client:
        yield client


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_everything_is_looked_at(findings):
    assert list(findings) == [
        *("Python", "packages", "import names", "LAPACK", "cores and memory"),
        *("a worker", "scratch disk", "huge pages", "rates for plans"),
    ]


def test_a_finding_that_is_not_ok_comes_with_advice(findings):
    assert all(finding.detail for finding in findings.values())
    assert all(finding.advice for finding in findings.values() if not finding.ok)


def test_this_installation_is_well(findings):
    assert findings["Python"].ok
    assert findings["import names"].ok
    assert findings["LAPACK"].ok
    assert "zarr 3." in findings["packages"].detail


def test_a_worker_is_started_and_has_one_blas_thread(findings):
    assert findings["a worker"].ok
    assert "one BLAS thread per task, huge pages asked for" in findings["a worker"].detail


def test_memory_is_told_as_the_local_cluster_would_use_it(findings):
    assert "of memory" in findings["cores and memory"].detail
    assert "by default" in findings["cores and memory"].detail


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "obstore" else "1.0")
    finding = doctor._packages()
    assert not finding.ok
    assert "obstore missing" in finding.detail
    assert finding.advice == "Install obstore: pip install tallgrass"


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    assert not doctor._python().ok
    assert doctor._python().advice == "Use Python 3.12 or newer."


def test_another_package_with_our_import_names_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "packages_distributions", lambda: {"workers": ["tallgrass", "cloudflare-workers"]})
    finding = doctor._import_names()
    assert not finding.ok
    assert "from the distributions cloudflare-workers" in finding.detail
    assert "an environment of its own" in finding.advice


def test_a_scipy_with_another_signature_is_said(monkeypatch):
    monkeypatch.setattr("pipelines.kernels.pointers.releases_the_gil", lambda: False)
    assert not doctor._lapack().ok
    assert "right answers, slower in threads" in doctor._lapack().detail


def test_a_machine_that_is_full_is_said(monkeypatch):
    full = Machine(cores=2, memory_bytes=2**30, available_bytes=2**20)
    monkeypatch.setattr(doctor, "this_machine", lambda: full)
    monkeypatch.setattr("workers.clusters.local.this_machine", lambda: full)
    finding = doctor._machine()
    assert not finding.ok
    assert "2 cores, 1.0 GiB of memory, 1.0 MiB free; by default 1 worker with 256 MiB each" in finding.detail


def test_a_full_disk_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "SCRATCH_BYTES", 2**70)
    assert not doctor._scratch().ok
    assert "name another folder as `scratch`" in doctor._scratch().advice


def test_huge_pages_that_are_off_or_unknown_are_said(tmp_path):
    setting = tmp_path / "enabled"
    assert "not known on this system" in doctor._huge_pages(setting).detail
    setting.write_text("always madvise [never]\n")
    assert not doctor._huge_pages(setting).ok
    assert "the kernel offers them: never" in doctor._huge_pages(setting).detail


def test_rates_that_were_not_measured_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not doctor._rates().ok
    assert doctor._rates().detail == "nominal"
    assert "tallgrass doctor --calibrate" in doctor._rates().advice


def test_calibrating_keeps_the_rates(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pipelines.rates.measure_rates", lambda: NOMINAL)
    assert doctor.calibrate() == load_rates() == NOMINAL


def test_a_check_that_breaks_is_a_finding():
    def _broken() -> Finding:
        raise ZeroDivisionError("of a kind")

    def _letter() -> Finding:
        raise RunFailed("The local cluster did not start.")

    assert looked_at("odd thing", _broken) == Finding(
        "odd thing", False, "ZeroDivisionError: of a kind", "Install Tallgrass anew: make venv"
    )
    assert looked_at("a worker", _letter) == Finding("a worker", False, "The local cluster did not start.")


def test_a_cluster_is_examined(client):
    findings = {finding.name: finding for finding in examine_cluster(client)}
    assert all(finding.ok for finding in findings.values())
    assert findings["versions"].detail == "Python and packages are the same on client, scheduler and workers"
    assert findings["workers"].detail == "1 with 1 threads on 1 host, at least 400 MiB each"
    assert findings["clocks"].detail.startswith("at most ")
    assert findings["worker processes"].detail == "one BLAS thread per task, huge pages asked for"


def test_other_versions_on_a_cluster_are_a_finding(client, monkeypatch):
    monkeypatch.setattr("workers.clusters.address.PACKAGES", ("dask", "no-such-package"))
    import distributed.versions as versions

    ours = versions.get_versions(packages=["dask"])
    ours["packages"]["dask"] = "0.1"
    monkeypatch.setattr(versions, "get_versions", lambda packages=None: ours)
    [finding] = [finding for finding in examine_cluster(client) if finding.name == "versions"]
    assert not finding.ok
    assert "this process has 0.1" in finding.detail


def test_clocks_that_differ_are_a_finding(client, monkeypatch):
    monkeypatch.setattr(cluster_doctor, "time", Shifted())
    finding = cluster_doctor._clocks(client)
    assert not finding.ok
    assert finding.advice == "Set the clocks of the machines (NTP)."


class Shifted:
    """A clock that is ten minutes ahead of the workers'."""

    def time(self) -> float:
        return time.time() + 600


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A cluster whose worker has another working directory than we, and so another view of relative paths."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        stored(folder / "data" / "A", np.ones((4, 2)), (2, 2))
    monkeypatch.chdir(here)
    dask, port = str(Path(sys.executable).with_name("dask")), free_port()
    with ExitStack() as stack:
        for words in (("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
                      ("worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard")):  # fmt: skip
            log = stack.enter_context((tmp_path / words[0]).open("w"))
            process = subprocess.Popen([dask, *words], cwd=there, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield Address(address=f"tcp://127.0.0.1:{port}"), there


def job(**fields):
    return LeastSquares(**({"matrix": "data/A", "rhs": "data/A", "output": "results/x"} | fields))


def found_of(address, job):
    with open_cluster(address) as client:
        return {finding.name: finding for finding in examine_cluster(client, job)}


def test_workers_that_see_other_data_or_write_elsewhere_are_findings(elsewhere):
    address, there = elsewhere
    found = found_of(address, job())
    assert found["arrays"] == Finding("arrays", True, "matrix, rhs: seen alike from here and by 1 workers")
    assert not found["output"].ok
    assert found["output"].detail == "1 of 1 workers write to another results/x than this process"
    assert "a file system that all mount, or in an object store" in found["output"].advice
    stored(there / "data" / "B", np.ones((4, 2)), (4, 2))
    stored("data/B", np.ones((4, 2)), (2, 2))
    stored("data/C", np.ones((4, 2)), (2, 2))
    arrays = found_of(address, job(matrix="data/B"))["arrays"]
    assert arrays.detail.endswith("data/B is another array there: (4, 2) of float64 in chunks of (4, 2)")
    arrays = found_of(address, job(matrix="data/C"))["arrays"]
    assert re.search("tcp://.*: There is no Zarr array at data/C: nothing is there.", arrays.detail)
    assert "Give each worker the same view of the data" in arrays.advice


def test_what_is_wrong_here_already_is_said_first(client, tmp_path):
    found = {finding.name: finding for finding in examine_cluster(client, job(output=f"{tmp_path}/file/x"))}
    assert found["arrays"].detail.startswith("here: There is no Zarr array at data/A: nothing is there.")
    (tmp_path / "file").touch()
    found = {finding.name: finding for finding in examine_cluster(client, job(output=f"{tmp_path}/file/x"))}
    assert found["output"].detail.startswith("here: ")
    assert found["output"].detail.endswith("cannot be written: Not a directory.")


def test_a_cluster_that_sees_all_is_told_so_and_nothing_is_left(client, tmp_path):
    place = stored(tmp_path / "A", np.ones((4, 2)), (2, 2))
    written = job(matrix=place, rhs=place, output=f"{tmp_path}/results/x")
    found = {finding.name: finding for finding in examine_cluster(client, written)}
    assert found["arrays"].ok
    assert found["output"] == Finding("output", True, f"1 workers can write beside {tmp_path}/results/x")
    assert not (tmp_path / "results").exists()


def test_little_scratch_space_on_a_worker_is_a_finding(client, monkeypatch):
    monkeypatch.setattr(client, "run", lambda function: {"tcp://a": 2**40, "tcp://b": 2**30})
    finding = cluster_doctor._scratch(client)
    assert not finding.ok
    assert finding.detail == "at least 1.0 GiB free on each, too little on 1 of 2"
    assert "or start workers with another --local-directory" in finding.advice


def test_workers_that_were_started_otherwise_are_a_finding(client, monkeypatch):
    facts = {"blas_threads": 8, "huge_pages": False, "writes_empty_chunks": True}
    monkeypatch.setattr(client, "run", lambda function: {"tcp://a": facts, "tcp://b": facts})
    finding = cluster_doctor.worker_processes(client)
    assert not finding.ok
    assert finding.detail == "up to 8 BLAS threads per task, 2 workers without huge pages"
    assert "Start workers with OPENBLAS_NUM_THREADS=1" in finding.advice


def test_paused_and_unlimited_workers_are_findings(client, monkeypatch):
    one = {"status": "paused", "memory_limit": 2**30, "nthreads": 2, "host": "a"}
    for workers, says in [
        ([one, one], "2 with 4 threads on 1 host, at least 1.0 GiB each, 2 paused"),
        ([one | {"status": "running", "memory_limit": 0}], "1 with 2 threads on 1 host, no memory limit"),
        ([], "none connected"),
    ]:
        known = {"workers": dict(enumerate(workers))}
        monkeypatch.setattr(client, "scheduler_info", lambda n_workers, known=known: known)
        finding = cluster_doctor._workers(client)
        assert not finding.ok
        assert finding.detail == says
        assert finding.advice


def test_what_a_cluster_was_told_to_do_about_accidents_is_a_finding(client):
    finding = cluster_doctor.accidents(client)
    assert finding.ok
    assert finding.detail == (
        "frozen workers are given up after 1 min, tasks without any worker after 1 min, a task that kills its workers "
        "after 4 of them"
    )


def test_a_scheduler_that_never_gives_up_frozen_workers_is_a_finding():
    never = {"distributed.scheduler.worker-ttl": None, "distributed.scheduler.no-workers-timeout": None}
    with dask.config.set(never | {"distributed.worker.memory.pause": 0.8}):
        one = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        with distributed.LocalCluster(**one) as cluster, distributed.Client(cluster) as other:
            finding = cluster_doctor.accidents(other)
    assert not finding.ok
    assert finding.detail == (
        "frozen workers are given up never, tasks without any worker never, a task that kills its workers after 4 of "
        "them; 1 of the workers pause at 80 % of their memory"
    )
    assert finding.advice.startswith("Start the scheduler with DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=60s")
