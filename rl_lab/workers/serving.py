"""A policy behind a socket on this machine: observations in, chunks of actions out. Protocol version 1.

Frames are those of `envs.robotwin.protocol` (JSON with arrays beside it, no pickle); a client asks {"id", "method",
"params"} and gets {"id", "result"} or {"id", "error": {"kind", "message", "detail"}}. Methods:

hello {version}  -> {version, action: "ee", commands: H, memory: {frames: K, interval}, image_size, weight_version,
                     layout: {numbers, action_dim: A, state_dim: S, cameras: [V names]}}
act {images, pose, instruction, key}  -> {chunk: float64 [H, A]}

`images` are uint8 [V, H, W, 3] or [V, K, H, W, 3] in the order of the layout's cameras (of two arms head, left, right),
the present frame last, those from before the episode black; up to 1920 x 1080: they are scaled to fit and centred on
black. `pose` is the measured state [S], of two arms their `ee` pose [16]; `action` is the layout's `numbers`. `key`
[episode, decision] addresses the policy's noise: equal requests give equal chunks, in any order, from any client. Kinds
of errors: "protocol" (no message of this version, or one larger than an observation can be), "bad_request" (the
client's mistake), "server" (ours; see detail). Who is idle for IDLE_S has to connect anew.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from envs.pictures import fit
from envs.robotwin import protocol
from envs.rollout import Decision
from envs.types import BIMANUAL, Layout, Observation
from rl_lab.common.errors import RunError, UserError
from rl_lab.common.listening import ADDRESS, BoundedClients, hang_up, receiver, send
from rl_lab.records.checks import state_problems
from rl_lab.workers.policy import LocalPolicy

VERSION = 1
MAX_CLIENTS = 16
LARGEST_VIEW = 1920 * 1080 * 3
"""Bytes of one picture of one camera."""
MAX_HEADER = 1 << 16
"""Of a request: its instruction and what names its arrays."""
IDLE_S = 1800.0
"""Between two requests of a client, during which its simulator works."""
REQUEST_S = 60.0
"""From the first byte of a request to its last."""


class RequestError(ValueError):
    """A request that is refused; `kind` as in the protocol."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _checked_images(images: Any, num_views: int, frames: int) -> np.ndarray:
    """Views as uint8 [V, K, H, W, 3]."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise RequestError("bad_request", f"images must be a uint8 array, not {getattr(images, 'dtype', type(images))}")
    views = images[:, None] if images.ndim == 4 else images
    expected = f"[{num_views}, {frames}, H, W, 3]" + (f" or [{num_views}, H, W, 3]" if frames == 1 else "")
    if views.ndim != 5 or views.shape[:2] != (num_views, frames) or views.shape[-1] != 3 or 0 in views.shape:
        raise RequestError("bad_request", f"images have shape {list(images.shape)}; expected {expected}")
    return views


def _decision(params: dict[str, Any], layout: Layout, frames: int, image_size: int) -> Decision:
    """A request's observation; RequestError that names what is wrong with it."""
    missing = {"images", "pose", "instruction", "key"} - params.keys()
    if missing:
        raise RequestError("bad_request", f"act has no {sorted(missing)[0]}")
    pose, key = params["pose"], params["key"]
    if not isinstance(pose, np.ndarray) or pose.shape != (layout.state_dim,):
        meant = "xyz, wxyz, gripper of two arms" if layout.is_like(BIMANUAL) else f"the measured state ({layout})"
        raise RequestError("bad_request", f"pose must be an array of {layout.state_dim} numbers: {meant}")
    problems = state_problems("act", pose.astype(np.float64)[None], layout)
    if problems:
        raise RequestError("bad_request", problems[0].text)
    text = params["instruction"]
    if not isinstance(text, str) or not text.strip() or re.search(r"[\ud800-\udfff]", text):
        raise RequestError("bad_request", "instruction must be a text that is not empty, without halves of characters")
    if not isinstance(key, list) or len(key) != 2 or not all(type(number) is int for number in key):
        raise RequestError("bad_request", f"key must be [episode, decision], two whole numbers, not {key!r}")
    views = _checked_images(params["images"], len(layout.cameras), frames)
    if views.shape[2:4] != (image_size, image_size):
        views = np.stack([[fit(image, image_size) for image in camera] for camera in views])
    now = {camera: {"rgb": view[-1]} for camera, view in zip(layout.cameras, views, strict=True)}
    told = {"cameras": layout.cameras, "state": pose.astype(np.float64), "instruction": text}
    observation: Observation = {"observation": now} | told
    past = views[:, :-1].swapaxes(0, 1) if frames > 1 else None
    return Decision(observation, (key[0], key[1]), past)


