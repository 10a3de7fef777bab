"""`tallgrass certs`: real processes that trust its files, and nobody else; a server that encrypts."""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from cryptography import x509

from pipelines.errors import ClusterUnreachable, JobFileError, RunFailed
from tests.conftest import stored
from tests.dask_cluster import Cluster
from tests.served import Served, free_port, wait_for
from workers import Client, certificates, trust
from workers.cluster_doctor import examine_certificates
from workers.clusters import Address, Tls, open_cluster
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")
LONG_AGO = datetime.now(UTC) - timedelta(days=100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The files of two authorities that do not know each other, and of one whose certificates have ended."""
    base = tmp_path_factory.mktemp("certificates")
    certificates.make(base / "ours", [], 365)
    certificates.make(base / "other", [], 365)
    certificates.make(base / "ended", [], 30, LONG_AGO)
    return SimpleNamespace(ours=base / "ours", other=base / "other", ended=base / "ended")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, folders):
    with Cluster(tmp_path_factory.mktemp("cluster"), folders.ours) as made:
        with open_cluster(Address(address=made.address, tls=tls(folders.ours))):
            pass  # until the worker is there
        yield made


def tls(folder: Path, ca: Path | None = None, role: str = "client") -> Tls:
    return Tls(ca=str((ca or folder) / "ca.pem"), cert=str(folder / f"{role}.pem"), key=str(folder / f"{role}-key.pem"))


def refusal(address: str, found: Tls | None) -> str:
    with (
        pytest.raises(ClusterUnreachable) as caught,
        open_cluster(Address(address=address, tls=found, connect_timeout="5s")),
    ):
        pass
    return str(caught.value)


def tallgrass(*words, **environment):
    command = [sys.executable, "-m", "workers.cli", *map(str, words)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=90)


# The files


def test_the_command_makes_them_for_their_owner_alone_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "certificates"
    done = tallgrass("certs", folder, "--host", "Scheduler.example", "--host", "10.0.0.1", "--days", "90")
    assert done.returncode == 0, done.stderr
    end = f"{datetime.now(UTC) + timedelta(days=90):%Y-%m-%d}"
    hosts = "Scheduler.example, 10.0.0.1, localhost, 127.0.0.1, ::1"
    assert done.stdout == f"{folder}: valid until {end} for {hosts}\n"
    assert (
        f"--tls-ca-file {folder}/ca.pem --tls-cert {folder}/worker.pem --tls-key {folder}/worker-key.pem" in done.stderr
    )
    assert f"tls: {{ca: {folder}/ca.pem, cert: {folder}/client.pem, key: {folder}/client-key.pem}}" in done.stderr
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.glob("*-key.pem")} == {
        f"{role}-key.pem" for role in ("ca", "client", "scheduler", "worker", "server")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*-key.pem")} == {0o600}
    assert not list(tmp_path.glob(".*"))


def names_in(file: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def test_nothing_is_overwritten(folders, tmp_path):
    before = {path: path.read_bytes() for path in folders.ours.iterdir()}
    done = tallgrass("certs", folders.ours)
    assert done.returncode == 2
    assert f"{folders.ours} is there and not empty, and nothing is overwritten." in done.stderr
    assert f"tallgrass certs {folders.ours} --renew" in done.stderr
    assert {path: path.read_bytes() for path in folders.ours.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(JobFileError, match="is there and not empty"):
        certificates.make(tmp_path / "file", [], 365)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    certificates.make(tmp_path / "empty", [], 365)
    assert (tmp_path / "empty" / "ca.pem").exists()


def test_renewing_keeps_authority_and_names_and_replaces_the_rest(tmp_path):
    certificates.make(tmp_path / "c", ["scheduler.example"], 30, LONG_AGO)
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    assert certificates.days_left(tmp_path / "c" / "worker.pem") < 0
    done = tallgrass("certs", tmp_path / "c", "--renew")
    assert done.returncode == 0, done.stderr
    assert "give each part its new files and restart it" in done.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}
    assert after.keys() == before.keys()
    assert 364 < certificates.days_left(tmp_path / "c" / "worker.pem") < 366
    assert names_in(tmp_path / "c" / "server.pem")[0] == "scheduler.example"
    certificates.renew(tmp_path / "c", ["another.example"], 30)
    assert names_in(tmp_path / "c" / "server.pem")[:2] == ["another.example", "localhost"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_renewed_files_belong_to_whom_the_old_ones_belonged_to(tmp_path):
    certificates.make(tmp_path / "c", [], 30)
    os.chown(tmp_path / "c" / "worker-key.pem", 10001, 10001)
    certificates.renew(tmp_path / "c", [], 30)
    owners = {path.name: path.stat().st_uid for path in (tmp_path / "c").glob("w*.pem")}
    assert owners == {"worker.pem": 0, "worker-key.pem": 10001}
    assert stat.S_IMODE((tmp_path / "c" / "worker-key.pem").stat().st_mode) == 0o600


def test_no_certificate_outlives_its_authority(tmp_path):
    certificates.make(tmp_path / "c", [], 365)
    nearly = datetime.now(UTC) + timedelta(days=3600)
    made = certificates.renew(tmp_path / "c", [], 365, nearly)
    assert made.until == made.authority_until
    with pytest.raises(JobFileError, match=r"has ended on 20\d\d-\d\d-\d\d\. Make a new one"):
        certificates.renew(tmp_path / "c", [], 365, nearly + timedelta(days=60))


def test_the_key_of_a_server_of_jobs_opens_no_port_of_dask(cluster, folders):
    with pytest.raises(ssl.SSLError):
        connect(cluster.port, tls(folders.ours, role="server"))


def connect(port: int, files: Tls) -> bytes:
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
        return encrypted.recv(1)


@pytest.mark.parametrize("host", ["", "a b", "-x", "http://host", "host:8786", "x" * 300, "naïve.example"])
def test_a_host_that_can_be_none_is_refused(tmp_path, host):
    with pytest.raises(JobFileError, match=r"--host: found .* needed a name or an address, such as scheduler\.example"):
        certificates.make(tmp_path / "c", [host], 365)
    assert not list(tmp_path.iterdir())


def test_an_authority_that_is_not_whole_cannot_renew(tmp_path, folders):
    with pytest.raises(JobFileError, match=r"ca\.pem cannot be read \(No such file or directory\); needed one that"):
        certificates.renew(tmp_path, [], 365)
    certificates.make(tmp_path / "c", [], 365)
    (tmp_path / "c" / "ca-key.pem").write_bytes((folders.other / "ca-key.pem").read_bytes())
    with pytest.raises(JobFileError, match=r"ca-key\.pem is not the key of ca\.pem beside it"):
        certificates.renew(tmp_path / "c", [], 365)
    (tmp_path / "c" / "ca-key.pem").write_text("nothing")
    with pytest.raises(JobFileError, match=r"\(no private key\); needed the key of ca\.pem"):
        certificates.renew(tmp_path / "c", [], 365)
    (tmp_path / "c" / "ca.pem").write_text("nothing")
    with pytest.raises(JobFileError, match=r"ca\.pem cannot be read \(no certificate in PEM format\)"):
        certificates.renew(tmp_path / "c", [], 365)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match=r"cannot be written: (Not a directory|File exists)\. Name another folder\."):
        certificates.make(tmp_path / "file" / "c", [], 365)


def test_without_the_package_it_is_said_how_to_get_it(tmp_path):
    hidden = "import sys; sys.modules['cryptography'] = None; from workers.cli import main; main()"
    command = [sys.executable, "-c", hidden, "certs", str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'is missing. Install it: pip install "tallgrass[tls]"' in done.stderr


# Scheduler and workers


def test_a_job_runs_on_an_encrypted_cluster(cluster, folders, tmp_path):
    A = np.random.default_rng(3).standard_normal((400, 4))
    stored(tmp_path / "A", A, (100, 4))
    (tmp_path / "job.yaml").write_text(f"kind: svd\nmatrix: {tmp_path}/A\noutput: {tmp_path}/out.zarr\n")
    found = tls(folders.ours)
    (tmp_path / "cluster.yaml").write_text(
        f"kind: address\naddress: {cluster.address}\ntls: {{ca: {found.ca}, cert: {found.cert}, key: {found.key}}}\n"
    )
    done = tallgrass("run", tmp_path / "job.yaml", "--cluster", tmp_path / "cluster.yaml", "-q", "--json")
    assert done.returncode == 0, done.stderr
    done = tallgrass("doctor", "--cluster", tmp_path / "cluster.yaml", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["certificates"] | {"advice": ""} == {
        "name": "certificates", "ok": True, "detail": f"{found.cert} ends in 365 days", "advice": "",
    }  # fmt: skip
    assert findings["versions"]["ok"]


def test_strangers_are_refused(cluster, folders):
    assert "is not signed by the authority in tls.ca" in refusal(cluster.address, tls(folders.other))
    assert "the scheduler refuses our certificate (" in refusal(cluster.address, tls(folders.other, folders.ours))
    plain = cluster.address.replace("tls", "tcp")
    assert "the scheduler encrypts. Write tls:// in the address" in refusal(plain, None)
    context = ssl.create_default_context(cafile=str(folders.ours / "ca.pem"))
    with pytest.raises(httpx.HTTPError):  # it trusts the scheduler, and has no certificate of its own
        httpx.get(f"https://127.0.0.1:{cluster.port}", verify=context)


def test_a_worker_of_another_cluster_does_not_get_in(cluster, folders, tmp_path):
    stranger = Cluster(tmp_path, folders.other)
    stranger.address = cluster.address
    with open_cluster(Address(address=cluster.address, tls=tls(folders.ours))) as client:
        stranger.worker()
        try:
            wait_for(lambda: "certificate verify failed" in stranger.log.read_text(), "a refusal")
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        finally:
            stranger.kill()


def test_certificates_that_have_ended_are_said_on_either_side(cluster, folders, tmp_path):
    assert certificates.days_left(folders.ended / "client.pem") == pytest.approx(-70, abs=0.1)
    signed(folders.ours, "client", ["localhost"], LONG_AGO, tmp_path / "late")
    letter = refusal(cluster.address, tls(tmp_path / "late", folders.ours))
    assert "the scheduler refuses our certificate, tls.cert, which has ended. Renew it (tallgrass certs" in letter
    finding = examine_certificates(tls(tmp_path / "late", folders.ours))
    assert not finding.ok
    assert finding.detail.endswith("client.pem ended 70 days ago")
    with Cluster(tmp_path, folders.ended) as ended:
        letter = refusal(ended.address, tls(folders.ended))
    assert "the certificate of the scheduler, or of its authority, has ended. Renew it" in letter


def signed(authority: Path, role: str, hosts: list[str], begin: datetime, folder: Path) -> None:
    """A certificate for thirty days, with its key, in a folder."""
    found, key = certificates._authority_in(authority, begin), certificates._new_key()
    folder.mkdir(exist_ok=True)
    certificate = certificates._signed(role, key, found, hosts, begin + timedelta(days=30))
    certificates._write(folder, role, key, certificate)


def test_what_ends_soon_is_a_finding_of_doctor(tmp_path):
    certificates.make(tmp_path / "c", [], 10)
    finding = examine_certificates(tls(tmp_path / "c"))
    assert (finding.ok, finding.name) == (False, "certificates")
    assert finding.detail.endswith("client.pem ends in 10 days")
    assert "tallgrass certs FOLDER --renew" in finding.advice


# The server of jobs


@pytest.fixture(scope="module")
def served(tmp_path_factory, cluster, folders):
    """A server that encrypts, on a cluster that encrypts."""
    folder, found = tmp_path_factory.mktemp("served"), tls(folders.ours)
    stored(folder / "A", np.random.default_rng(3).standard_normal((400, 4)), (100, 4))
    described = (
        f"kind: address\naddress: {cluster.address}\ntls: {{ca: {found.ca}, cert: {found.cert}, key: {found.key}}}\n"
    )
    files = ("--cert", str(folders.ours / "server.pem"), "--key", str(folders.ours / "server-key.pem"))
    with Served(folder, *files, cluster=described, ca=str(folders.ours / "ca.pem")) as server:
        yield server


def test_jobs_run_through_an_encrypting_server_on_an_encrypted_cluster(served):
    (served.folder / "job.yaml").write_text("kind: svd\nmatrix: A\noutput: out.zarr\n")
    done = served.tallgrass("submit", "job.yaml", "--wait", env={"TALLGRASS_CA": served.ca})
    assert done.returncode == 0, done.stderr
    with Client(served.url, ca=served.ca) as client:
        found = client.job(done.stdout.strip())
        assert found.state is State.SUCCEEDED
        assert np.allclose(client.result(found.id)["s"], np.linalg.svd(stored_A(served), compute_uv=False))
        assert client.server().clusters[0].address.startswith("tls://")


def stored_A(served):
    import zarr

    return zarr.open_array(served.folder / "A", mode="r")[...]


def test_a_server_that_is_not_trusted_is_left_at_once(served, folders, tmp_path):
    for known in ({}, {"TALLGRASS_CA": str(folders.other / "ca.pem")}):
        done = served.tallgrass("wait", "abcdefghjk", env=known)
        assert done.returncode == 5
        assert f"The server at {served.url} is not trusted: its certificate is signed by no authority" in done.stderr
        assert "Set TALLGRASS_CA to the right ca.pem" in done.stderr
    done = served.tallgrass("list", env={"TALLGRASS_CA": "nowhere.pem"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "TALLGRASS_CA: nowhere.pem cannot be read (No such file or directory); needed the ca.pem" in done.stderr
    (tmp_path / "nothing").touch()
    done = served.tallgrass("list", env={"TALLGRASS_CA": str(tmp_path / "nothing")})
    assert "cannot be read (no certificate in PEM format)" in done.stderr


@pytest.mark.slow
def test_plain_http_to_a_server_that_encrypts_and_the_reverse_are_letters(served, tmp_path):
    done = served.tallgrass("list", env={"TALLGRASS_SERVER": served.url.replace("https", "http")})
    assert done.returncode == 5
    assert "encrypts. Write https:// in its address." in done.stderr
    with Served(tmp_path, cluster=(served.folder / "cluster.yaml").read_text()) as plain:
        done = plain.tallgrass("list", env={"TALLGRASS_SERVER": plain.url.replace("http", "https")})
    assert done.returncode == 5
    assert "does not encrypt. Write http:// in its address." in done.stderr


@contextmanager
def answering(folder: Path) -> Iterator[str]:
    """The address of something that shows server.pem of this folder, and says nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=shake_hands, args=(listener, context), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        with suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()


@pytest.mark.parametrize(("hosts", "begin", "says"), [
    (["elsewhere.example"], datetime.now(UTC), r"is not trusted: IP address mismatch, .* Use a name that it has"),
    (["127.0.0.1"], LONG_AGO, r"is not trusted: its certificate has ended\. Renew it \(tallgrass certs FOLDER --renew"),
])  # fmt: skip
def test_a_server_with_another_name_or_an_old_certificate_is_not_trusted(folders, tmp_path, hosts, begin, says):
    signed(folders.ours, "server", hosts, begin, tmp_path)
    ca = str(folders.ours / "ca.pem")
    with answering(tmp_path) as url, Client(url, ca=ca) as client, pytest.raises(trust.NotTrusted, match=says):
        client.server()


@pytest.mark.slow
def test_a_server_does_not_start_with_a_certificate_that_has_ended(folders, tmp_path):
    files = ("--cert", folders.ended / "server.pem", "--key", folders.ended / "server-key.pem")
    done = tallgrass("serve", "--port", free_port(), "--state", tmp_path, "--root", tmp_path, *files)
    assert done.returncode == 2
    assert f"{folders.ended}/server.pem has ended 70 days ago, and no client would trust it. Renew it" in done.stderr
