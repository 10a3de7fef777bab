"""Clusters whose workers run elsewhere: machines reached by SSH, a batch system, a Dask Gateway. All of them real."""

import os
import pwd
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from pipelines import LeastSquares, open_result, run
from pipelines.errors import ClusterUnreachable, PlanRefused
from pipelines.plan import Resources
from tests.conftest import environment, written
from tests.machines import Machines, need, slurm, system
from tests.served import Served, free_port, store_problem, store_slow, wait_for
from workers import Client
from workers.clusters import Gateway, JobQueue, Ssh, dashboard_link, open_cluster, resources, resources_of
from workers.clusters.elsewhere import Adaptive, trusted
from workers.clusters.jobqueue import SYSTEMS, job_options
from workers.lifecycle import State

HOME = re.escape(pwd.getpwuid(os.getuid()).pw_dir)  # that of who logs in, whatever HOME says here
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and these services are Linux's")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A problem, its solution, and what bits a local cluster gives."""
    made = tmp_path_factory.mktemp("elsewhere")
    store_problem(made, 4000, 8)
    return made


@pytest.fixture(scope="module")
def expected(folder):
    return run(LeastSquares(matrix=f"{folder}/A", rhs=f"{folder}/b")).x


def solve(folder, client):
    return run(LeastSquares(matrix=f"{folder}/A", rhs=f"{folder}/b"), client).x


def refusal(model, error=ClusterUnreachable):
    """The letter with which opening a cluster ends."""
    with pytest.raises(error) as caught, open_cluster(model):
        pytest.fail("it opened")
    return str(caught.value)


def solved(served):
    """What a job that is given to a server finds."""
    with Client(served.url) as client:
        place = served.folder
        fields = {"kind": "least_squares", "matrix": f"{place}/A", "rhs": f"{place}/b", "output": f"{place}/out.zarr"}
        job = client.wait(client.submit(fields).id)
        assert job.state is State.SUCCEEDED, job.error
        return open_result(f"{place}/out.zarr").x