class PolicyService:
    """Answers requests with one policy, one at a time."""

    def __init__(self, folder: Path, *, seed: int, device: str, code: str | None = None) -> None:
        self.policy = LocalPolicy(folder, seed=seed, device=device, code=code)
        self.layout = self.policy.policy.config.layout
        if not self.policy.processor.has_stats:
            raise UserError(f"{folder} has no normalisation statistics: such a policy cannot act; train it first")
        if self.policy.processor.reads_truth:
            raise UserError(f"{folder} is a policy of studies, which reads the simulator's truth; nothing can serve it")
        self._lock = threading.Lock()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message; errors are answers too."""
        number, method, params = request.get("id"), request.get("method"), request.get("params")
        methods = {"hello": self.hello, "act": self.act}
        try:
            if type(number) is not int:
                number = None
                raise RequestError("protocol", "a request's id is a whole number")
            if not isinstance(method, str) or method not in methods or not isinstance(params, dict):
                raise RequestError("protocol", f"unknown method {method!r:.80}; this server has {', '.join(methods)}")
            return {"id": number, "result": methods[method](params)}
        except RequestError as error:
            kind, message, detail = error.kind, str(error), ""
        except RunError as error:
            kind, message, detail = "server", str(error), ""
        except Exception as error:  # a client must hear of it, whatever it is
            kind, message = "server", f"{method} failed: {type(error).__name__}: {error}"
            detail = traceback.format_exc()
        return {"id": number, "error": {"kind": kind, "message": " ".join(message.split()), "detail": detail}}

    def hello(self, params: dict[str, Any]) -> dict[str, Any]:
        """What this policy is."""
        version = params.get("version")
        if type(version) is not int or version != VERSION:
            text = f"the client speaks version {version!r:.40}, this server {VERSION}; copy the client again"
            raise RequestError("protocol", text)
        info, processor = self.policy.info, self.policy.processor
        return {
            "version": VERSION,
            "action": self.layout.numbers,
            "commands": processor.num_commands,
            "memory": {"frames": info.history, "interval": info.history_interval},
            "image_size": processor.config.image_size,
            "weight_version": info.weight_version,
            "layout": asdict(self.layout) | {"cameras": list(self.layout.cameras)},
        }

    def act(self, params: dict[str, Any]) -> dict[str, Any]:
        """A chunk of commands for an observation."""
        decision = _decision(params, self.layout, self.policy.info.history, self.policy.processor.config.image_size)
        with self._lock:
            return {"chunk": self.policy.act([decision])[0]}


class _Handler(socketserver.BaseRequestHandler):
    """One client; frames that are none end its connection, after saying so."""

    server: PolicyServer

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                answer = self.server.service.answer(self._next())
            except (EOFError, OSError):
                return
            except protocol.ProtocolError as error:
                send(self.request, _refusal(str(error)))
                return hang_up(self.request)
            if not send(self.request, protocol.encode(answer)):
                return

    def _next(self) -> dict[str, Any]:
        """The client's next request."""
        self.request.settimeout(IDLE_S)
        self.request.recv(1, socket.MSG_PEEK)
        return protocol.read(receiver(self.request, REQUEST_S), MAX_HEADER, self.server.max_body)


def _refusal(message: str) -> bytes:
    return protocol.encode({"id": None, "error": {"kind": "protocol", "message": message, "detail": ""}})


class PolicyServer(BoundedClients, socketserver.TCPServer):
    """Serves a policy on a port of this machine; 0 takes a free one."""

    allow_reuse_address = True
    max_clients = MAX_CLIENTS
    full = _refusal(f"this server has {MAX_CLIENTS} clients already; end one, or start another server")

    def __init__(self, service: PolicyService, port: int) -> None:
        self.service = service
        views = len(service.layout.cameras) * service.policy.info.history
        self.max_body = views * LARGEST_VIEW + 8 * service.layout.state_dim
        super().__init__((ADDRESS, port), _Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])
