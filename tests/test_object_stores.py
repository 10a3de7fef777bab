"""Object stores and the web: matrices, answers and results there, with options and the environment's credentials."""

import functools
import http.server
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipelines import LeastSquares, open_result, run
from pipelines.errors import BadData, PlanRefused
from pipelines.storage import Staging, Writer, array_names, describe
from pipelines.storage.arrays import open_store
from tests.faulty import FaultyStore, first


def test_a_job_reads_from_s3_and_writes_to_s3(remote):
    url = f"{remote.bucket}/results/x.zarr"
    result = run(LeastSquares(**remote.fields, output=url))
    np.testing.assert_allclose(result.x, remote.x, rtol=1e-12)
    again = open_result(url)
    np.testing.assert_array_equal(again.x, result.x)
    assert again.certificate == result.certificate


def test_workers_read_from_s3_and_write_a_wide_answer_there(s3, command):
    A = np.random.default_rng(3).standard_normal((3, 60))
    for name, array, chunks in (("A", A, (3, 20)), ("b", A[:, 0], (3,))):
        zarr.create_array(open_store(f"{s3}/{name}"), shape=array.shape, chunks=chunks, dtype=array.dtype)[...] = array
    done = command("run", "job.yaml", job={"matrix": f"{s3}/A", "rhs": f"{s3}/b", "output": f"{s3}/out"})
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_result(f"{s3}/out").x, np.linalg.lstsq(A, A[:, 0])[0], atol=1e-14)


@pytest.mark.slow
def test_workers_write_a_pseudoinverse_and_scores_to_s3_chunk_by_chunk(s3, command):
    A = np.random.default_rng(4).standard_normal((60, 3))
    zarr.create_array(open_store(f"{s3}/A"), shape=A.shape, chunks=(25, 3), dtype=A.dtype)[...] = A
    for kind, more in (("pseudoinverse", {}), ("pca", {"scores": True})):
        job = {"kind": kind, "matrix": f"{s3}/A", "output": f"{s3}/{kind}"} | more
        done = command("run", "job.yaml", job=job)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_result(f"{s3}/pseudoinverse")["pinv"], np.linalg.pinv(A), atol=1e-14)
    scores = open_result(f"{s3}/pca")["scores"]
    np.testing.assert_allclose(scores @ open_result(f"{s3}/pca")["components"], A - A.mean(axis=0), atol=1e-13)


def test_a_result_on_s3_is_replaced_only_when_the_job_says_so(remote):
    url = f"{remote.bucket}/out"
    run(LeastSquares(**remote.fields, output=url))
    with pytest.raises(PlanRefused, match=r"holds a result already. Nothing was changed"):
        run(LeastSquares(**remote.fields, output=url))
    run(LeastSquares(**remote.fields, output=url, ridge=1e6, overwrite=True, arrays=["R"]))
    assert np.abs(open_result(url).x).max() < 1e-3
    assert "R" in array_names(url)


def test_a_foreign_folder_on_s3_is_never_replaced(remote):
    for output in (f"{remote.bucket}/data/A/c", f"{remote.bucket}/data"):
        with pytest.raises(PlanRefused, match=r"exists and is not a result of Tallgrass. Nothing was changed"):
            Staging(output, Writer("0123456789ab"), overwrite=True)


def test_an_interrupted_run_leaves_nothing_on_s3_that_can_be_opened_and_the_next_one_succeeds(remote):
    url = f"{remote.bucket}/out"
    Staging(url, Writer("0123456789ab"), overwrite=False).put("x", np.ones(99), ("column",))
    with pytest.raises(BadData, match=r"There is no result at"):
        open_result(url)
    np.testing.assert_allclose(run(LeastSquares(**remote.fields, output=url, overwrite=True)).x, remote.x, rtol=1e-12)
    assert open_result(url).x.shape == (3,)


def test_a_failed_run_leaves_nothing_on_s3(remote):
    store = open_store(remote.bucket)
    before = {entry["path"] for page in obstore.list(store.store) for entry in page}
    obstore.delete(store.store, "data/A/c/2/0")
    with pytest.raises(BadData):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out"))
    after = {entry["path"] for page in obstore.list(store.store) for entry in page}
    assert before - after == {"data/A/c/2/0"}
    assert after <= before


def test_a_chunk_that_is_missing_on_s3_is_named_and_counted(remote):
    obstore.delete(open_store(remote.fields["matrix"]).store, "c/2/0")
    with pytest.raises(BadData, match=r"The chunk c/2/0 of s3://.*/data/A is not in the store \(1 of its 6 chunks"):
        run(LeastSquares(**remote.fields))


def test_a_chunk_that_is_damaged_on_s3_is_named(remote):
    obstore.put(open_store(remote.fields["matrix"]).store, "c/2/0", b"nonsense")
    with pytest.raises(BadData, match=r"The chunk s3://.*/data/A/c/2/0 is damaged"):
        run(LeastSquares(**remote.fields))


def test_a_bucket_that_does_not_exist_is_said_for_input_and_output(remote):
    with pytest.raises(BadData, match=r"There is no Zarr array at s3://no-such-bucket/A: nothing is there"):
        run(LeastSquares(**remote.fields | {"matrix": "s3://no-such-bucket/A"}))
    said = "The output s3://no-such-bucket/x cannot be written: the store answered 404 Not Found, NoSuchBucket, "
    with pytest.raises(PlanRefused, match=f"{said}.*. Check its name, or make it."):
        run(LeastSquares(**remote.fields, output="s3://no-such-bucket/x"))