# What a cluster file may say


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        (Ssh, {"hosts": []}, "at least 1 item"),
        (Ssh, {"hosts": ["a", "a"]}, "each machine once; `processes` says how many workers it gets"),
        (Ssh, {"hosts": ["-oProxyCommand=reboot"]}, "names or addresses of machines, which '-oProxyCommand=reboot' is"),
        (Ssh, {"hosts": ["a"], "memory": "10 MB"}, "at least 256 MiB"),
        (JobQueue, {"system": "slurm", "jobs": 0, "memory": "4 GiB"}, "greater than or equal to 1"),
        (JobQueue, {"system": "slurm", "jobs": {"minimum": 3, "maximum": 2}, "memory": "1 GiB"}, "a minimum of at mo"),
        (JobQueue, {"system": "cron", "jobs": 1, "memory": "4 GiB"}, "'slurm', 'pbs', 'lsf' or 'sge'"),
        (JobQueue, {"system": "pbs", "jobs": 1, "memory": "1 GiB", "scratch": "/my disk"}, "a path without blanks"),
        (JobQueue, {"system": "pbs", "jobs": 1, "memory": "1 GiB", "python": "/a 'b'/c"}, "a path without blanks"),
        (JobQueue, {"system": "pbs", "jobs": 1, "memory": "1 GiB", "shared": "s3://b/c"}, "a path without blanks"),
        (Gateway, {"address": "tcp://x:8786"}, "an address that begins with https:// or http://"),
        (Gateway, {"address": "https://me:secret@x"}, "found a user, a password or a signature in the address"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(model, fields, says):
    with pytest.raises(ValidationError, match=says):
        model(**fields)


def test_a_package_that_only_this_kind_needs_is_named(monkeypatch):
    models = {
        "asyncssh": Ssh(hosts=["x"]), "dask_gateway": Gateway(address="http://x"),
        "dask_jobqueue": JobQueue(system="pbs", jobs=1, memory="1 GiB"),
    }  # fmt: skip
    for module, model in models.items():
        monkeypatch.setitem(sys.modules, module, None)
        says = rf"This cluster needs {module}, which is not installed .* pip install 'tallgrass\[{model.kind}\]'"
        assert re.search(says, refusal(model, PlanRefused))


def test_the_files_of_a_key_can_be_read_by_their_owner_only_and_go_with_the_cluster(tmp_path):
    with trusted(tmp_path / "shared") as security:
        key = Path(security.tls_worker_key)
        assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert key.parent.parent == tmp_path / "shared"
    assert not key.parent.exists()
    with subprocess.Popen(["true"]) as dead:
        left = key.parent.with_name(f"tallgrass-{os.uname().nodename}-{dead.pid}-x")
    left.mkdir()
    with trusted(tmp_path / "shared"), trusted(tmp_path / "shared"):
        assert not left.exists(), "a process that was killed left it"
        assert len(list((tmp_path / "shared").iterdir())) == 2
    (tmp_path / "file").touch()
    says = r"No folder can be made in .*/file/x: Not a directory. Name another one as `shared`."
    with pytest.raises(PlanRefused, match=says), trusted(tmp_path / "file" / "x"):
        raise AssertionError("it was made")


def test_an_interface_that_is_not_there_is_refused_with_those_that_are():
    model = Ssh(hosts=["node1"], interface="ib7")
    says = r"This machine has no network interface ib7; it has .*lo.*\. Name one of them as `interface` in the cluster"
    assert re.search(says, refusal(model, PlanRefused))


# SSH


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    need("ip", "sshd", "ssh-keygen")
    with Machines(tmp_path_factory.mktemp("machines"), 2).up() as up:
        yield up


def ssh(machines, **fields):
    usual = {"hosts": machines.names, "config": str(machines.config), "processes": 1, "memory": "512 MiB"}
    return Ssh(**(usual | {"dashboard": False, "start_timeout": "40s"} | fields))


def cluster_file(machines):
    return ssh(machines).model_dump_json()


def test_machines_work_together_and_give_the_bits_of_a_local_cluster(folder, expected, machines):
    with open_cluster(ssh(machines)) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        hosts = {address.split("//")[1].rpartition(":")[0] for address in workers}
        assert hosts == {machines.address(name) for name in machines.names}
        assert all(address.startswith("tls://") for address in workers)
        assert resources(client) == Resources(2, 1, 512 * 2**20)
        assert np.array_equal(solve(folder, client), expected)
        facts = client.run(lambda: (os.environ["OPENBLAS_NUM_THREADS"], os.getcwd()))
        assert set(facts.values()) == {("1", os.getcwd())}
    wait_for(lambda: not any(map(machines.working, machines.names)), "the end of all workers")


def test_nobody_without_the_key_of_the_cluster_can_connect(machines):
    from distributed import Client as DaskClient
    from distributed.security import Security

    with open_cluster(ssh(machines)) as client:
        address = client.scheduler.address
        for other in (Security.temporary(), Security(require_encryption=False)):
            where = address if other.require_encryption else address.replace("tls://", "tcp://")
            with pytest.raises(OSError, match=r"TLS certificate does not match|Timed out|closed|handshake"):
                DaskClient(where, security=other, timeout=2)


def test_a_machine_that_is_away_is_told_and_the_others_work(folder, expected, machines, capfd):
    with open_cluster(ssh(machines, hosts=["node1", "nowhere.invalid"])) as client:
        assert resources(client).workers == 1
        assert np.array_equal(solve(folder, client), expected)
    said = capfd.readouterr().err
    assert "nowhere.invalid: SSH cannot connect (" in said
    assert "The job goes on without nowhere.invalid, which is tried again meanwhile." in said


def test_where_no_machine_can_be_used_the_letter_says_why_for_each(machines, tmp_path):
    says = (
        r"None of the machines can be used.\n  no.invalid: SSH cannot connect .*\n  nowhere.invalid: SSH cannot connect"
    )
    assert re.search(says, refusal(ssh(machines, hosts=["nowhere.invalid", "no.invalid"])))
    system("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other")
    text = machines.config.read_text()
    for config, says in (
        (
            text.replace(f"{machines.folder}/user", f"{tmp_path}/other"),
            "SSH refuses us. Let `ssh HOST` work without a pass",
        ),
        (text.replace("known_hosts", "user.pub"), "SSH does not know its key. Connect once by hand"),
    ):
        (tmp_path / "config").write_text(config)
        assert says in refusal(ssh(machines, hosts=["node1"], config=str(tmp_path / "config")))
    for fields, says in (
        ({"python": "/no/such/python"}, r"node1: its workers ended \(.*/no/such/python.*\)"),
        ({"python": "/usr/bin/env"}, r"node1: its workers ended \("),
        ({"memory": "900 GiB"}, "node1: 1 workers of 900 GiB are 900 GiB; this machine lets us have"),
    ):
        assert re.search(says, refusal(ssh(machines, hosts=["node1"], **fields)))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"config": "/no/such"}, PlanRefused, "There is no file /no/such for SSH's configuration. Correct `config`"),
        pytest.param(
            {"interface": "lo", "start_timeout": "5s"},
            ClusterUnreachable,
            r"node1: its workers do not join yet. They have to be able to connect to tls://127.0.0.1:\d+\.",
            marks=pytest.mark.slow,
        ),
        ({"python": "~/no/python"}, ClusterUnreachable, rf"node1: its workers ended \(.*: {HOME}/no/python: No such"),
    ],
)  # fmt: skip
def test_what_keeps_workers_away_is_told(machines, fields, error, says):
    assert re.search(says, refusal(ssh(machines, hosts=["node1"], **fields), error))


