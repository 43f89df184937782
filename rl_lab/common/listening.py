"""Servers on a port of this machine: so many clients at a time, and none may take for ever over a request."""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

ADDRESS = "127.0.0.1"
SEND_S = 30.0
"""For taking an answer."""
_LINGER_S = 5.0


class BoundedClients(socketserver.ThreadingMixIn):
    """Mixin of a `socketserver.TCPServer`: a thread for each client; those above `max_clients` get `full` alone."""

    daemon_threads = True
    max_clients = 16
    full = b""

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(self.max_clients)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the client's thread, or turn it away."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.setblocking(False)
            with contextlib.suppress(OSError):
                request.send(self.full)
            self.shutdown_request(request)  # type: ignore[attr-defined]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The client's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error; anything else is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[misc]


def receiver(connection: socket.socket, seconds: float) -> Callable[[int], bytes]:
    """`recv` of a connection whose calls have `seconds` from now for all together; TimeoutError past them."""
    deadline = time.monotonic() + seconds

    def receive(size: int) -> bytes:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        return connection.recv(size)

    return receive


def send(connection: socket.socket, data: bytes) -> bool:
    """Send all of an answer; False for a client that has gone or does not take it."""
    connection.settimeout(SEND_S)
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def hang_up(connection: socket.socket) -> None:
    """End our side, and drop what still comes for a moment: a reset would overtake the refusal sent last."""
    receive = receiver(connection, _LINGER_S)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while receive(1 << 20):
            pass


HOSTS = (ADDRESS, "localhost")
"""Names under which a browser finds a page; the port may be that of a tunnel."""
REQUEST_S = 10.0
"""For sending a request."""
NOT_OURS = f"only pages of http://{ADDRESS} and http://localhost are answered\n".encode()


class PageHandler(BaseHTTPRequestHandler):
    """Answers a browser on this machine: each request within REQUEST_S, and only for pages of this address.

    A page of another site whose name was made to point here (DNS rebinding) says so in Host, one that posts across
    sites in Origin.
    """

    def setup(self) -> None:
        """Read with a deadline."""
        super().setup()
        self.rfile = io.BufferedReader(_Timed(receiver(self.connection, REQUEST_S)))

    def is_ours(self) -> bool:
        """Whether the browser asks by a name of this machine, from no page or from ours."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return host.partition(":")[0].lower() in HOSTS and origin in (None, f"http://{host}")

    def answer(self, code: int, kind: str, body: bytes) -> None:
        """The whole answer, never kept by the browser."""
        self.connection.settimeout(SEND_S)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a request would bury what matters."""


class _Timed(io.RawIOBase):
    """A stream of what `receive` gives."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)
