"""Stores that throttle, fail, stall and drop connections: asked again until they answer, or told of in one letter."""

import time

import numpy as np
import pytest
import zarr

from pipelines import LeastSquares, Pseudoinverse, open_result, run
from pipelines.addresses import Address
from pipelines.errors import BadData, PlanRefused, RunFailed
from pipelines.storage import Staging, Writer, array_names, clean, copy_result
from pipelines.storage.answers import letter_of, may_pass
from pipelines.storage.arrays import open_store
from tests.faulty import FaultyStore, first

PASSING = [
    ("SlowDown", "half"),
    *(pytest.param(pair, marks=pytest.mark.slow)
      for pair in [("drop", "stall"), ("InternalError", "late"), ("TooManyRequests", "TooManyRequests")]),
]  # fmt: skip
"""What a store or a network does for a while, to each object in turn."""


@pytest.fixture
def faulty(remote, moto, monkeypatch):
    """The way to the bucket of `remote`, through a proxy that fails as it is told."""
    monkeypatch.setattr("pipelines.storage.objects.FIRST_WAIT", 0.05)  # tests wait for less, and as often
    with FaultyStore(moto, stall_seconds=0.7) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


QUICK = {"read_timeout": "300ms"}
HASTY = {"read_timeout": "200ms", "retry_timeout": "1s"}


@pytest.mark.parametrize("faults", PASSING)
def test_a_job_on_a_store_that_fails_for_a_while_gives_the_bits_of_one_that_does_not(faulty, remote, faults):
    plain = run(LeastSquares(**remote.fields, output=f"{remote.bucket}/plain"))
    faulty.rule = first(2, *faults)
    faulty.requests.clear()
    result = run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out", storage_options=QUICK))
    assert result.x.tobytes() == plain.x.tobytes()
    chunks = {path for _, path in faulty.requests if "/data/A/c/" in path}
    assert len(chunks) == 6
    for fault in faults:
        assert faulty.faults["GET", fault] >= len(chunks)
        assert faulty.faults["PUT", fault] >= len(result.arrays)
    faulty.rule = first(0, "drop")
    again = open_result(f"{remote.bucket}/out")
    assert again["x"].tobytes() == plain.x.tobytes()
    assert again.names == sorted(result.arrays)


@pytest.mark.slow
def test_workers_ask_again_for_reads_and_for_writes(faulty, remote, command):
    faulty.rule = first(2, "SlowDown", "half")
    job = {"kind": "pseudoinverse", "matrix": remote.fields["matrix"], "output": f"{remote.bucket}/pinv"}
    done = command("run", "job.yaml", job=job)
    assert done.returncode == 0, done.stderr
    assert faulty.faults["PUT", "SlowDown"] > 6  # a chunk of the result for each of the matrix, and what is beside it
    assert faulty.faults["GET", "half"] > 6
    expected = run(Pseudoinverse(matrix=remote.A))
    np.testing.assert_array_equal(open_result(f"{remote.bucket}/pinv")["pinv"], expected["pinv"])


def test_every_kind_of_request_is_repeated_when_its_answer_breaks(faulty, remote, tmp_path):
    url = f"{remote.bucket}/out"
    large = np.random.default_rng(0).standard_normal(1_500_000)  # 12 MB: written in parts
    faulty.rule = first(1, "half")
    for _ in range(2):  # the second replaces, so it lists and removes
        staging = Staging(url, Writer("0123456789ab"), overwrite=True)
        staging.put("x", large, ("column",))
        staging.commit({"tallgrass": {"schema": "result/1"}})
        faulty.requests.clear()
    assert {method for method, _ in faulty.faults} >= {"GET", "PUT", "POST"}
    assert array_names(url) == ["x"]
    faulty.requests.clear()
    copy_result(url, f"{tmp_path}/copy")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "copy" / "x")[...], large)


@pytest.mark.slow
def test_shards_are_read_over_a_line_that_drops(faulty, remote, store):
    url = f"{remote.bucket}/shards"
    store(open_store(url), remote.A, (5, 3), shards=(20, 3))
    faulty.requests.clear()
    faulty.rule = first(2, "half", "drop")
    result = run(LeastSquares(**remote.fields | {"matrix": url}))
    np.testing.assert_array_equal(result.x, run(LeastSquares(**remote.fields)).x)
    assert faulty.faults["GET", "half"] > 3


@pytest.mark.parametrize("number", range(1, 40, 3))
def test_a_run_whose_nth_request_fails_for_good_leaves_nothing_that_can_be_opened(faulty, remote, number):
    url, seen = f"{remote.bucket}/out", []

    def rule(method, path, _):
        seen.append(path)
        return "AccessDenied" if number <= len(seen) < number + 1 else None

    faulty.rule = rule
    try:
        run(LeastSquares(**remote.fields, output=url))
    except (BadData, PlanRefused, RunFailed) as error:
        assert "AccessDenied" in str(error) or "403 Forbidden" in str(error)  # noqa: PT017  # or it went well
        faulty.rule = first(0, "drop")
        with pytest.raises(BadData, match="There is no result at"):
            open_result(url)
        run(LeastSquares(**remote.fields, output=url, overwrite=True))
    np.testing.assert_allclose(open_result(url).x, remote.x, rtol=1e-12)


# Giving up


