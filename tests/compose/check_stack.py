"""docker-compose.yml as the README tells it: brought up, used from outside, killed part by part, taken down.

`make test-compose` runs this; ordinary tests do not collect it, because it needs root and takes minutes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from ruamel.yaml import YAML

from pipelines.errors import ClusterUnreachable, TallgrassError
from pipelines.result import open_result
from tests.compose.engine import OURS, compose_command, engine, make_base, needed, pulled, run, with_commands
from tests.conftest import ROOT, stored
from tests.served import free_port, store_problem, wait_for
from workers import Client, certificates
from workers.cluster_doctor import examine_cluster
from workers.clusters import Address, Tls, open_cluster
from workers.lifecycle import State

pytestmark = pytest.mark.timeout(1200)
README = (ROOT / "README.md").read_text()
COMMANDS = re.search(r"```sh\n(make secrets.*?)```", README, flags=re.DOTALL)[1]
SERVICES = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
PORTS = {"TALLGRASS_PORT": 8764, "TALLGRASS_SCHEDULER_PORT": 8786, "TALLGRASS_DASHBOARD_PORT": 8787,
         "TALLGRASS_STORE_PORT": 8333}  # fmt: skip
WORKERS, IMAGE = 2, "tallgrass-test"
USER = "10001"


class Stack:
    """A copy of the project in a folder, and its services."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = compose_command()
        self.ports = {port: free_port() for port in PORTS.values()}
        self.secrets = folder / "secrets"

    def compose(self, *words: str) -> str:
        return run(*self.words, *words, cwd=self.folder)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Commands of the README; the port is another one, and Compose the one that there is."""
        script = script.replace("docker compose", " ".join(self.words)).replace("8764", str(self.ports[8764]))
        return subprocess.run(["bash", "-euc", script], cwd=self.folder, capture_output=True, text=True)

    def containers(self, service: str) -> list[dict]:
        """What `docker inspect` says of each container of a service."""
        found = self.compose("ps", "-q", service).split()
        return json.loads(run("docker", "inspect", *found)) if found else []

    def everything(self) -> list[dict]:
        return [container for service in SERVICES for container in self.containers(service)]

    def well(self) -> bool:
        """Whether all are there and healthy."""
        found = [container["State"].get("Health", {}).get("Status") for container in self.everything()]
        return found == ["healthy"] * (len(SERVICES) + WORKERS - 1)

    def kill(self, service: str) -> None:
        """End a container's first process, and all with it, as the kernel does when memory is short."""
        os.kill(self.containers(service)[0]["State"]["Pid"], signal.SIGKILL)

    def client(self) -> Client:
        token = (self.secrets / "token").read_text()
        return Client(f"https://localhost:{self.ports[8764]}", token, ca=str(self.secrets / "ca.pem"))

    def tls(self, folder: Path | None = None) -> Tls:
        place = folder or self.secrets
        return Tls(ca=str(place / "ca.pem"), cert=str(place / "client.pem"), key=str(place / "client-key.pem"))

    def scheduler(self, tls: Tls | None, scheme: str = "tls") -> Address:
        return Address(address=f"{scheme}://127.0.0.1:{self.ports[8786]}", tls=tls, connect_timeout="5s")


@pytest.fixture(scope="module")
def stack(request):
    """The services, as the README starts them, on images that are pulled or made here."""
    needed("docker")
    folder = Path("/var/tmp") / f"tallgrass-compose-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)  # containers come here as another user
    with ExitStack() as last, pytest.MonkeyPatch.context() as environment:
        last.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "engine").mkdir()
        ours = last.enter_context(engine(folder / "engine"))
        made = Stack(_project(folder / "tallgrass-test"))
        for name, value in _variables(folder, made, ours).items():
            environment.setenv(name, value)
        last.callback(_down, made, request.session)
        done = made.shell(COMMANDS.partition("export ")[0])
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(made.well, "health of all containers")
        yield made


