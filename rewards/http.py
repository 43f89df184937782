"""One JSON request over HTTP that ends by its deadline, from the standard library."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

MAX_RESPONSE_BYTES = 1 << 20


class StatusError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status {status}: {body[:200]}")
        self.status = status


def post_json(url: str, payload: Any, headers: Mapping[str, str], deadline: float) -> Any:
    """The decoded JSON reply to a POST, before `time.monotonic()` reaches `deadline`. No redirects, no proxies.

    User and password of the URL go into a header, and neither they nor a query or a key into an error.

    A socket's own time-out starts again with each byte, so a timer shuts the socket down at the deadline as well.
    Raises TimeoutError, StatusError, OSError (HTTP errors included), ValueError (reply too long or not JSON).
    """
    parts, place = _split(url)
    headers = _login(parts) | {"Content-Type": "application/json"} | dict(headers)
    hidden = _secrets(parts, headers)
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no time left")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=remaining)
    try:
        connection.connect()
        with _shut_down_at(connection.sock, deadline):
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, json.dumps(payload), headers)
            response = connection.getresponse()
            body = response.read(MAX_RESPONSE_BYTES + 1)
    except (OSError, HTTPException) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise TimeoutError(f"no reply from {place} in time") from error
        raise OSError(f"{place}: {type(error).__name__} {_without(hidden, str(error))}") from None
    finally:
        connection.close()
    if time.monotonic() >= deadline:
        raise TimeoutError(f"no complete reply from {place} in time")
    if response.status != 200:
        raise StatusError(response.status, _without(hidden, body.decode(errors="replace")))
    if len(body) > MAX_RESPONSE_BYTES:
        raise ValueError(f"the reply of {place} has more than {MAX_RESPONSE_BYTES} bytes")
    return json.loads(body)


def _split(url: str) -> tuple[SplitResult, str]:
    """The URL's parts, and host and port as errors may name them."""
    try:
        parts = urlsplit(url)
        return parts, f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"
    except ValueError:  # it quotes the URL
        text = "the address is no URL; a password in it must be percent-encoded"
        raise ValueError(text) from None


def _login(parts: SplitResult) -> dict[str, str]:
    """User and password as HTTP's basic authentication."""
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _secrets(parts: SplitResult, headers: Mapping[str, str]) -> list[str]:
    """What no error may show: the password, the query and its values, and the key."""
    password = parts.password or ""
    values = [value for _, value in parse_qsl(parts.query)]
    found = {parts.query, password, unquote(password), *values, headers.get("Authorization", "").rpartition(" ")[2]}
    return sorted(found - {""}, key=len, reverse=True)


def _without(hidden: Iterable[str], text: str) -> str:
    """A text of others, in which they may repeat what they were sent."""
    for secret in hidden:
        text = text.replace(secret, "***")
    return text


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
