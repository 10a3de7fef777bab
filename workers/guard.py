"""What stands before the routes: who is addressed, how much is sent, and one shape for every error."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.errors import JobFileError, RunFailed, TallgrassError
from workers import api
from workers.database import readable

MOST_BYTES = 2 * 2**20
"""Of a request: a job file of the largest size, twice."""
PROBLEM: dict[str, Any] = {
    "description": "The letter that the command line shows",
    "content": {"application/problem+json": {"schema": api.Problem.model_json_schema()}},
}
"""An error, as OpenAPI describes it."""


def answer_errors(app: FastAPI) -> None:
    """Every error in one shape."""

    @app.exception_handler(TallgrassError)
    async def ours(_: Request, error: TallgrassError) -> Response:
        return _answer(api.problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _answer(api.problem_of(JobFileError("\n".join(map(_fault, error.errors()))), 422))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        problem = api.problem_of(JobFileError(f"{error.detail}. What there is stands in /openapi.json."))
        return _answer(problem.model_copy(update={"status": error.status_code}), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        letter = f"The server did not foresee this: {type(error).__name__}. Its log has the details; please report it."
        return _answer(api.problem_of(RunFailed(letter), 500))


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path", "header"))
    return f"{place or 'the request'}: {fault['msg']}"


def _answer(problem: api.Problem, headers: Any = None) -> Response:
    more = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    problem = problem.model_copy(update={"detail": readable(problem.detail)})
    return JSONResponse(
        problem.model_dump(), problem.status, {**(headers or {}), **more}, media_type="application/problem+json"
    )


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]+))(?::\d{1,5})?")
"""A Host header: an address or a name, with or without a port."""


class Guard:
    """Before anything else: who is addressed, and how much is sent."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refused(headers):
            await refused(scope, receive, send)
            return
        await self._limited(scope, receive, send)

    def _refused(self, headers: dict[str, str]) -> Response | None:
        host = _HOST.fullmatch(headers.get("host", "").lower())
        if self.hosts is not None and (host is None or (host[1] or host[2]) not in self.hosts):
            known = ", ".join(dict.fromkeys(self.hosts))
            letter = f"This server is not known as {headers.get('host', '')[:100]!r}. Use one of: {known}"
            return _answer(api.problem_of(JobFileError(letter), 421))
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MOST_BYTES:
            return _too_large()
        return None

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a body that is there as a whole, or an answer that it is too large."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MOST_BYTES:
                await _too_large()(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def _too_large() -> Response:
    letter = (
        f"The request is larger than {MOST_BYTES:,} bytes; a job file has a few hundred. Name arrays by their place."
    )
    return _answer(api.problem_of(JobFileError(letter), 413), {"Connection": "close"})  # the rest is not waited for
