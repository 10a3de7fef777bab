"""The service as its users meet it: a server process, the command line, the client and the API."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import pytest
from zarr.codecs import Crc32cCodec

from pipelines import LeastSquares
from pipelines.errors import BadData, ClusterUnreachable, JobFileError, PlanRefused
from tests.conftest import ROOT, stored
from tests.served import SECONDS, Served, free_port, store_problem, store_slow, wait_for
from workers import Client
from workers.entries import Conflict, NoSuchJob
from workers.lifecycle import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's means")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    store_problem(folder, 4000, 8)
    store_slow(folder / "large")
    (folder / "job.yaml").write_text("kind: least_squares\nmatrix: A\nrhs: b\noutput: x.zarr\n")
    with Served(folder) as server:
        yield server


@pytest.fixture
def truth(served):
    return np.load(served.folder / "x.npy")


def job_of(served, name, **fields):
    at = str(served.folder)
    return LeastSquares(**{"matrix": f"{at}/A", "rhs": f"{at}/b", "output": f"{at}/{name}.zarr"} | fields)


@pytest.fixture
def frozen(served, client):
    """Submits a job, and lets no task get on from when it runs to the end of the test; gives the job's id."""

    def submit(output, patience="10m", **given):
        fields = {"kind": "svd", "matrix": f"{served.folder}/large", "vectors": "both", "no_progress_timeout": patience}
        job = client.submit(fields | {"output": f"{served.folder}/{output}.zarr"}, **given).id
        wait_for(lambda: client.job(job).state is State.RUNNING)
        served.freeze_workers()
        assert client.job(job).state is State.RUNNING
        return job

    yield submit
    served.thaw_workers()


# From the command line


def test_submit_prints_the_id_alone_and_wait_ends_as_the_job_does(served, truth):
    done = served.tallgrass("submit", "job.yaml", "--set", "output=first.zarr")
    assert (done.returncode, done.stderr) == (0, "")
    job = done.stdout.strip()
    assert re.fullmatch("[a-z2-9]{10}", job)
    waited = served.tallgrass("wait", job)
    assert (waited.returncode, waited.stdout) == (0, ""), waited.stderr
    assert f"{job}  succeeded: These coefficients are the exact least-squares solution" in waited.stderr
    status = served.tallgrass("status", job[:6])
    assert status.stdout.startswith(f"{job}  first: succeeded\n")
    assert "factor         ████████████████████████" in status.stdout
    result = json.loads(served.tallgrass("result", job, "--json", "--copy", "copy.zarr").stdout)
    assert result["submitted"] == {"id": job, "name": "first", "attempt": 1}
    with Client(served.url) as client:
        np.testing.assert_allclose(client.result(job).x, truth, rtol=1e-12)
    again = served.tallgrass("result", job, "--copy", "copy.zarr")
    assert (again.returncode, again.stderr) == (
        3,
        "copy.zarr exists already. Copy to another folder, or remove that one.\n",
    )


def test_a_rehearsal_reads_nothing_and_runs(served):
    (served.folder / "rehearsal.yaml").write_text((ROOT / "configs" / "jobs" / "rehearsal.yaml").read_text())
    small = ["--set", "matrix.synthetic.rows=30000", "--set", "output=rehearsal.zarr"]
    done = served.tallgrass("submit", "rehearsal.yaml", "--wait", *small)
    assert done.returncode == 0, done.stderr
    with Client(served.url) as client:
        x = client.result(done.stdout.strip()).x
    assert 0 < np.abs(x - 1).max() < 3


def test_follow_shows_the_log_and_exits_as_run_would(served):
    done = served.tallgrass("submit", "job.yaml", "--follow", "--set", "output=followed.zarr")
    assert done.returncode == 0
    assert "attempt 1 starts\nfactor: 4,000 rows" in done.stderr
    taken = served.tallgrass("submit", "job.yaml", "--wait", "--set", "output=followed.zarr")
    assert taken.returncode == 3
    assert "followed.zarr holds a result already" in taken.stderr
    short = served.tallgrass(
        "submit", "job.yaml", "--wait", "--set", "output=short.zarr", "--set", "require.condition_number=1"
    )
    assert short.returncode == 8
    assert "the certificate falls short: condition_number (scaled columns) is" in short.stderr
    assert (served.folder / "short.zarr").exists()


