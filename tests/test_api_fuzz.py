"""The HTTP API under requests that its own description makes up: no 5xx, nothing that it does not describe."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipelines.errors import JobFileError
from workers.api import SubmitRequest
from workers.entries import Submission
from workers.queue import Queue
from workers.server import Rules, Service, create_app

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def made(folder):
    """The application on a queue of its own, with a job in it."""
    queue = Queue(f"sqlite:///{folder}/queue.db")
    return create_app(queue, Rules(roots=("/data",), plan=lambda job: {"kind": job.kind})), queue


def test_every_answer_is_one_that_is_described(tmp_path_factory):
    app, queue = made(tmp_path_factory.mktemp("fuzz"))
    queue.submit(Submission({"kind": "svd", "matrix": "/data/A", "output": "/data/s"}, "one"))
    found = [operation.ok() for operation in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()]
    assert len(found) == 11
    for operation in found:
        fuzz(operation)
    queue.close()


def fuzz(operation):
    @given(operation.as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def one(case):
        if case.query and "wait" in case.query:
            case.query["wait"] = 0  # a request that may wait does
        case.call_and_validate(checks=CHECKS)

    one()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("[]{}:-&*!|>'\"%@`\\n\\t, ab1.~?#")))
def test_no_text_that_is_given_as_yaml_is_more_than_a_letter(text):
    """No text that can be found by chance is a job; each gets a letter about job.yaml, and no traceback."""
    with pytest.raises(JobFileError, match=r"^job\.yaml") as caught:
        Service(None, Rules()).job_in(SubmitRequest(yaml=text))
    assert "Traceback" not in str(caught.value)
