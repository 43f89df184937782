"""What the judge's server asks of every request. vLLM imports it by name; vLLM's own key guards some paths only."""

from __future__ import annotations

import os
import secrets
from typing import Any

from rl_lab.config.judge import JUDGE_KEY


class RequireKey:
    """ASGI middleware: 401 for what does not carry the header in the environment variable JUDGE_KEY, on every path."""

    def __init__(self, app: Any) -> None:
        self._app, self._wanted = app, os.environ[JUDGE_KEY].encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request, or the server's own start and end."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or secrets.compare_digest(given, self._wanted):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