def test_data_that_is_missing_is_told_as_run_tells_it(served):
    done = served.tallgrass("submit", "job.yaml", "--wait", "--set", "matrix=nothing", "--set", "output=none.zarr")
    assert done.returncode == 4
    assert done.stderr.startswith(f"There is no Zarr array at {served.folder}/nothing: nothing is there.")
    assert "Traceback" not in done.stdout + done.stderr + served.said()


def test_a_wrong_job_file_never_reaches_the_server(served):
    done = served.tallgrass("submit", "job.yaml", "--set", "rdige=1")
    assert done.returncode == 2
    assert 'rdige: there is no such field. Did you mean "ridge"?' in done.stderr


@pytest.mark.slow
def test_several_values_make_a_job_for_each(served, client):
    done = served.tallgrass("submit", "job.yaml", "--set", "ridge=0.1,1,10", "--name", "sweep", "--wait")
    assert done.returncode == 0, done.stderr
    found = [client.job(job) for job in done.stdout.split()]
    assert [job.job["ridge"] for job in found] == [0.1, 1, 10]
    assert [os.path.basename(job.output) for job in found] == [f"x-ridge={r}.zarr" for r in ("0.1", "1", "10")]
    listed = json.loads(served.tallgrass("list", "--name", "sweep", "--json").stdout)["items"]
    assert [job["id"] for job in listed] == [job.id for job in found][::-1]


@pytest.mark.slow
def test_list_shows_a_line_for_each_job_and_pages(served):
    for number in range(3):
        served.tallgrass("submit", "job.yaml", "--name", "paged", "--set", f"output=paged-{number}.zarr", "--wait")
    done = served.tallgrass("list", "--name", "paged", "--limit", "2")
    assert done.stdout.splitlines()[0].split() == ["ID", "NAME", "KIND", "STATE", "SUBMITTED", "TOOK", "PROGRESS"]
    assert len(done.stdout.splitlines()) == 3
    cursor = re.fullmatch(r"next: tallgrass list --cursor (\d+)\n", done.stderr)[1]
    assert len(served.tallgrass("list", "--name", "paged", "--cursor", cursor).stdout.splitlines()) == 2
    assert served.tallgrass("list", "--name", "nobody").stdout == "no jobs\n"


def test_cancel_ends_a_job_that_runs_and_leaves_nothing(served, client, frozen):
    job = frozen("cancelled")
    late = served.tallgrass("wait", job, "--timeout", "0.1s")
    assert (late.returncode, late.stderr) == (6, f"Job {job} is still running after 0.1 s. It goes on by itself.\n")
    assert served.tallgrass("cancel", job).stdout == f"{job}  stopping\n"
    waited = served.tallgrass("wait", job)
    assert (waited.returncode, waited.stderr) == (7, f"Job {job} was cancelled.\n")
    assert not [path for path in served.folder.iterdir() if "cancelled" in path.name]
    assert client.cancel(job).state is State.CANCELLED


def test_a_job_in_which_nothing_moves_is_interrupted_and_goes_on_when_it_is_retried(served, client, frozen):
    job = frozen("stalled", patience="2s")
    done = served.tallgrass("wait", job)
    assert done.returncode == 9
    assert re.search(
        r"^Nothing has moved in the pass factor for [\d.]+ s: \d workers? running, .*; \d workers? not heard of: .* "
        rf"and run the job again: it goes on from what is kept\. Here that is `tallgrass retry {job}`\.$",
        done.stderr, re.MULTILINE,
    )  # fmt: skip
    found = client.job(job)
    assert (found.state, found.exit_code, found.error.kind) == (State.INTERRUPTED, 9, "Stalled")
    served.thaw_workers()
    assert client.retry(job).id == job
    assert client.wait(job).state is State.SUCCEEDED


