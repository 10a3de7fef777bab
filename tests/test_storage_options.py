"""What stores may be told in a job: by the names that people know, and no secret that could be kept or shown."""

import json
import pickle
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines import Apply, LeastSquares, Pseudoinverse, load_job, open_result, roots, run
from pipelines.addresses import Address, store_of
from pipelines.errors import BadData, JobFileError, PlanRefused
from pipelines.inputs import open_inputs
from pipelines.storage.arrays import open_store
from pipelines.storage.objects import PatientStore
from pipelines.stores import OPTIONS, options_of
from tests.faulty import FaultyStore
from tests.served import Served, wait_for
from workers import Client
from workers.places import check_places

SECRET = "AKIA-planted-5ecret"
FILES = ("application_credentials", "service_account", "service_account_key", "root_certificate")
"""Options that are opened at once: there is no account of Google's here, and the web has a certificate of its own."""
URLS = {"s3": "s3://bucket/A", "gs": "gs://bucket/A", "az": "az://container/A", "web": "https://host.example/A"}


def job_file(folder, text):
    path = folder / "job.yaml"
    path.write_text(f"kind: least_squares\nmatrix: s3://b/A\nrhs: s3://b/b\noutput: out\n{text}\n")
    return path


def letter(folder, text):
    """What is said of a job file that goes on like this; never with the secret."""
    with pytest.raises(JobFileError) as caught:
        load_job(job_file(folder, text))
    assert SECRET not in str(caught.value)
    return str(caught.value)


# Names and values


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"anon": True}, {"skip_signature": True}),
        ({"anon": "false"}, {"skip_signature": False}),
        ({"AWS_REGION": "eu-central-1"}, {"region": "eu-central-1"}),
        ({"client_kwargs": {"endpoint_url": "http://h", "region_name": "x"}}, {"endpoint": "http://h", "region": "x"}),
        ({"key": "${K}", "secret": "${S}"}, {"access_key_id": "${K}", "secret_access_key": "${S}"}),
        ({"timeout": "2m", "read_timeout": 5}, {"timeout": 120.0, "read_timeout": 5.0}),
        ({"azure_storage_account_name": 42}, {"account_name": "42"}),
        ({"requester_pays": True}, {"request_payer": True}),
    ],
)  # fmt: skip
def test_options_have_the_names_that_obstore_s3fs_and_pandas_give_them(given, meant):
    assert options_of(given) == meant
    assert options_of(meant) == meant


@pytest.mark.parametrize("store", URLS)
def test_every_option_is_one_that_obstore_takes(store, monkeypatch):
    values = {
        "flag": "false", "seconds": "5s", "text": "x",
        "endpoint": "https://h.example", "base_url": "https://h.example", "proxy_url": "http://p.example:8080",
        "server_side_encryption": "AES256", "sas_key": "sv=1&sig=x",
        "authority_host": "https://h.example", "account_name": "name", "account_key": "a2V5",
    }  # fmt: skip
    for name, option in OPTIONS.items():
        if store not in option.stores or name in FILES:
            continue
        given = {name: values.get(name, values[option.kind])}
        if store == "s3" and option.secret:
            given = {"access_key_id": "x", "secret_access_key": "x"} | given
        if store == "az":
            given = {"account_name": "name"} | given
        for secret in given.keys() & {name for name, option in OPTIONS.items() if option.secret}:
            monkeypatch.setenv(f"OF_{secret}", given[secret])
            given[secret] = f"${{OF_{secret}}}"
        assert isinstance(open_store(Address(URLS[store], options_of(given))), PatientStore)


def test_each_scheme_has_its_kind_of_store():
    kinds = [store_of(url) for url in ("s3a://b", "abfss://c@a.dfs.core.windows.net/x", "HTTPS://h", "file:///x", "/x")]
    assert kinds == ["s3", "az", "web", None, None]