def test_a_key_where_nothing_is_is_said(remote):
    with pytest.raises(BadData, match=r"There is no Zarr array at s3://.*/data/C: nothing is there"):
        run(LeastSquares(**remote.fields | {"matrix": f"{remote.bucket}/data/C"}))


def test_credentials_that_are_not_there_are_said_at_once(remote, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    start = time.monotonic()
    with pytest.raises(BadData, match=r"data/A cannot be opened: .*Missing AccessKeyId"):
        run(LeastSquares(**remote.fields))
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_an_object_store_that_does_not_answer_is_said_within_seconds(monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(
        BadData, match=rf"{s3}/A cannot be read: .*: nothing listens there \(\d+ times in .* s\). Check"
    ):
        describe(f"{s3}/A")
    assert time.monotonic() - start < 20


# The web


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, to those who say the word when there is one; nothing is logged."""

    word = ""

    def do_GET(self):
        """As ever, or 403."""
        if self.word and self.headers.get("Authorization") != f"Bearer {self.word}":
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder, handler=Quiet, context=None):
    """The port at which a folder can be read."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def web(tmp_path):
    """The address at which the test's folder can be read."""
    with serving(tmp_path) as port:
        yield f"http://127.0.0.1:{port}"


def at(web):
    """The fields of a problem there."""
    return {"matrix": f"{web}/data/A", "rhs": f"{web}/data/b"}


def test_a_job_reads_over_http(problem, web):
    made = problem()
    np.testing.assert_allclose(run(LeastSquares(**at(web))).x, made.x, rtol=1e-12)


class WithoutHead(Quiet):
    """A server that answers GET alone."""

    def do_HEAD(self):
        """403."""
        self.send_error(403)


def test_a_job_by_content_reads_over_a_web_that_answers_get_alone(problem, tmp_path):
    made = problem()
    with serving(tmp_path, WithoutHead) as port:
        found = run(LeastSquares(**at(f"http://127.0.0.1:{port}"), fingerprint="content"))
    np.testing.assert_allclose(found.x, made.x, rtol=1e-12)


def test_a_job_reads_over_a_web_that_drops_connections(problem, web, monkeypatch):
    monkeypatch.setattr("pipelines.storage.objects.FIRST_WAIT", 0.05)
    made = problem()
    with FaultyStore(web) as proxy:
        proxy.rule = first(2, "half", "SlowDown")
        np.testing.assert_allclose(run(LeastSquares(**at(proxy.url))).x, made.x, rtol=1e-12)
        assert proxy.faults["GET", "half"] > 6


@pytest.fixture
def secure(tmp_path):
    """The address at which the test's folder can be read over TLS, and the certificate to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with serving(tmp_path, context=context) as port:
        yield f"https://localhost:{port}", f"{tmp_path}/ca.pem"


def certificate(folder):
    """A file with the key and the certificate of a server here, signed by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    path = folder / "server.pem"
    (folder / "ca.pem").write_bytes(pem)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + pem)
    return path


def test_a_job_reads_over_https_where_it_trusts_the_certificate(problem, secure):
    web, ca = secure
    made = problem()
    for trusted in (ca, Path(ca).read_text()):
        result = run(LeastSquares(**at(web), storage_options={"root_certificate": trusted}))
        np.testing.assert_allclose(result.x, made.x, rtol=1e-12)
    with pytest.raises(BadData, match=r"A cannot be read: .*: its certificate is not trusted here .*\. Give the cert"):
        run(LeastSquares(**at(web)))
    with pytest.raises(
        BadData, match=r"the root_certificate no\.pem cannot be read \(No such file or directory\)\. Give a"
    ):
        run(LeastSquares(**at(web), storage_options={"root_certificate": "no.pem"}))


def test_a_web_that_asks_for_a_token_is_given_one_by_name(problem, tmp_path, monkeypatch):
    made = problem()
    monkeypatch.setenv("MY_TOKEN", "open-sesame")
    with serving(tmp_path, type("Guarded", (Quiet,), {"word": "open-sesame"})) as port:
        fields = at(f"http://127.0.0.1:{port}")
        result = run(LeastSquares(**fields, storage_options={"bearer_token": "${MY_TOKEN}"}))
        np.testing.assert_allclose(result.x, made.x, rtol=1e-12)
        with pytest.raises(
            BadData, match=r"A cannot be read: the store answered 403 Forbidden\. What was given does not "
        ):
            run(LeastSquares(**fields))


def test_an_address_of_the_web_where_nothing_is_is_said(web):
    with pytest.raises(BadData, match=r"There is no Zarr array at http://.*/data/A: nothing is there"):
        describe(f"{web}/data/A")


def test_a_chunk_that_is_missing_on_the_web_is_named(problem, web):
    made = problem()
    (Path(made.matrix) / "c/3/0").unlink()
    with pytest.raises(BadData, match=r"The chunk c/3/0 of http://.*/data/A is not in the store\. Zarr would"):
        run(LeastSquares(**at(web)))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_web_is_read_and_never_written(problem, scheme):
    made = problem()
    chunk = Path(made.matrix) / "c/0/0"
    chunk.unlink()  # reading would find it missing
    with pytest.raises(
        PlanRefused, match=rf"The output {scheme}://h/out cannot be written: {scheme}:// is for reading"
    ):
        run(LeastSquares(**made.fields, output=f"{scheme}://h/out"))
