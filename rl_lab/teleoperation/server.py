"""The page of a correction session, on a port of this machine alone.

`GET /` the page; `GET /picture` the scene, PNG; `POST /press` with {"key": NAME} presses a key, {} none; both answer
with the session's status. Each connection has a thread that reads its request, within REQUEST_S; what the session is
asked is done in the thread that calls `run`, one thing at a time: a simulator's graphics belong to one thread.

Only pages of this address are answered.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from queue import SimpleQueue
from typing import Any

from rl_lab.common.errors import UserError
from rl_lab.common.listening import ADDRESS, NOT_OURS, SEND_S, BoundedClients, PageHandler
from rl_lab.common.reading import parse_json
from rl_lab.teleoperation.session import CorrectionSession

LONGEST_BODY = 1000
PAGE = "page.html"


class _Request:
    """Something asked of the session by a connection's thread."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.result: Future[Any] = Future()
        self.answered = threading.Event()

    def do(self) -> None:
        """The work; what it raises goes to both threads."""
        try:
            self.result.set_result(self._work())
        except BaseException as error:
            self.result.set_exception(error)
            raise


class PageServer(BoundedClients, HTTPServer):
    """Serves one session; OSError for a port that cannot be had."""

    full = b"HTTP/1.0 503 too many connections\r\n\r\n"

    def __init__(self, session: CorrectionSession, port: int) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.session = session
        self.page = files("rl_lab.teleoperation").joinpath(PAGE).read_bytes()
        self.requests: SimpleQueue[_Request] = SimpleQueue()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{ADDRESS}:{self.server_address[1]}"

    def run(self) -> None:
        """Serve until the session is over and the page has heard of it. What the session raises ends it, too."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        request = None
        try:
            while not self.session.status()["over"]:
                request = self.requests.get()
                request.do()
        finally:
            self.shutdown()
            if request is not None:
                request.answered.wait(SEND_S)


class _Handler(PageHandler, BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self.is_ours():
            self.answer(403, "text/plain", NOT_OURS)
        elif path == "/":
            self.answer(200, "text/html; charset=utf-8", self.server.page)
        elif path == "/picture":
            self._ask(self.server.session.picture, lambda png: ("image/png", png))
        else:
            self.answer(404, "text/plain", b"there is / and /picture\n")

    def do_POST(self) -> None:
        # Pages of other sites can send no JSON here without asking first, and asking is not answered.
        if not self.is_ours():
            self.answer(403, "text/plain", NOT_OURS)
            return
        if self.path != "/press" or self.headers.get_content_type() != "application/json":
            self.answer(404, "text/plain", b"POST JSON to /press\n")
            return
        try:
            key = self._body().get("key")
            if not isinstance(key, str | None):
                raise UserError("key must be text")
        except (UserError, OSError):
            self.answer(400, "text/plain", b'expected {"key": NAME}\n')
            return
        session = self.server.session
        work = session.status if key is None else lambda: session.press(key)
        self._ask(work, lambda status: ("application/json", json.dumps(status).encode()))

    def _body(self) -> dict[str, Any]:
        """The JSON object sent. UserError for anything else, OSError for one that does not arrive in time."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 10 and int(length) <= LONGEST_BODY):
            raise UserError(f"Content-Length must be a number up to {LONGEST_BODY}")
        row = parse_json(self.rfile.read(int(length)), "the request")
        if not isinstance(row, dict):
            raise UserError("the request is no JSON object")
        return row

    def _ask(self, work: Callable[[], Any], shown: Callable[[Any], tuple[str, bytes]]) -> None:
        """Answer with what the session gives, as content type and bytes."""
        request = _Request(work)
        self.server.requests.put(request)
        try:
            kind, body = shown(request.result.result())
            code = 200
        except BaseException as error:  # noqa: BLE001 - `run` raises it; the page is to hear of it
            code, kind, body = 500, "text/plain", f"{type(error).__name__}: {error}\n".encode()
        try:
            self.answer(code, kind, body)
        finally:
            request.answered.set()
