"""A judge of the run's own: vLLM's OpenAI-compatible server, kept running by an actor.

The server asks every request for a key: vLLM's own guards some paths only. vLLM imports `RequireKey` by name.
"""

from __future__ import annotations

import base64
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import IO, Any

import ray

from rl_lab.config.language import JUDGE_KEY, JUDGE_MODEL, JudgeServerConfig
from rl_lab.workers.connection import LOOPBACK
from rl_lab.workers.engine import ENVIRONMENT


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


MAX_RESTARTS = 20
"""A server that keeps dying (out of memory) must not be started for ever."""

_PR_SET_PDEATHSIG = 1


class JudgeServer:
    """An actor with the server as its child: it starts it again, at the same address, and takes it along when it ends.

    What is asked meanwhile is asked again by the judge's client (`rewards.judge.retries`), or masked. It answers only
    who has its key, and on loopback where the driver, whose node's address is given, is on the same machine.
    """

    def __init__(self, settings: JudgeServerConfig, driver: str) -> None:
        here = ray.util.get_node_ip_address()
        self.settings, self.host = settings, LOOPBACK if here == driver else here
        self.login = f"judge:{secrets.token_hex(32)}"
        self.header = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        self.log: IO[bytes] = tempfile.NamedTemporaryFile(prefix="rl-lab-judge-", suffix=".log")  # noqa: SIM115 - for life
        self._answered, self._began = False, threading.Event()
        # The thread that starts the server stays: its end would be the parent's as far as the server can tell.
        threading.Thread(target=self._keep_running, daemon=True).start()
        self._began.wait()

    def address(self) -> str:
        """With user and password, once the server answers. RuntimeError if it ends before, or never answers."""
        deadline = time.monotonic() + self.settings.start_timeout_s
        health = urllib.request.Request(
            f"http://{self.host}:{self.port}/health", headers={"Authorization": self.header}
        )
        while time.monotonic() < deadline:
            if self.server.poll() is not None:
                raise RuntimeError(f"the judge of {self.settings.path} ended: {self._last_words()}")
            try:
                with urllib.request.urlopen(health, timeout=5):
                    self._answered = True
                    return f"http://{self.login}@{self.host}:{self.port}/v1"
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"the judge of {self.settings.path} did not answer in {self.settings.start_timeout_s:g} s")

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self.settings
        options = {
            "host": self.host,
            "port": self.port,
            "middleware": f"{RequireKey.__module__}.{RequireKey.__name__}",
            "served-model-name": JUDGE_MODEL,
            "dtype": settings.dtype,
            "max-model-len": settings.max_model_len,
            "max-num-seqs": settings.max_num_seqs,
            "kv-cache-memory-bytes": int(settings.kv_cache_gib * 2**30),
            # small models would write blanks for ever where JSON allows them
            "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
        }
        pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return subprocess.Popen(
            [Path(sys.executable).with_name("vllm"), "serve", settings.path, *pairs],
            env=os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", JUDGE_KEY: self.header},
            stdout=self.log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )

    def _keep_running(self) -> None:
        for _ in range(1 + MAX_RESTARTS):
            self.server = self._start()
            self._began.set()
            self.server.wait()
            if not self._answered:
                return  # what did not start once will not start the next time

    def _last_words(self) -> str:
        lines = Path(self.log.name).read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if "Error" in line), "see vLLM's requirements")


def _end_with_parent() -> None:
    """In the child: a signal when the actor ends, however it does, upon which vLLM ends its own processes too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