def _project(folder: Path) -> Path:
    """What git knows of, the commands of this environment, and data to work on."""
    for name in run(
        "git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    with_commands(folder)
    store_problem(folder / "data" / "flights.zarr", 20_000, 8)
    store_problem(folder / "data" / "large", 400_000, 100)
    return folder


def _variables(folder: Path, made: Stack, ours: bool) -> dict[str, str]:
    """Ports that are free, and where images come from."""
    python = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    theirs = {name: SERVICES[name]["image"] for name in ("database", "store")}
    stand_ins = [f"tests/compose/{name}.yml" for name, image in theirs.items() if not pulled(image)]
    return {
        "COMPOSE_FILE": ":".join(["docker-compose.yml", *stand_ins]),
        "PYTHON_IMAGE": python if pulled(python) and not ours else make_base(folder),
        "TALLGRASS_IMAGE": IMAGE,
        "PATH": f"{made.folder}/.venv/bin:{os.environ['PATH']}",
        **{name: str(made.ports[port]) for name, port in PORTS.items()},
    }


def _down(made: Stack, session: pytest.Session) -> None:
    if session.testsfailed or sys.exception():
        session.config.pluginmanager.get_plugin("terminalreporter").write(
            made.compose("logs", "--no-color", "--tail=100")
        )
    subprocess.run([*made.words, "down", "--volumes", "--timeout=10"], cwd=made.folder, capture_output=True)
    images = (IMAGE, "tallgrass-test-database", "tallgrass-test-store", OURS)
    subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True)


def test_a_job_submitted_from_outside_is_right(stack):
    done = stack.shell(COMMANDS.partition("\n")[2].partition("\n")[2])  # all but what the fixture has done
    assert done.returncode == 0, done.stderr
    result = open_result(str(stack.folder / "results" / "flights.zarr"))
    assert np.allclose(result.x, np.load(stack.folder / "data" / "flights.zarr" / "x.npy"), rtol=1e-9)
    assert (stack.folder / "results" / "flights.zarr").stat().st_uid == int(USER)


def test_the_cluster_is_as_doctor_wants_it(stack):
    with open_cluster(stack.scheduler(stack.tls())) as client:
        findings = {finding.name: finding for finding in examine_cluster(client)}
    assert {name: finding.detail for name, finding in findings.items() if not finding.ok} == {}
    assert findings["workers"].detail.startswith(f"{WORKERS} with {WORKERS} threads on")


def test_strangers_are_refused_by_every_port(stack, tmp_path):
    certificates.make(tmp_path / "other", [], 30)
    other = stack.tls(tmp_path / "other")
    for tls, scheme in ((other, "tls"), (Tls(ca=stack.tls().ca, cert=other.cert, key=other.key), "tls"), (None, "tcp")):
        with pytest.raises(ClusterUnreachable), open_cluster(stack.scheduler(tls, scheme)):
            pass
    url, ca = f"https://localhost:{stack.ports[8764]}", str(stack.secrets / "ca.pem")
    for place, known, says in (
        (url, ca, "token"),
        (url, None, "is signed by no authority that this client knows"),
        (url.replace("https", "http"), None, r"encrypts\. Write https://"),
    ):
        with Client(place, "tg_x", ca=known) as client, pytest.raises(TallgrassError, match=says):
            client.server()


def test_every_process_is_nobody_in_particular_with_nothing_but_its_own_secrets(stack):
    described = json.dumps(stack.everything())
    for file in stack.secrets.iterdir():
        assert file.suffix == ".pem" or file.name == "store.json" or file.read_text().strip() not in described
    history = run("docker", "history", "--no-trunc", IMAGE)
    assert (stack.secrets / "database-password").read_text().strip() not in history
    for container in stack.everything():
        users = {line.split()[1] for line in run("docker", "top", container["Id"], "-eo", "pid,uid").splitlines()[1:]}
        assert users == {USER}
        assert container["HostConfig"]["Memory"] > 0
    listed = run("docker", "exec", stack.containers("worker")[0]["Id"], "ls", "/run/secrets").split()
    assert listed == ["ca", "store-key", "store-key-id", "worker", "worker-key"]
    worker = stack.containers("worker")[0]["Id"]
    reach = "import socket; socket.create_connection(('database', 5432), 3)"
    assert subprocess.run(["docker", "exec", worker, "python", "-c", reach], capture_output=True).returncode == 1


