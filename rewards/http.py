"""One JSON request over HTTP that ends by its deadline, from the standard library."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

MAX_RESPONSE_BYTES = 1 << 20


class StatusError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status {status}: {body[:200]}")
        self.status = status


def post_json(url: str, payload: Any, headers: Mapping[str, str], deadline: float) -> Any:
    """The decoded JSON reply to a POST, before `time.monotonic()` reaches `deadline`. No redirects, no proxies.

    A socket's own time-out starts again with each byte, so a timer shuts the socket down at the deadline as well.
    Raises TimeoutError, StatusError, OSError (HTTP errors included), ValueError (reply too long or not JSON).
    """
    parts = urlsplit(url)
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no time left")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=remaining)
    try:
        connection.connect()
        with _shut_down_at(connection.sock, deadline):
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, json.dumps(payload), {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            body = response.read(MAX_RESPONSE_BYTES + 1)
    except (OSError, HTTPException) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise TimeoutError(f"no reply from {parts.netloc} in time") from error
        raise OSError(f"{parts.netloc}: {type(error).__name__} {error}") from error
    finally:
        connection.close()
    if time.monotonic() >= deadline:
        raise TimeoutError(f"no complete reply from {parts.netloc} in time")
    if response.status != 200:
        raise StatusError(response.status, body.decode(errors="replace"))
    if len(body) > MAX_RESPONSE_BYTES:
        raise ValueError(f"the reply of {parts.netloc} has more than {MAX_RESPONSE_BYTES} bytes")
    return json.loads(body)


@contextlib.contextmanager
def _shut_down_at(connection: socket.socket, deadline: float) -> Iterator[None]:
    def shut_down() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