def test_ctrl_c_while_following_detaches(served, client, frozen):
    job = frozen("left")
    command = [sys.executable, "-m", "workers.cli", "logs", "-f", job]
    environment = os.environ | {"TALLGRASS_SERVER": served.url}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().endswith("  attempt 1 starts\n")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert stderr == f"Job {job} goes on without us. To end it: tallgrass cancel {job}\n"
    assert client.job(job).state is State.RUNNING
    client.cancel(job)
    assert client.wait(job).state is State.CANCELLED


def test_retry_is_a_new_job_that_names_the_first(served, client):
    first = client.submit(job_of(served, "retried", matrix=str(served.folder / "nothing")))
    assert client.wait(first.id).state is State.FAILED
    done = served.tallgrass("retry", first.id)
    assert done.returncode == 0
    again = client.wait(done.stdout.strip())
    assert (again.retry_of, again.state) == (first.id, State.FAILED)


def test_a_report_is_one_file_that_tells_everything(served, client):
    job = client.submit(job_of(served, "reported"), name="<b>bold</b>")
    client.wait(job.id)
    done = served.tallgrass("report", job.id, "-o", "report.html")
    assert (done.returncode, done.stdout) == (0, "report.html\n")
    page = (served.folder / "report.html").read_text()
    for text in ("&lt;b&gt;bold", "exact least-squares solution", "backward error", "Planned, and what happened",
                 "verify", "kind: least_squares", "fingerprint", "numpy 2.", "attempt 1 starts",
                 "Memory: planned for at most"):  # fmt: skip
        assert text in page
    assert "<b>bold" not in page
    assert not re.search(r"(src|href)=|<script|url\(", page)
    failed = client.submit(job_of(served, "unreported", matrix=f"{served.folder}/nothing"))
    client.wait(failed.id)
    assert "There is no Zarr array at" in client.report(failed.id)
    assert "Planned, and what" not in client.report(failed.id)


def test_a_report_draws_singular_values(served, client):
    job = client.submit({"kind": "svd", "matrix": f"{served.folder}/A", "output": f"{served.folder}/drawn.zarr"})
    client.wait(job.id)
    page = client.report(job.id)
    assert "singular values, from the largest to the smallest" in page
    assert re.search('<polyline points="60.0,10.0 .* 410.0,190.0"', page)


def test_plan_asks_the_server(served, client):
    plan = client.plan(job_of(served, "planned"))
    assert (plan["workers"], plan["memory_bytes_per_worker"]) == (2, 512 * 2**20)
    done = served.tallgrass("plan", "job.yaml", "--server", served.url, "--json")
    assert json.loads(done.stdout)["workers"] == 2, done.stderr


def test_no_server_is_a_letter(served):
    url = f"http://127.0.0.1:{free_port()}"
    done = served.tallgrass("list", "--server", url)
    assert done.returncode == 5
    assert done.stderr.startswith(f"No server answers at {url} (")
    assert "Start one with `tallgrass serve`" in done.stderr


# The API


def test_the_same_key_submits_once_and_another_job_is_a_conflict(served, client):
    job = job_of(served, "keyed")
    first = client.submit(job, idempotency_key="k")
    assert client.submit(job, idempotency_key="k").id == first.id
    with pytest.raises(Conflict, match=f'key "k" was used for another request, which became job {first.id}'):
        client.submit(job_of(served, "other"), idempotency_key="k")
    body = {"job": job.model_dump(mode="json")}
    again = httpx.post(f"{served.url}/v1/jobs", json=body | {"name": None}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first.id)


def test_errors_are_problem_documents_with_the_letter(served, client):
    answer = httpx.get(f"{served.url}/v1/jobs/nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:tallgrass:NoSuchJob", "title": "There is no job of that id.", "status": 404, "exit_code": 2,
        "detail": 'There is no job "nothing". `tallgrass list` shows those that there are.',
    }  # fmt: skip
    with pytest.raises(NoSuchJob, match='There is no job "nothing"'):
        client.job("nothing")
    with pytest.raises(JobFileError, match=r'kind: found "qrr", no known kind\. Did you mean "qr"'):
        client.submit({"kind": "qrr", "output": "x"})
    for path, status in (("/nothing", 404), ("/v1/jobs?limit=0", 422), ("/v1/jobs?state=asleep", 422)):
        problem = httpx.get(f"{served.url}{path}").json()
        assert (problem["status"], set(problem)) == (status, {"type", "title", "status", "detail", "exit_code"})


