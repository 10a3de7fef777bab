"""A typed client of the service: what the command line does, from Python.

from workers import Client

client = Client()
job = client.submit(LeastSquares(matrix="/data/A", rhs="/data/b", output="/data/x"))
print(client.wait(job.id).summary["certificate"]["statement"])
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from pipelines.errors import ClusterUnreachable, JobFileError, TallgrassError, WaitTimedOut
from workers import api, trust
from workers.lifecycle import State
from workers.places import absolute

if TYPE_CHECKING:
    from pipelines.result import Result

DEFAULT_PORT = 8764
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
"""Where `tallgrass serve` listens unless it is told otherwise."""
ONE_WAIT = 30.0
"""Seconds that one request waits; longer waits are made of several."""
PATIENCE = 60.0
"""Seconds without a server after which a wait gives up: restarting one takes a few."""

Answer = TypeVar("Answer", bound=BaseModel)
Result_ = TypeVar("Result_")


class Client:
    """Speaks with a server; safe to use from many threads.

    Args:
        url: the server's address; TALLGRASS_SERVER when left out, or this machine's own.
        token: what a server that is open to others asks for; TALLGRASS_TOKEN when left out.
        ca: the file of the authority that signed an https server's certificate; TALLGRASS_CA when left out, or those
            that everybody trusts.
        timeout: seconds to wait for an answer.

    Raises (all methods):
        ClusterUnreachable: nobody answers, the token is not valid, or the server is not to be trusted.
        TallgrassError: what the server says, as the error that a local run would have raised.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, timeout: float = 30.0, *, ca: str | None = None
    ) -> None:
        self.url = (url or os.environ.get("TALLGRASS_SERVER") or DEFAULT_URL).rstrip("/")
        token = (token or os.environ.get("TALLGRASS_TOKEN") or "").strip()
        if not (token.isascii() and token.isprintable()):
            raise JobFileError("TALLGRASS_TOKEN holds characters that no token has. Set it to one line: tg_...")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        ca = ca or os.environ.get("TALLGRASS_CA")
        trusted = trust.context(ca) if ca and self.url.startswith("https://") else True
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=trusted)
        except (httpx.InvalidURL, ValueError) as error:
            raise JobFileError(f"{self.url} is no address of a server; needed http://host:port") from error

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        job: Any,
        *,
        name: str | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> api.JobDetails:
        """A job, queued.

        Args:
            job: a model (`LeastSquares(...)`), or what a job file says as a dict; relative paths start here.
            name: what to call it; the last part of its output when left out.
            priority: higher ones are taken first.
            idempotency_key: the same key with the same job gives the job that is there.  Without one, a key of its
                own makes sure that a connection that breaks does not submit it twice.
        """
        body = {"job": _described(job), "name": name, "priority": priority}
        _sendable(body)
        if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
            raise JobFileError("An idempotency key is made of printable ASCII characters.")
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._patient(lambda: self._ask("POST", "/v1/jobs", api.JobDetails, json=body, headers=headers), 3.0)

    def job(self, job: str, wait: float = 0.0) -> api.JobDetails:
        """A job by its id; with `wait`, when it is over or so many seconds have passed."""
        params = {"wait": min(wait, ONE_WAIT)}
        return self._ask("GET", f"/v1/jobs/{_word(job)}", api.JobDetails, params=params, timeout=wait + 30)

    def page(
        self,
        states: Sequence[State | str] = (),
        *,
        name: str | None = None,
        kind: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> api.Page:
        """Jobs, the newest first."""
        given = {"state": list(states), "name": name, "kind": kind, "limit": limit, "cursor": cursor}
        return self._ask("GET", "/v1/jobs", api.Page, params={k: v for k, v in given.items() if v is not None})

    def jobs(self, states: Sequence[State | str] = (), **selected: Any) -> Iterator[api.Job]:
        """All jobs of a selection, the newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self.page(states, cursor=cursor, **{"limit": api.MOST_LISTED} | selected)
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def wait(self, job: str, timeout: float | None = None) -> api.JobDetails:
        """The job once it is over; a server that restarts meanwhile is waited for.

        Raises:
            WaitTimedOut: it is not over after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = ONE_WAIT if end is None else max(0.0, min(ONE_WAIT, end - time.monotonic()))
            found = self._patient(lambda left=left: self.job(job, left))  # type: ignore[misc]
            if found.over:
                return found
            if end is not None and time.monotonic() >= end:
                raise WaitTimedOut(
                    f"Job {found.id} is still {found.state} after {timeout:.3g} s. It goes on by itself."
                )

    def log(self, job: str, after: int = 0, wait: float = 0.0) -> api.Log:
        """Lines of a job's log after number `after`."""
        params = {"after": after, "wait": min(wait, ONE_WAIT)}
        return self._ask("GET", f"/v1/jobs/{_word(job)}/log", api.Log, params=params, timeout=wait + 30)

    def follow(self, job: str, after: int = 0, *, until_over: bool = True) -> Iterator[api.LogLine]:
        """Lines of a job's log: those that there are, and (until it is over) each one as it comes."""
        while True:
            wait = ONE_WAIT if until_over else 0.0
            found = self._patient(lambda after=after, wait=wait: self.log(job, after, wait))  # type: ignore[misc]
            yield from found.lines
            if found.over or (not until_over and not found.lines):
                return
            after = found.lines[-1].seq if found.lines else after

    def cancel(self, job: str) -> api.JobDetails:
        """End a job; one that is over stays as it is."""
        return self._ask("POST", f"/v1/jobs/{_word(job)}/cancel", api.JobDetails)

    def retry(self, job: str) -> api.JobDetails:
        """An interrupted job queued again; of one that is over, a new one like it."""
        return self._ask("POST", f"/v1/jobs/{_word(job)}/retry", api.JobDetails)

    def result(self, job: str) -> "Result":
        """The stored result of a finished job, for a client that sees the same store.

        Raises:
            JobFileError: it has none, or not yet.
        """
        from pipelines.result import open_result

        found = self.job(job)
        if found.summary is None or found.output is None:
            raise JobFileError(f"Job {found.id} is {found.state} and has no result. `tallgrass status {found.id}`")
        return open_result(found.output, found.job.get("storage_options"))

    def report(self, job: str) -> str:
        """A page of HTML about a job, which needs no network."""
        return self._request("GET", f"/v1/jobs/{_word(job)}/report").text

    def plan(self, job: Any) -> dict[str, Any]:
        """What a job would cost on the server's cluster."""
        return self._json("POST", "/v1/plans", json={"job": _described(job)})

    def server(self) -> api.ServerReport:
        """What the server is, and how its clusters are."""
        return self._ask("GET", "/v1/server", api.ServerReport)

    def _patient(self, ask: Callable[[], Result_], seconds: float = PATIENCE) -> Result_:
        """Ask again while nobody answers: the server may be restarting."""
        end = time.monotonic() + seconds
        while True:
            try:
                return ask()
            except ClusterUnreachable as error:
                if type(error) is not ClusterUnreachable or time.monotonic() > end:
                    raise
                time.sleep(0.3)

    def _ask(self, method: str, path: str, model: type[Answer], **options: Any) -> Answer:
        try:
            return model.model_validate(self._json(method, path, **options))
        except ValidationError as error:
            raise ClusterUnreachable(
                self._not_ours(f"a field {error.errors()[0]['loc']} is not as expected")
            ) from error

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise ClusterUnreachable(self._not_ours(f"status {response.status_code}, and no JSON")) from error

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise trust.mistrust(self.url, error) or ClusterUnreachable(
                f"No server answers at {self.url} ({why}). Start one with `tallgrass serve`, or name it with --server "
                "or TALLGRASS_SERVER."
            ) from error
        if response.is_error:
            raise self._error_in(response)
        return response

    def _error_in(self, response: httpx.Response) -> TallgrassError:
        try:
            return api.error_of(api.Problem.model_validate_json(response.content))
        except ValidationError:
            return ClusterUnreachable(self._not_ours(f"status {response.status_code}"))

    def _not_ours(self, why: str) -> str:
        return f"What answers at {self.url} is no server of Tallgrass, or one of another version ({why})."


def _word(job: str) -> str:
    """An id as part of a path: what could not be one is told before it is asked for."""
    if not job.isalnum():
        raise JobFileError(
            f'There is no job "{job[:40]}": an id is ten letters and digits. `tallgrass list` shows them.'
        )
    return job


def _described(job: Any) -> dict[str, Any]:
    """A job as JSON, with absolute paths."""
    document = job.model_dump(mode="json") if isinstance(job, BaseModel) else dict(_mapping(job))
    return absolute(document)


def _sendable(body: Any) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise JobFileError(
            f"A name or a path holds bytes that are no Unicode ({error.object[error.start : error.end]!r}). Rename it."
        ) from None


def _mapping(job: Any) -> Mapping[str, Any]:
    if not isinstance(job, Mapping):
        raise JobFileError(f"found a job of type {type(job).__name__}; needed a model such as LeastSquares, or a dict")
    return job