OPTION = "storage_options"
WRONG = [
    ("{regoin: x}", 'there is no such option of a store. Did you mean "region"?', ".regoin"),
    ("s3", "needed a mapping of options, such as {region: eu-central-1}", ""),
    ("{anon: maybe}", "needed true or false", ".anon"),
    ("{timeout: soon}", 'needed a time with its unit, such as "30s"', ".timeout"),
    ("{region: a.b/c}", "needed the name of a region, such as eu-central-1", ".region"),
    ("{endpoint: 'http://${HOST}'}", "needed ${NAME} alone, or text without it", ".endpoint"),
    ("{endpoint: ''}", "needed text", ".endpoint"),
    ("{key: '${K}', access_key_id: '${K}'}", "says the same as another option, access_key_id", ".access_key_id"),
    ("{account_name: x}", "is no option of s3://, where the matrix is. Give options beside", ".account_name"),
    (f"{{secret: {SECRET}}}", "holds a secret, which would be stored with the result. Put the", ".secret"),
    (f"{{root_certificate: '-----BEGIN PRIVATE KEY----- {SECRET}'}}", "holds a secret, which", ".root_certificate"),
    (f"{{endpoint: 'https://u:{SECRET}@h'}}", "found a URL with a user or password before h, which", ".endpoint"),
    (f"{{proxy_url: 'https://u:{SECRET}@h'}}", "found a URL with a user or password before h, which", ".proxy_url"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "at"), WRONG)
def test_what_stores_cannot_be_told_is_a_letter_with_its_line(tmp_path, text, said, at):
    assert f"job.yaml:5: {OPTION}{at}: {said}" in letter(tmp_path, f"{OPTION}: {text}")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("{url: 'gs://b/w', storage_options: {region: x}}", "weights.storage_options.region: is no option of gs://, "),
        (
            f"s3://key:{SECRET}@b/w",
            "weights: found a URL with a user or password before b, which would be stored with ",
        ),
        (f"https://h/w?sig={SECRET}", "weights: found a URL that goes on after 'h/w' with ? or #, where signatures "),
        (f"[https://h/w?sig={SECRET}]", 'weights: found ["https://h/w?***"]; needed a path or URL'),
    ],
)
def test_what_a_url_cannot_hold_is_a_letter_with_its_line(tmp_path, weights, said):
    assert f"job.yaml:5: {said}" in letter(tmp_path, f"weights: {weights}")


def test_an_override_with_a_secret_is_not_repeated(tmp_path):
    for place in ("storage_options.secret=", "matrix=https://u:", "ridge=http://h?sig="):
        with pytest.raises(JobFileError) as caught:
            load_job(job_file(tmp_path, ""), [f"{place}{SECRET}@h"])
        assert SECRET not in str(caught.value)
        assert str(caught.value).startswith("--set ")


def test_python_does_not_repeat_a_secret_either():
    with pytest.raises(ValidationError, match="holds a secret") as caught:
        LeastSquares(matrix="s3://b/A", rhs="b", storage_options={"secret": SECRET})
    assert SECRET not in str(caught.value)
    with pytest.raises(BadData, match=r"^storage_options: secret holds a secret") as error:
        open_result("s3://b/x", {"secret": SECRET})
    assert SECRET not in str(error.value)


def test_paths_take_no_notice_of_options(problem):
    made = problem()
    found = run(LeastSquares(**made.fields, storage_options={"region": "eu-central-1"}))
    np.testing.assert_array_equal(found.x, run(LeastSquares(**made.fields)).x)


# Credentials by name