def test_yaml_is_taken_as_text_and_its_traps_are_told(served):
    def submit(text):
        return httpx.post(f"{served.url}/v1/jobs", json={"yaml": text}).json()

    assert "a: &x [1]" not in submit("kind: svd\nmatrix: /A\noutput: /s\n").get("detail", "")
    for text, letter in (
        ("kind: svd\nmatrix: &a /A\noutput: *a\n", "found the anchor &a"),
        ("[" * 500, "found more than 20 levels of nesting"),
        ("kind: svd\nkind: qr\n", 'found "kind" a second time'),
        ("!!python/object/apply:os.system [ls]", "found the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("", "found an empty file"),
    ):
        assert letter in submit(text)["detail"]
    both = httpx.post(f"{served.url}/v1/jobs", json={"yaml": "a", "job": {}}).json()["detail"]
    assert both == "needed either `job` or `yaml`: one job, given once"


def test_a_request_that_is_too_large_is_refused_before_it_is_read(served):
    def endless():
        while True:
            yield b" " * 65536

    declared = httpx.post(f"{served.url}/v1/jobs", content=b" " * 3_000_000)
    assert (declared.status_code, declared.json()["status"]) == (413, 413)
    with suppress(httpx.WriteError):  # the server hangs up, and does not listen for ever
        streamed = httpx.post(f"{served.url}/v1/jobs", content=endless(), timeout=SECONDS)
        assert streamed.status_code == 413


def test_a_page_of_another_site_gets_nothing(served):
    answer = httpx.get(f"{served.url}/v1/jobs", headers={"Host": "attacker.example"})
    assert answer.status_code == 421
    assert "This server is not known as 'attacker.example'" in answer.json()["detail"]


@pytest.mark.parametrize("field", ["matrix", "rhs", "output", "weights"])
def test_nothing_outside_of_the_roots_is_read_or_written(served, client, field, tmp_path):
    (served.folder / "link").unlink(missing_ok=True)
    (served.folder / "link").symlink_to(tmp_path)
    for url in (str(tmp_path), f"{served.folder}/../elsewhere", f"{served.folder}/link/A", "s3://bucket/A",
                f"file://{tmp_path}"):  # fmt: skip
        with pytest.raises(PlanRefused, match=f"^{field}: .* is outside of what this server may read and write"):
            client.submit(job_of(served, "outside", **{field: url}))
    with pytest.raises(JobFileError, match='matrix: found the relative path "A"; needed an absolute one'):
        client._json("POST", "/v1/jobs", json={"job": {"kind": "svd", "matrix": "A", "output": "/s"}})


def test_an_operator_cannot_lead_outside_of_the_roots(served, client, tmp_path):
    outside = stored(tmp_path / "A", np.random.default_rng(1).standard_normal((50, 3)))
    from pipelines import Pseudoinverse, run

    run(Pseudoinverse(matrix=outside, output=str(served.folder / "op.zarr"), form="operator"))
    fields = {"kind": "apply", "operator": f"{served.folder}/op.zarr", "compute": ["leverage"]}
    job = client.submit(fields | {"output": f"{served.folder}/lev.zarr"})
    found = client.wait(job.id)
    assert (found.state, found.exit_code) == (State.FAILED, 3)
    assert "is outside of what this server may read and write" in found.error.message


def test_a_file_name_that_is_no_unicode_harms_nobody(served, client):
    import zarr

    zarr.create_group(served.folder / "odd")
    os.mkdir(os.fsencode(served.folder / "odd") + b"/x\xff")
    found = client.wait(client.submit({"kind": "svd", "matrix": f"{served.folder}/odd",
                                       "output": f"{served.folder}/odd.zarr"}).id)  # fmt: skip
    assert (found.state, found.exit_code) == (State.FAILED, 4)
    assert served.tallgrass("list").returncode == 0
    assert client.wait(client.submit(job_of(served, "after-odd")).id).state is State.SUCCEEDED


def test_odd_text_in_a_request_is_a_letter(served):
    def submit(body):
        answer = httpx.post(f"{served.url}/v1/jobs", content=body, headers={"content-type": "application/json"})
        return answer.status_code, answer.json()["detail"]

    assert submit(b'{"job": {"kind": "\\ud800"}}')[0] == 422
    assert submit(b'{"job": {"kind": "svd", "output": "/a\\u0000b"}}')[0] == 422
    assert submit(b'{"job": {"kind": ' + b"[" * 500 + b"]" * 500 + b"}}") == (
        422, "found more than 20 levels of nesting; a job has three or four"
    )  # fmt: skip
    long = json.dumps({"job": {"kind": "svd", "matrix": "/" + "x" * 2000, "output": "/x"}}).encode()
    assert submit(long) == (422, "matrix: found a place of 2,001 characters; needed at most 1,000")


@pytest.mark.slow
def test_odd_words_on_the_command_line_are_letters(served):
    for words, env, letter in (
        (["submit", "job.yaml", "--idempotency-key", "ключ"], {}, "An idempotency key is made of printable ASCII"),
        (["submit", "job.yaml", "--name", "x\udcff"], {}, "holds bytes that are no Unicode"),
        (["list"], {"TALLGRASS_TOKEN": "tg_a\nb"}, "TALLGRASS_TOKEN holds characters that no token has"),
        (["submit", "job.yaml", "--set", "ridge=0.1,0.1"], {}, "Two of these jobs would write to x-ridge=0.1.zarr"),
        (["serve", "--root", "/nowhere"], {}, "--root: there is no folder /nowhere"),
        (["serve", "--database", "sqlite://"], {}, "found a database in memory, which would forget"),
        (["serve", "--cert", "job.yaml", "--key", "job.yaml"], {}, "job.yaml are no certificate with its key"),
    ):
        done = served.tallgrass(*words, env=env)
        assert done.returncode == 2, done.stderr
        assert letter in done.stderr
        assert "tg_a" not in done.stderr


def test_what_was_submitted_is_told_when_the_rest_is_refused(served, tmp_path):
    with Served(tmp_path, "--most-open", "2") as small:
        (tmp_path / "job.yaml").write_text("kind: svd\nmatrix: A\noutput: s.zarr\n")
        stored(tmp_path / "A", np.ones((10, 2)))
        small.agent.suspend()
        done = small.tallgrass("submit", "job.yaml", "--set", "rtol=1e-1,1e-2,1e-3,1e-4")
        assert (done.returncode, len(done.stdout.split())) == (3, 2)
        assert "2 of your jobs are waiting or running, and this server takes at most 2" in done.stderr


def test_watching_ends_when_nobody_reads(served):
    command = f"{sys.executable} -m workers.cli list --watch | head -1"
    environment = os.environ | {"TALLGRASS_SERVER": served.url}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=SECONDS)
    assert done.stderr == b""