def test_the_jobs_page_is_on_the_dashboard(stack):
    page = httpx.get(f"http://127.0.0.1:{stack.ports[8787]}/jobs")
    assert page.status_code == 200
    assert '<a href="jobs">Jobs</a>' in page.text
    with stack.client() as client:
        job = next(client.jobs([State.SUCCEEDED]))
        assert job.dashboard == f"http://127.0.0.1:{stack.ports[8787]}/jobs?job={job.id}"


def test_a_job_reads_and_writes_the_object_store(stack, monkeypatch):
    url = f"http://127.0.0.1:{stack.ports[8333]}"
    with suppress(httpx.HTTPError):
        httpx.put(f"{url}/tallgrass")  # where the store makes no buckets by itself
    for name, file in (("AWS_ACCESS_KEY_ID", "store-key-id"), ("AWS_SECRET_ACCESS_KEY", "store-key")):
        monkeypatch.setenv(name, (stack.secrets / file).read_text().strip())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    A = np.random.default_rng(3).standard_normal((4000, 6))
    put(A, "s3://tallgrass/A")
    with stack.client() as client:
        job = client.submit({"kind": "svd", "matrix": "s3://tallgrass/A", "output": "s3://tallgrass/svd.zarr"})
        found = client.wait(job.id)
        assert found.state is State.SUCCEEDED, found.error
        assert np.allclose(client.result(job.id)["s"], np.linalg.svd(A, compute_uv=False))


def put(array: np.ndarray, url: str) -> None:
    import obstore
    from zarr.storage import ObjectStore

    stored(ObjectStore(obstore.store.from_url(url, client_options={"allow_http": True})), array, (500, array.shape[1]))


def test_whatever_is_killed_every_job_ends_right_and_none_is_lost(stack):
    truth = np.load(stack.folder / "data" / "large" / "x.npy")
    large = stack.folder / "data" / "large"
    with stack.client() as client:
        before = len(list(client.jobs()))
        ids = [
            client.submit({
                "kind": "least_squares", "matrix": f"{large}/A", "rhs": f"{large}/b",
                "output": f"{stack.folder}/results/killed-{number}.zarr",
            }).id
            for number in range(24)
        ]  # fmt: skip
        for service in ("worker", "scheduler", "server", "database", "scheduler", "worker"):
            wait_for(lambda: states(client, ids).get(State.RUNNING), f"a running job, before {service} is killed")
            starts = stack.containers(service)[0]["RestartCount"]
            stack.kill(service)
            wait_for(lambda: stack.containers(service)[0]["RestartCount"] > starts, f"{service} again")  # noqa: B023
            time.sleep(2)
        wait_for(lambda: states(client, ids).get(State.SUCCEEDED) == len(ids), "the end of all jobs")
        found = [client.job(job) for job in ids]
        assert [job.error for job in found if job.state is not State.SUCCEEDED] == []
        assert len(list(client.jobs())) == before + len(ids)
    for job in found:
        assert np.allclose(open_result(job.output).x, truth, rtol=1e-9)
    assert max(job.attempt for job in found) > 1
    wait_for(stack.well, "health of all containers")


def states(client: Client, ids: list[str]) -> dict[State, int]:
    """How many of these jobs are in each state; none while nobody answers."""
    with suppress(TallgrassError):
        found = [client.job(job).state for job in ids]
        return {state: found.count(state) for state in found}
    return {}


def test_what_was_accepted_outlives_the_containers_and_their_certificates(stack):
    with stack.client() as client:
        before = [job.id for job in client.jobs()]
        job = client.submit({"kind": "svd", "matrix": f"{stack.folder}/data/flights.zarr/A",
                             "output": f"{stack.folder}/results/after.zarr"}).id  # fmt: skip
        stack.compose("down", "--timeout=10")
        run("tallgrass", "certs", "secrets", "--renew", cwd=stack.folder)
        stack.compose("up", "--detach", f"--scale=worker={WORKERS}")
        found = wait_for(lambda: over(client, job), "the end of a job that was accepted before")
        assert found.state is State.SUCCEEDED, found.error
        assert [one.id for one in client.jobs()][1:] == before


def over(client: Client, job: str):
    with suppress(TallgrassError):
        found = client.job(job)
        return found if found.over else None
