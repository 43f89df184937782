"""The page of a correction session, on a port of this machine alone.

`GET /` the page; `GET /picture` the scene, PNG; `POST /press` with {"key": NAME} presses a key, {} none; both answer
with the session's status. One request at a time, in the thread that calls `serve_forever`: a simulator's graphics
belong to one thread.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any, Protocol

ADDRESS = "127.0.0.1"
LONGEST_BODY = 1000
PAGE = "page.html"


class Session(Protocol):
    """What the page shows; see `rl_lab.teleoperation.session`."""

    def press(self, key: str) -> dict[str, Any]: ...

    def status(self) -> dict[str, Any]: ...

    def picture(self) -> bytes: ...


class PageServer(HTTPServer):
    """Serves one session; OSError for a port that cannot be had."""

    def __init__(self, session: Session, port: int) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.session = session
        self.page = files("rl_lab.teleoperation").joinpath(PAGE).read_bytes()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{ADDRESS}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, "text/html; charset=utf-8", self.server.page)
        elif path == "/picture":
            self._answer(200, "image/png", self.server.session.picture())
        else:
            self._answer(404, "text/plain", b"there is / and /picture\n")

    def do_POST(self) -> None:
        # Pages of other sites can send no JSON here without asking first, and asking is not answered.
        if self.path != "/press" or self.headers.get_content_type() != "application/json":
            self._answer(404, "text/plain", b"POST JSON to /press\n")
            return
        try:
            length = int(self.headers.get("Content-Length") or 0)
            row = json.loads(self.rfile.read(min(length, LONGEST_BODY)))
            key = str(row["key"]) if "key" in row else None
        except (ValueError, TypeError):
            self._answer(400, "text/plain", b'expected {"key": NAME}\n')
            return
        session = self.server.session
        status = session.status() if key is None else session.press(key)
        self._answer(200, "application/json", json.dumps(status).encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a key would bury what matters."""