@pytest.mark.slow
def test_a_machine_that_is_stuck_is_told_and_not_waited_for(machines, capfd, monkeypatch):
    monkeypatch.setattr("workers.clusters.ssh.OTHERS_SECONDS", 2.0)
    server = int((machines.folder / "node2.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        with open_cluster(ssh(machines)) as client:
            assert resources(client).workers == 1
    finally:
        os.kill(server, signal.SIGCONT)
    said = capfd.readouterr().err
    assert "node2: SSH has no answer yet. Check that it is up, and the firewalls on the way." in said
    assert "The job goes on without node2, which is tried again meanwhile." in said


@pytest.mark.slow
def test_a_machine_is_reached_through_another(machines, tmp_path):
    machines.inside("node2", "ip", "route", "add", "default", "via", machines.address("node0"))
    for how in ("ProxyJump node1", f"ProxyCommand ssh -F {machines.config} node1 -W %h:%p"):
        text = machines.config.read_text().replace("Host node2\n", f"Host node2\n  {how}\n")
        (tmp_path / "config").write_text(text)
        with open_cluster(ssh(machines, hosts=["node2"], config=str(tmp_path / "config"))) as client:
            assert resources(client).workers == 1


@pytest.mark.slow
def test_a_dashboard_that_is_not_wanted_is_not_shown(machines):
    with open_cluster(ssh(machines, hosts=["node1"])) as client:
        assert dashboard_link(client) is None
    with open_cluster(ssh(machines, hosts=["node1"], dashboard="auto")) as client:
        assert dashboard_link(client).startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_workers_that_were_killed_are_started_again(folder, expected, machines):
    with open_cluster(ssh(machines, hosts=["node2"])) as client:
        for pid in machines.working("node2"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait_for(lambda: len(client.scheduler_info()["workers"]) == 0, "their end")
        assert np.array_equal(solve(folder, client), expected)


@pytest.mark.slow
def test_when_the_command_is_killed_nothing_stays_on_the_machines(machines, tmp_path):
    store_slow(tmp_path / "A")
    written(tmp_path, {"kind": "svd", "matrix": "A", "output": "out"})
    (tmp_path / "cluster.yaml").write_text(cluster_file(machines))
    command = [sys.executable, "-m", "workers.cli", "run", "job.yaml", "--cluster", "cluster.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if " in " in line and "tasks" in line:
                break
        assert all(map(machines.working, machines.names))
        process.kill()
    wait_for(lambda: not any(map(machines.working, machines.names)), "the end of all workers")


@pytest.mark.slow  # Dask notices after half a minute that nobody answers
def test_a_machine_whose_cable_is_pulled_loses_its_work_and_comes_back(machines, tmp_path):
    store_slow(tmp_path / "A")
    job = LeastSquares(matrix=f"{tmp_path}/A", rhs={"url": f"{tmp_path}/A", "columns": [0]})
    with open_cluster(ssh(machines)) as client:
        machines.cut("node2")
        try:
            began = time.monotonic()
            x = run(job, client).x
            assert time.monotonic() - began > 5, "it finished before the cable was missed"
            np.testing.assert_allclose(x, np.eye(120)[:, :1], atol=1e-9)
        finally:
            machines.cut("node2", "up")
        wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2, "the machine's return")


def test_a_server_runs_its_jobs_there(machines, tmp_path):
    store_problem(tmp_path, 4000, 8)
    with Served(tmp_path, cluster=cluster_file(machines)) as served, Client(served.url) as client:
        plan = {"kind": "svd", "matrix": f"{tmp_path}/A", "output": f"{tmp_path}/plan"}
        with pytest.raises(
            ClusterUnreachable, match="The server's cluster does not run yet, so no plan can be made for"
        ):
            client.plan(plan)
        np.testing.assert_allclose(solved(served), np.load(tmp_path / "x.npy"), rtol=1e-10)
        assert client.server().clusters[0].address.startswith("tls://")
        count = [len(machines.working(name)) for name in machines.names]
        assert client.plan(plan)["memory_bytes_per_worker"] == 512 * 2**20
        assert [len(machines.working(name)) for name in machines.names] == count, "planning started others"
    wait_for(lambda: not any(map(machines.working, machines.names)), "the end of all workers")


# Batch systems


def script(system, folder, **fields):
    """What would be submitted, without the lines that set the environment."""
    import dask_jobqueue
    from distributed.security import Security

    shared = {"shared": str(folder), "python": "/opt/python", "memory": "2 GiB", "jobs": 1, "walltime": "90m"}
    model = JobQueue(**({"system": system} | shared | fields))
    security = Security(require_encryption=True, tls_ca_file="/ca", tls_worker_cert="/cert", tls_worker_key="/key")
    kind = getattr(dask_jobqueue, SYSTEMS[system].kind).job_cls
    job = kind("tls://10.0.0.1:8786", name="0", security=security, protocol="tls://", **job_options(model))
    lines = job.job_script().replace(str(folder), "FOLDER").replace(os.getcwd(), "HERE").splitlines()
    assert "export OPENBLAS_NUM_THREADS=1" in lines
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE=0.95" in lines
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("export ")]


WORKER = (
    "/opt/python -m distributed.cli.dask_worker tls://10.0.0.1:8786 --name 0 --nthreads {threads}"
    " --memory-limit 2.00GiB{processes} --nanny --death-timeout 60{scratch} --no-dashboard{interface} --protocol tls://"
    " --tls-ca-file /ca --tls-cert /cert --tls-key /key"
)


def worker(threads=1, processes=1, scratch="", interface=""):
    return WORKER.format(
        threads=threads,
        processes=f" --nworkers {processes}" if processes > 1 else "",
        scratch=f" --local-directory {scratch}" if scratch else "",
        interface=f" --interface {interface}" if interface else "",
    )


def test_a_job_for_slurm_is_what_slurm_expects(tmp_path):
    fields = {
        "processes": 8, "threads": 2, "queue": "compute", "account": "p42", "directives": ["--constraint=ib"],
        "prologue": ["module load python"], "scratch": "$TMPDIR", "interface": "ib0",
    }  # fmt: skip
    assert script("slurm", tmp_path, **fields) == [
        "#!/usr/bin/env bash",
        "#SBATCH -J tallgrass",
        "#SBATCH -e FOLDER/logs/tallgrass-%J.err",
        "#SBATCH -o FOLDER/logs/tallgrass-%J.out",
        "#SBATCH -p compute",
        "#SBATCH -A p42",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=16640M",
        "#SBATCH -t 01:30:00",
        "#SBATCH --constraint=ib",
        "cd HERE",
        "module load python",
        worker(threads=2, processes=8, scratch="$TMPDIR", interface="ib0"),
    ]


def test_a_job_for_pbs_lsf_and_sge_is_what_these_expect(tmp_path):
    fields = {"queue": "long", "account": "p42", "threads": 2}
    assert script("pbs", tmp_path, **fields) == [
        "#!/usr/bin/env bash",
        "#PBS -N tallgrass",
        "#PBS -q long",
        "#PBS -A p42",
        "#PBS -l select=1:ncpus=2:mem=2304MB",
        "#PBS -l walltime=01:30:00",
        "#PBS -e FOLDER/logs/",
        "#PBS -o FOLDER/logs/",
        "cd HERE",
        worker(threads=2),
    ]
    assert script("lsf", tmp_path, **fields) == [
        "#!/usr/bin/env bash",
        "#BSUB -J tallgrass",
        "#BSUB -e FOLDER/logs/0-%J.err",
        "#BSUB -o FOLDER/logs/0-%J.out",
        "#BSUB -q long",
        '#BSUB -P "p42"',
        "#BSUB -n 2",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 2415920",
        "#BSUB -W 01:30",
        "cd HERE",
        worker(threads=2),
    ]
    assert script("sge", tmp_path, **fields) == [
        "#!/usr/bin/env bash",
        "#$ -N tallgrass",
        "#$ -q long",
        "#$ -P p42",
        "#$ -l h_vmem=1152M",
        "#$ -l h_rt=01:30:00",
        "#$ -e FOLDER/logs/",
        "#$ -o FOLDER/logs/",
        "#$ -cwd",
        "#$ -j y",
        "cd HERE",
        worker(threads=2),
    ]


def test_a_plan_counts_with_all_the_batch_jobs_that_may_run():
    model = JobQueue(system="slurm", jobs=Adaptive(maximum=20), processes=8, threads=2, memory="4 GiB")
    assert resources_of(model) == Resources(160, 2, 4 * 2**30)


def test_where_no_job_can_be_submitted_the_command_is_named(tmp_path):
    says = r"There is no `bsub` on this machine's PATH, so no job can be submitted to lsf"
    model = JobQueue(system="lsf", jobs=1, memory="1 GiB", shared=str(tmp_path))
    assert re.search(says, refusal(model, PlanRefused))


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    need("munged", "slurmctld", "slurmd", "sbatch")
    with slurm(tmp_path_factory.mktemp("slurm")):
        yield


def batch(tmp_path, **fields):
    usual = {"system": "slurm", "jobs": 2, "memory": "400 MiB", "shared": str(tmp_path / "shared"), "dashboard": False}
    return JobQueue(**(usual | {"start_timeout": "60s", "walltime": "10m"} | fields))


def waiting_or_running():
    return system("squeue", "--noheader", "--format=%i").split()


def test_slurm_runs_the_workers_and_its_jobs_end_with_the_cluster(folder, expected, queue, tmp_path):
    with open_cluster(batch(tmp_path, processes=2, memory="300 MiB")) as client:
        wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 4, "two workers of each of two jobs")
        assert len(waiting_or_running()) == 2
        assert np.array_equal(solve(folder, client), expected)
    wait_for(lambda: not waiting_or_running(), "the end of the batch jobs")
    assert [place.name for place in (tmp_path / "shared").iterdir()] == ["logs"]


@pytest.mark.slow  # it is missed after four looks
def test_a_batch_job_that_ends_is_submitted_again(folder, expected, queue, tmp_path):
    with open_cluster(batch(tmp_path, jobs=1)) as client:
        (first,) = waiting_or_running()
        system("scancel", first)
        wait_for(lambda: [job for job in waiting_or_running() if job != first], "another batch job")
        assert np.array_equal(solve(folder, client), expected)


@pytest.mark.slow
def test_as_many_batch_jobs_run_as_there_is_work_for(queue, tmp_path):
    with open_cluster(batch(tmp_path, jobs={"maximum": 3})) as client:
        assert len(waiting_or_running()) == 1
        futures = client.map(lambda _: time.sleep(3), range(30), pure=False)
        wait_for(lambda: len(waiting_or_running()) == 3, "three batch jobs")
        client.cancel(futures)
        wait_for(lambda: len(waiting_or_running()) == 1, "one batch job")


def test_what_slurm_refuses_is_said_in_its_words(queue, tmp_path):
    says = r"slurm refuses the job: .*invalid partition.* Change queue, account, wall"
    assert re.search(says, refusal(batch(tmp_path, queue="nowhere")))


def test_batch_jobs_that_do_not_start_are_told_after_the_wait(queue, tmp_path):
    says = r"No worker joined the scheduler at tls://.* within 2.0 s. The batch jobs may"
    assert re.search(says, refusal(batch(tmp_path, python="/usr/bin/false", start_timeout="2s")))
    wait_for(lambda: not waiting_or_running(), "the end of the batch jobs")


@pytest.mark.slow
def test_an_interrupt_ends_the_command_and_its_batch_jobs_with_one_line(queue, tmp_path):
    store_slow(tmp_path / "A")
    written(tmp_path, {"kind": "svd", "matrix": "A", "output": "out"})
    (tmp_path / "cluster.yaml").write_text(batch(tmp_path, directives=["--begin=now+1hour"]).model_dump_json())
    command = [sys.executable, "-m", "workers.cli", "run", "job.yaml", "--cluster", "cluster.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for(waiting_or_running, "a batch job")
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read().strip()) == (130, "Interrupted. No result was written.")
    assert not waiting_or_running()
    assert [place.name for place in (tmp_path / "shared").iterdir()] == ["logs"]


@pytest.mark.slow
def test_a_server_that_ends_while_its_batch_jobs_wait_leaves_none_behind(queue, tmp_path):
    model = batch(tmp_path, jobs=1, directives=["--begin=now+1hour"], start_timeout="1h")
    with Served(tmp_path, cluster=model.model_dump_json()) as served:
        host = served.host
        (first,) = wait_for(waiting_or_running, "a batch job")
        served.agent.kill()
        wait_for(lambda: not host.is_running(), "the end of the cluster without its agent")
        wait_for(lambda: waiting_or_running() not in ([], [first]), "the batch job of the next one")
    assert not waiting_or_running()
    assert [place.name for place in (tmp_path / "shared").iterdir()] == ["logs"]


# A Dask Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The address of one that starts its clusters on this machine."""
    made, port, private = tmp_path_factory.mktemp("gateway"), free_port(), free_port()
    dask = str(Path(sys.executable).with_name("dask"))
    (made / "config.py").write_text(f"""
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.DaskGateway.address = "127.0.0.1:{private}"
c.Proxy.address = "127.0.0.1:{port}"
c.UnsafeLocalBackend.clusters_directory = "{made}/clusters"
c.ClusterConfig.worker_memory = "400 M"
c.ClusterConfig.scheduler_cmd = ["{dask}", "scheduler"]
c.ClusterConfig.worker_cmd = ["{dask}", "worker"]
""")
    command = [Path(sys.executable).with_name("dask-gateway-server"), "-f", made / "config.py"]
    with (made / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=made) as server:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(address), "an answer of the gateway")
        yield address
        server.terminate()