def failing(faulty, fault, part="/c/"):
    """From now on requests for such objects fail."""
    faulty.rule = lambda method, path, number: fault if part in path else None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("SlowDown", r"the store answered 503 Service Unavailable, SlowDown, This is SlowDown \(\d+ times in .*\)\. R"),
        ("InternalError", r"the store answered 500 Internal Server Error, .* \(\d+ times in .*\)\. Check its address"),
        ("drop", r"the store cannot be reached: the connection was dropped \(\d+ times in .*\)\. Check its address"),
        ("half", r"the store cannot be reached: the connection was dropped \(.* s\)\. Check its address"),
        ("stall", r"the store cannot be reached: it did not answer in time \(.* s\)\."),
        ("late", r"the store cannot be reached: it did not answer in time \(\d+ times in .* s\)\."),
    ],
)  # fmt: skip
def test_a_store_that_fails_for_good_is_given_up_with_what_it_said_and_how_often(faulty, remote, fault, said):
    failing(faulty, fault)
    with pytest.raises(BadData, match=rf"^The chunk s3://.*/data/[Ab]/c/\S+ cannot be read: {said}"):
        run(LeastSquares(**remote.fields, storage_options=HASTY))


@pytest.mark.parametrize("fault", ["SlowDown", "drop", "late"])
@pytest.mark.slow
def test_an_output_that_cannot_be_written_for_good_is_given_up_and_can_be_gone_on_with(faulty, remote, fault):
    failing(faulty, fault, "/out/x/")
    with pytest.raises(
        RunFailed, match=r"^The output s3://.*/out cannot be written: the store .* \(\d+ times in .* s\)"
    ):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out", storage_options=HASTY))
    faulty.rule = first(0, fault)
    assert "zarr.json" not in open_store(f"{remote.bucket}/out").names()
    done = run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out", storage_options=HASTY))
    assert done.summary["resumed_spans"] == 2 * done.summary["plan"]["spans"]
    np.testing.assert_allclose(done.x, remote.x, rtol=1e-12)


def test_a_job_says_how_long_to_go_on_asking(faulty, remote):
    failing(faulty, "SlowDown")
    began = time.monotonic()
    with pytest.raises(BadData, match="SlowDown"):
        run(LeastSquares(**remote.fields, storage_options={"retry_timeout": 0}))
    assert time.monotonic() - began < 3


# Credentials

DENIED = {
    "ExpiredToken": r"400 Bad Request, ExpiredToken, This is ExpiredToken\. Renew the credentials \(AWS_ACCESS_KEY_ID, "
    r"AWS_SECRET_ACCESS_KEY and, where they have one, AWS_SESSION_TOKEN\) where the job and its workers run, and run "
    r"the job again\.",
    "InvalidAccessKeyId": r"403 Forbidden, InvalidAccessKeyId, .*\. It does not know these credentials: check AWS_ACC",
    "SignatureDoesNotMatch": r"403 Forbidden, Sig.*\. The secret does not belong to the key: check AWS_ACCESS_KEY_ID, ",
    "AccessDenied": r"403 Forbidden, AccessDenied, .*\. What was given does not allow this: ask its owner for",
}
"""What is said of each refusal."""


@pytest.mark.parametrize("code", DENIED)
def test_credentials_that_the_store_refuses_are_told_at_once(faulty, remote, code):
    failing(faulty, code, "/data/A/")
    began = time.monotonic()
    with pytest.raises(BadData, match=rf"^s3://.*/data/A cannot be read: the store answered {DENIED[code]}"):
        run(LeastSquares(**remote.fields))
    failing(faulty, code, "/out/")
    with pytest.raises(
        PlanRefused, match=rf"^The output s3://.*/out cannot be written: the store answered {DENIED[code]}"
    ):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out"))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("code", DENIED)
def test_credentials_that_end_in_the_middle_of_a_run_are_told_at_once(faulty, remote, code):
    failing(faulty, code, "/data/A/c/")
    began = time.monotonic()
    with pytest.raises(
        BadData, match=rf"^The chunk s3://.*/A/c/\d/0 cannot be read: the store answered {DENIED[code]}"
    ):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out"))
    failing(faulty, code, "/out/x/c")
    with pytest.raises(
        RunFailed, match=rf"^The output s3://.*/out cannot be written: the store answered {DENIED[code]}"
    ):
        run(LeastSquares(**remote.fields, output=f"{remote.bucket}/out"))
    assert time.monotonic() - began < 5
    assert clean(f"{remote.bucket}/out") != []
    assert not [name for name in open_store(remote.bucket).names() if not name.startswith("data/")]


@pytest.mark.parametrize("asked", ["PUT http://169.254.169.254/latest/api", "GET http://metadata.google.internal/c"])
def test_a_machine_without_credentials_is_told_where_they_are_looked_for(asked):
    said = f"Generic S3 error: Error performing {asked} in 1.2s, after 10 retries - HTTP error: error sending request"
    assert not may_pass(said)
    assert letter_of(Address("gs://b/A"), said, 11, 1.2) == (
        "no credentials were found (11 times in 1.2 s). Set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT "
        "where the job and its workers run, or, for what is public, storage_options: {skip_signature: true}."
    )


def test_an_answer_to_head_gives_the_reason_that_only_get_would_give(faulty, remote):
    faulty.rule = lambda method, path, number: (
        "ExpiredToken" if "/A/c/" in path and faulty.requests["GET", path] else None
    )
    with pytest.raises(BadData, match=rf"the store answered {DENIED['ExpiredToken']}"):
        run(LeastSquares(**remote.fields))


@pytest.mark.slow
def test_a_command_says_that_credentials_have_expired_in_one_line(faulty, remote, command):
    failing(faulty, "ExpiredToken")
    done = command("run", "job.yaml", job=remote.fields | {"output": f"{remote.bucket}/out"})
    assert done.returncode == 4
    assert "ExpiredToken, This is ExpiredToken. Renew the credentials" in done.stderr
    assert "Traceback" not in done.stderr