def test_the_log_is_followed_line_by_line(served, client):
    job = client.submit(job_of(served, "logged"))
    lines = list(client.follow(job.id))
    assert lines[0].text == "attempt 1 starts"
    assert lines == list(client.follow(job.id, until_over=False))
    assert [line.seq for line in lines] == sorted(line.seq for line in lines)


def test_metrics_count_what_was_done(served, client):
    def figures():
        text = httpx.get(f"{served.url}/metrics").text
        return dict(re.findall(r"^(tallgrass_\S+) (\S+)$", text, re.MULTILINE))

    before = figures()
    client.wait(client.submit(job_of(served, "counted")).id)
    after = figures()
    rise = {name: float(after[name]) - float(before[name]) for name in before}
    assert rise["tallgrass_submitted_total"] == rise["tallgrass_attempts_total"] == 1
    assert rise['tallgrass_jobs{state="succeeded"}'] == 1
    assert rise["tallgrass_passes_total"] == 2
    assert rise["tallgrass_bytes_read_total"] == 2 * 4000 * 8 * 8


def test_many_clients_at_once_lose_nothing(served, client):
    def work(number):
        with Client(served.url) as mine:
            return [mine.submit(job_of(served, f"many-{number}-{i}"), name="many").id for i in range(2)]

    with ThreadPoolExecutor(6) as pool:
        ids = [job for found in pool.map(work, range(6)) for job in found]
    assert len(set(ids)) == 12
    assert {client.wait(job).state for job in ids} == {State.SUCCEEDED}
    assert {job.id for job in client.jobs(name="many", limit=10)} == set(ids)
    assert all(client.job(job).attempt == 1 for job in ids)


