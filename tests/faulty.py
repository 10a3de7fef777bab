"""A proxy in front of a store that speaks HTTP: it fails as stores and networks fail, by a rule that a test gives."""

import http.client
import http.server
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

CODES = {"SlowDown": 503, "InternalError": 500, "TooManyRequests": 429, "ExpiredToken": 400,
         "InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403, "AccessDenied": 403}  # fmt: skip
"""The statuses with which S3 says these."""

Rule = Callable[[str, str, int], str | None]
"""From method, path and how many such requests came before: one of CODES, drop, half, stall, late, or None for none."""


def first(count: int, *faults: str) -> Rule:
    """The first requests for each object fail, by these faults in turn."""
    return lambda method, path, number: faults[number % len(faults)] if number < count else None


class FaultyStore:
    """The proxy, while it is entered; `rule` may be changed meanwhile, `faults` counts what was done to whom."""

    def __init__(self, behind: str, stall_seconds: float = 3) -> None:
        self.rule: Rule = lambda method, path, number: None
        self.stall_seconds = stall_seconds
        self.requests: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[tuple[str, str]] = Counter()
        """By method and fault."""
        self._behind, self._lock = urlsplit(behind).netloc, threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"store": self}))

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyStore":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str) -> str | None:
        """What is done to this request."""
        path = path.partition("?")[0]
        with self._lock:
            number = self.requests[method, path]
            self.requests[method, path] += 1
            if (fault := self.rule(method, path, number)) is not None:
                self.faults[method, fault] += 1
            return fault

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[Any, bytes]:
        """What the store behind answers."""
        connection = http.client.HTTPConnection(self._behind, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, *_: object) -> None:
        """A client that went away is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: FaultyStore

    def handle_one_request(self) -> None:
        """Take a request, do what the rule says, and answer."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.store.fault(self.command, self.path)
        if fault in CODES:
            self._say(fault)
        elif fault == "drop":
            self._hang_up()
        else:
            if fault == "late":
                time.sleep(self.store.stall_seconds)
            self._pass_on(body, fault)

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        answer, content = self.store.forward(self.command, self.path, body, dict(self.headers))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault in ("half", "stall"):
            self.wfile.write(content[: len(content) // 2])
            time.sleep(self.store.stall_seconds if fault == "stall" else 0)
            self._hang_up()
        else:
            self.wfile.write(content)

    def _say(self, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>This is {code}.</Message></Error>".encode()
        self.send_response(CODES[code])
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Keep silent."""