def _answers(address):
    try:
        return httpx.get(f"{address}/api/health").is_success
    except httpx.HTTPError:
        return False


def test_a_gateway_starts_a_cluster_with_adaptive_limits_and_ends_it(folder, expected, gateway):
    from dask_gateway import Gateway as DaskGateway

    with open_cluster(Gateway(address=gateway, workers={"minimum": 1, "maximum": 2}, start_timeout="60s")) as client:
        assert np.array_equal(solve(folder, client), expected)
        with DaskGateway(gateway) as asked:
            assert len(asked.list_clusters()) == 1
    with DaskGateway(gateway) as asked:
        wait_for(lambda: not asked.list_clusters(), "the end of the cluster")


def test_an_interrupt_leaves_no_cluster_to_the_gateway(gateway, folder, tmp_path):
    from dask_gateway import Gateway as DaskGateway

    written(tmp_path, {"kind": "svd", "matrix": f"{folder}/A", "output": "out"})
    (tmp_path / "cluster.yaml").write_text(f"kind: gateway\naddress: {gateway}\nworkers: 1\n")
    command = [sys.executable, "-m", "workers.cli", "run", "job.yaml", "--cluster", "cluster.yaml"]
    with (
        DaskGateway(gateway) as asked,
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process,
    ):
        wait_for(asked.list_clusters, "a cluster")
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read().strip()) == (130, "Interrupted. No result was written.")
        wait_for(lambda: not asked.list_clusters(), "the end of the cluster")