def test_tasks_carry_the_name_of_the_job(served, client, frozen):
    from distributed import Client as Dask

    job = frozen("named", name="my job no. 7")
    address = client.server().clusters[0].address
    with Dask(address) as dask:

        def names(dask_scheduler):
            return list(dask_scheduler.task_groups)

        groups = wait_for(lambda: [name for name in dask.run_on_scheduler(names) if "my_job_no_7" in name])
    assert groups[0].startswith("my_job_no_7:factor")
    client.cancel(job)
    client.wait(job)


def test_the_python_of_the_readme_runs(served):
    block = re.search(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    (served.folder / "data").mkdir()
    for name in "Ab":
        (served.folder / "data" / name).symlink_to(served.folder / name)
    environment = os.environ | {"TALLGRASS_SERVER": served.url}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=served.folder, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("These coefficients are the exact least-squares solution")


# Who may do what


def test_a_server_for_others_needs_tokens_and_they_need_the_right_scope(served, tmp_path):
    database = f"sqlite:///{tmp_path}/queue.db"
    words = ["serve", "--host", "0.0.0.0", "--port", str(free_port()), "--state", str(tmp_path / "state")]
    refused = served.tallgrass(*words, "--database", database)
    assert refused.returncode == 3
    assert "At 0.0.0.0 other machines could submit jobs, and there is no token" in refused.stderr
    token = {}
    for scope in ("read", "submit"):
        done = served.tallgrass("token", "create", scope, "--scope", scope, "--database", database, "-q")
        token[scope] = done.stdout.strip()
    with Served(tmp_path, "--host", "0.0.0.0", "--database", database) as other:
        for value, status in (("x", 401), ("tg_x_y", 401), (token["read"] + "x", 401), (token["read"], 200)):
            headers = {"Authorization": f"Bearer {value}"}
            assert httpx.get(f"{other.url}/v1/jobs", headers=headers).status_code == status
        assert httpx.get(f"{other.url}/health").status_code == 200
        with Client(other.url, token["read"]) as reader, pytest.raises(ClusterUnreachable, match="may only read"):
            reader.cancel("abcdefgh")
        done = other.tallgrass("list", env={"TALLGRASS_TOKEN": token["submit"]})
        assert (done.returncode, done.stdout) == (0, "no jobs\n")
        listed = served.tallgrass("token", "list", "--database", database).stdout
        token_id = token["submit"].split("_")[1]
        assert token_id in listed
        assert token["submit"].split("_", 2)[2] not in listed + other.said()
        assert served.tallgrass("token", "revoke", token_id, "--database", database).returncode == 0
        assert other.tallgrass("list", env={"TALLGRASS_TOKEN": token["submit"]}).returncode == 5


def test_a_second_server_in_the_same_place_is_refused(served):
    words = ["serve", "--port", str(free_port()), "--state", str(served.folder / "state")]
    done = served.tallgrass(*words)
    assert done.returncode == 1
    assert f"Another server uses {served.folder}/state already" in done.stderr
    done = served.tallgrass("serve", "--port", str(served.port), "--state", str(served.folder / "another"))
    assert done.returncode == 2
    assert f"The server cannot listen at 127.0.0.1:{served.port}: Address already in use" in done.stderr


def test_damaged_data_is_found_by_the_service_too(served, client):
    at = served.folder / "damaged"
    stored(at, np.ones((100, 2)), (50, 2), compressors=[Crc32cCodec()])
    chunk = next(path for path in at.rglob("c/0/0"))
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    found = client.wait(client.submit({"kind": "svd", "matrix": str(at), "output": f"{served.folder}/d.zarr"}).id)
    assert (found.state, found.exit_code, found.error.kind) == (State.FAILED, 4, BadData.__name__)
    assert found.finished_at.timestamp() <= time.time()