@pytest.fixture
def named(remote, moto, monkeypatch):
    """Options that alone lead to the bucket of `remote`: nothing that a store would find by itself is there."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MY_KEY", f"{SECRET}-key")
    monkeypatch.setenv("MY_SECRET", f"{SECRET}-secret")
    return {"endpoint": moto, "region": "us-east-1", "key": "${MY_KEY}", "secret": "${MY_SECRET}"}


def test_a_job_finds_its_store_and_its_credentials_by_its_options_alone(named, remote, command):
    job = remote.fields | {"output": f"{remote.bucket}/out", "storage_options": named}
    done = command("run", "job.yaml", job=job)
    assert done.returncode == 0, done.stderr
    found = open_result(f"{remote.bucket}/out", named)
    np.testing.assert_allclose(found.x, remote.x, rtol=1e-12)
    assert found.summary["job"]["storage_options"]["secret_access_key"] == "${MY_SECRET}"
    assert {"x", "residual_norm"} <= set(found.names)


@pytest.mark.slow
def test_an_array_has_options_of_its_own(named, remote, tmp_path):
    parts = {name: {"url": url, "storage_options": named} for name, url in remote.fields.items()}
    np.testing.assert_allclose(run(LeastSquares(**parts, output=f"{tmp_path}/out")).x, remote.x, rtol=1e-12)
    with pytest.raises(BadData, match=r"data/b cannot be "):
        run(LeastSquares(**parts | {"rhs": {"url": remote.fields["rhs"], "storage_options": {"anon": True, "endpoint":
                         "http://127.0.0.1:9"}}}))  # fmt: skip


def test_an_operator_and_its_matrix_are_found_with_the_options_that_they_were_made_with(named, remote):
    operator = f"{remote.bucket}/operator"
    run(Pseudoinverse(matrix=remote.fields["matrix"], form="operator", output=operator, storage_options=named))
    x = run(Apply(operator=operator, compute="pinv", rhs=remote.b, storage_options=named))["pinv"]
    np.testing.assert_allclose(x, remote.x, rtol=1e-12)


def test_a_variable_that_is_not_set_is_named(named, remote, monkeypatch):
    monkeypatch.delenv("MY_SECRET")
    said = (
        r"data/A cannot be opened: storage_options.secret_access_key is \$\{MY_SECRET\}, and the process that opens it "
    )
    with pytest.raises(
        BadData, match=rf"{said}\(host .*\) has no such environment variable. Set it where the job runs"
    ):
        run(LeastSquares(**remote.fields, storage_options=named))


def test_addresses_keep_their_options_when_they_travel_and_go_down():
    address = Address("s3://b/A", {"region": "x"})
    for other in (address / "c", pickle.loads(pickle.dumps(address)), Address(address)):
        assert other.options == {"region": "x"}
    assert (address / "c", type(str(address))) == ("s3://b/A/c", str)


def test_what_is_sent_to_workers_holds_the_names_of_secrets_alone(named, remote):
    inputs = pickle.dumps(open_inputs(LeastSquares(**remote.fields, storage_options=named), "run"))
    assert b"${MY_SECRET}" in inputs
    assert SECRET.encode() not in inputs


# Secrets that are looked for everywhere


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_run_says_or_keeps(named, remote, moto, command, tmp_path):
    fields = remote.fields | {"output": f"{remote.bucket}/out", "storage_options": named}
    said = [command(*words, "job.yaml", job=fields) for words in (["plan"], ["run", "--json"], ["run"])]
    assert [done.returncode for done in said] == [0, 0, 3]  # the result is there the second time
    said.append(command("run", "job.yaml", job=fields | {"matrix": f"{remote.bucket}/no"}))
    with FaultyStore(moto) as proxy:
        for fault in ("ExpiredToken", "drop"):
            proxy.rule = lambda method, path, number, fault=fault: fault if "/c/" in path else None
            options = named | {"endpoint": proxy.url, "retry_timeout": "1s"}
            said.append(command("run", "job.yaml", job=fields | {"storage_options": options, "overwrite": True}))
    assert [done.returncode for done in said[3:]] == [4, 4, 4]
    assert all("Traceback" not in done.stderr for done in said)
    store = open_store(Address(f"{remote.bucket}/out", options_of(named)))
    kept = b"".join(store.read(name) for name in store.names())
    assert b"${MY_SECRET}" in kept
    assert all(SECRET not in done.stdout + done.stderr for done in said)
    assert SECRET.encode() not in kept


@pytest.mark.slow
def test_no_secret_of_a_server_is_in_anything_that_it_says_or_keeps(remote, tmp_path, monkeypatch, moto):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"{SECRET}-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-token")
    folder = tmp_path / "served"
    folder.mkdir()
    with FaultyStore(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with Served(folder, "--root", remote.bucket) as server, Client(server.url) as client:
            fields = {"kind": "least_squares", **remote.fields}
            good = client.submit(
                fields | {"output": f"{remote.bucket}/good", "storage_options": {"region": "us-east-1"}}
            )
            assert client.wait(good.id).state == "succeeded"
            proxy.rule = lambda method, path, number: "ExpiredToken" if "/c/" in path else None
            bad = client.submit(fields | {"output": f"{remote.bucket}/bad"})
            ended = client.wait(bad.id)
            assert (ended.state, ended.exit_code) == ("failed", 4)
            assert "ExpiredToken, This is ExpiredToken. Renew the credentials" in ended.error.message
            words = [
                ("status", good.id),
                ("logs", bad.id),
                ("report", good.id),
                ("report", bad.id),
                ("result", good.id),
            ]
            said = [server.tallgrass(*word) for word in words]
            plan = json.dumps(client.plan(fields | {"output": f"{remote.bucket}/new"}))
            with pytest.raises(JobFileError, match="holds a secret"):
                client.submit(fields | {"output": f"{remote.bucket}/x", "storage_options": {"secret": f"{SECRET}-x"}})
            for option in ({"endpoint": "http://evil.example"}, {"key": "${HOME}"}, {"region": "${HOME}"}):
                with pytest.raises(PlanRefused, match=r"storage_options\..* is for whoever runs this server to say"):
                    client.submit(fields | {"output": f"{remote.bucket}/x", "storage_options": option})
            wait_for(lambda: client.job(bad.id).over)
        with closing(sqlite3.connect(folder / "state" / "queue.db")) as database:
            dump = "\n".join(database.iterdump())
    assert good.id in dump
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert good.id.encode() in kept
    assert all(SECRET not in done.stdout + done.stderr for done in said)
    assert SECRET not in dump + plan
    assert SECRET.encode() not in kept


@pytest.mark.parametrize("store", ["s3", "gs", "az", "web"])
def test_a_confined_process_opens_nothing_with_options_that_lead_elsewhere(monkeypatch, store):
    monkeypatch.setattr(roots, "_roots", (URLS[store],))
    for name, option in OPTIONS.items():
        if store in option.stores and not option.free:
            with pytest.raises(PlanRefused, match=rf"storage_options.{name} is for whoever runs this server to say"):
                open_store(Address(URLS[store], {name: "x"}))
    with pytest.raises(PlanRefused, match=r"storage_options.region is for whoever runs this server"):
        open_store(Address(URLS[store], {"region": "${HOME}"}))


def test_a_server_refuses_such_options_wherever_they_stand_in_a_job():
    for job in ({"storage_options": {"endpoint": "x"}}, {"rhs": {"url": "/A", "storage_options": {"endpoint": "x"}}}):
        with pytest.raises(PlanRefused, match=r"storage_options.endpoint is for whoever runs this server to say"):
            check_places(job, ["/"])
        check_places(job, None)


def test_a_server_waits_ten_minutes_for_a_store_and_no_longer():
    for name, option in OPTIONS.items():
        if option.kind == "seconds":
            says = rf"storage_options.{name}: 601.0 seconds, and a job on a server may wait 600 for a store that does"
            with pytest.raises(PlanRefused, match=says):
                check_places({"storage_options": {name: 601.0}}, ["/"])
            check_places({"storage_options": {name: 600.0}}, ["/"])
            check_places({"storage_options": {name: 601.0}}, None)