@pytest.mark.slow
def test_a_cluster_of_a_gateway_is_used_by_its_name_and_goes_on(folder, expected, gateway):
    from dask_gateway import Gateway as DaskGateway

    with DaskGateway(gateway) as asked, asked.new_cluster() as cluster:
        cluster.scale(1)
        with open_cluster(Gateway(address=gateway, cluster=cluster.name, start_timeout="60s")) as client:
            assert np.array_equal(solve(folder, client), expected)
        assert [report.name for report in asked.list_clusters()] == [cluster.name]


@pytest.mark.slow
def test_a_server_runs_its_jobs_on_a_cluster_of_a_gateway(gateway, tmp_path):
    store_problem(tmp_path, 4000, 8)
    with Served(tmp_path, cluster=f"kind: gateway\naddress: {gateway}\nworkers: 1\n") as served:
        np.testing.assert_allclose(solved(served), np.load(tmp_path / "x.npy"), rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"address": "http://127.0.0.1:1"}, "The Dask Gateway at http://127.0.0.1:1 gives us no cluster: .*Connect"),
        ({"cluster": "nobody"}, "gives us no cluster: .*nobody.* Check its address, options and our login."),
        ({"options": {"colour": "red"}}, "gives us no cluster: .*colour"),
    ],
)
def test_a_gateway_that_gives_no_cluster_is_quoted(gateway, fields, says):
    assert re.search(says, refusal(Gateway(**({"address": gateway} | fields))))
