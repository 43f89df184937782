"""No failed reward call becomes a silent 0 or 1: it becomes None and a `FailedCall` with its reason.

Our own formulas need no clock: their input is cut to `MAX_ANSWER_CHARS` and `MAX_OBJECTS`, and parsing is linear.
`checked` catches their exceptions. Functions of others run through `Sandbox`, each in a process of its own, so that a
call ends whatever the function does.

The process is a fresh interpreter (no fork: the caller has threads) that gets the function by its import path. Requests
and replies go over a socket pair on which every wait has a deadline; when it passes, the process is killed with all it
started (`rewards.sandbox`). An alarm in the process kills it too, should the caller be gone. The next call starts a new
one. A reply repeats the number that came with its request, drawn anew for each, so that nothing which the function
writes to a descriptor that is not its own, now or later, is taken for a reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import logging
import math
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from envs.by_name import brief
from rewards.config import SandboxConfig
from rewards.sandbox import clean_environment, landlock_abi, supervise

MAX_REPLY_BYTES = 1 << 16

_HEADER_BYTES = 8

_NONCE_BYTES = 16

_ALARM_GRACE_S = 2.0

_CLOSE_S = 10.0

_MAX_DETAIL_CHARS = 500

_CHILD = "import sys; sys.path[:] = {path!r}; from rewards.isolation import run; run({descriptor}, {caller}, {memory})"

Reason = Literal["exception", "not a number", "out of range", "time-out", "abstained"]

TRAINER_ARGUMENTS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes beside columns; it belongs to the trainer's process and does not reach a guarded function."""


class Sandbox:
    """A reward function with TRL's signature, called for each sample on its own under time limits.

    So one hostile completion costs one sample, not the batch; a function that compares the completions of a batch with
    each other does not fit. A call takes at most `start_timeout_s + batch_timeout_s` and then has an entry for every
    sample. Arguments must pickle; `TRAINER_ARGUMENTS` are not passed on.
    """

    def __init__(self, function: Callable[..., Any], name: str, config: SandboxConfig) -> None:
        self._function = IsolatedFunction(function, name, config.memory_gib)
        self._name = name
        self._config = config

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> tuple[list[float | None], list[FailedCall]]:
        """Values, None where not applicable or failed, and the failures."""
        arguments = {"prompts": prompts, "completions": completions, **columns}
        per_sample = {key: value for key, value in arguments.items() if key not in TRAINER_ARGUMENTS}
        try:
            self._function.start(time.monotonic() + self._config.start_timeout_s)
        except (TimeoutError, CallFailedError) as error:
            return [None] * len(completions), [_failed(error, sample, self._name) for sample in range(len(completions))]
        batch_deadline = time.monotonic() + self._config.batch_timeout_s
        values, failures = [], []
        for sample in range(len(completions)):
            one = {key: [value[sample]] for key, value in per_sample.items()}
            value, failure = checked(partial(self._call, one, batch_deadline), sample, self._name)
            values.append(value)
            failures += [failure] if failure else []
        return values, failures

    def start(self) -> None:
        """Start the process, which imports the function. ValueError, with what the import raised, where it fails."""
        try:
            self._function.start(time.monotonic() + self._config.start_timeout_s)
        except (TimeoutError, CallFailedError) as error:
            said = " ".join(str(error).split()) or f"no answer in {self._config.start_timeout_s:g} s"
            raise ValueError(
                f"functions.{self._name} cannot be imported: {said}; install what it imports, or mend its file"
            ) from error

    def close(self) -> None:
        """End the process."""
        self._function.close()

    def _call(self, arguments: dict[str, Any], batch_deadline: float) -> Any:
        if time.monotonic() >= batch_deadline:
            raise TimeoutError(f"the batch's {self._config.batch_timeout_s:g} s were over before this sample")
        self._function.start(batch_deadline)
        deadline = min(time.monotonic() + self._config.timeout_s, batch_deadline)
        try:
            return self._function.call(arguments, deadline)
        except TimeoutError as error:
            raise TimeoutError(f"no value in {self._config.timeout_s:g} s; its process was killed") from error


@dataclass(frozen=True)
class FailedCall:
    """A call that gave no reward."""

    sample: int
    """Position in the batch."""
    part: str
    """Which reward failed, e.g. `verifier`, `judge` or the name of a function."""
    reason: Reason
    detail: str
    """One line: the exception's type and text, or the value."""


def failure_counts(failures: Iterable[FailedCall]) -> dict[str, int]:
    """Number of failures by `part/reason`, for metrics."""
    return dict(Counter(f"{failure.part}/{failure.reason}" for failure in failures))


def checked(function: Callable[[], Any], sample: int, part: str) -> tuple[float | None, FailedCall | None]:
    """Value of a call in this process, or its failure. None from the function is "not applicable" and no failure."""
    try:
        value = function()
        value = as_number(value)
    except Exception as error:  # noqa: BLE001 - one sample's reward must not end the step, whatever it raises
        return None, _failed(error, sample, part)
    if value is None or 0.0 <= value <= 1.0:
        return value, None
    reason: Reason = "not a number" if math.isnan(value) else "out of range"
    return None, FailedCall(sample, part, reason, f"{value} is not in 0..1")


def _failed(error: Exception, sample: int, part: str) -> FailedCall:
    # A function that runs elsewhere sends its exception as text, with the type in it.
    detail = str(error) if isinstance(error, CallFailedError) else f"{type(error).__name__}: {error}"
    reason: Reason = "time-out" if isinstance(error, TimeoutError) else "exception"
    return FailedCall(sample, part, reason, " ".join(detail.split()))


def as_number(value: Any) -> float | None:
    """A reward as a function returns it: a number of Python, numpy or torch, or None. TypeError for text."""
    if isinstance(value, str | bytes):
        raise TypeError(f"a reward is a number or None, not the text {brief(value)}")
    return None if value is None else float(value)


class CallFailedError(Exception):
    """The function raised, or its process died; the text says which."""


class IsolatedFunction:
    """A reward function with TRL's signature that is called for one sample at a time, in another process.

    It may take `memory_gib` of address space; None sets no limit. ValueError at once for a function that cannot be
    imported there: lambdas, closures and what a script defines.
    """

    def __init__(self, function: Callable[..., Any], name: str, memory_gib: float | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        self._name = name
        self._memory = None if memory_gib is None else int(memory_gib * 2**30)
        self._pickled = _by_import_path(function, name)

    def start(self, deadline: float) -> None:
        """Start the process unless it runs, and import the function in it, before `time.monotonic()` is `deadline`.

        TimeoutError past it; CallFailedError if the import fails.
        """
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            _warn_of_writes()
            names = {"path": sys.path, "descriptor": theirs.fileno(), "caller": os.getpid(), "memory": self._memory}
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", _CHILD.format(**names)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=clean_environment(os.environ),
                start_new_session=True,
            )
        self._socket = ours
        try:
            self._exchange(self._pickled, deadline)
        except CallFailedError:
            self.close()
            raise

    def call(self, arguments: dict[str, Any], deadline: float) -> Any:
        """The value for one sample: `arguments` are TRL's, each a list of one entry. The process must have started.

        TimeoutError past the deadline; CallFailedError if the function raises, exits or dies.
        """
        limit = max(deadline - time.monotonic(), 0.0)
        return self._exchange(pickle.dumps((limit, arguments)), deadline)

    def close(self) -> None:
        """Kill the process and all that it started. Safe to repeat."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # heard also where a fork of ours holds the socket
            self._socket.close()
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:  # its first half was stopped or starved
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = self._socket = None

    def __del__(self) -> None:
        # A fork has a copy of this object but not of the process.
        if self._owner == os.getpid():
            self.close()

    def _exchange(self, request: bytes, deadline: float) -> Any:
        assert self._socket is not None, "start first"
        nonce = secrets.token_bytes(_NONCE_BYTES)
        try:
            _send(self._socket, nonce + request, deadline)
            reply = _reply(_receive(self._socket, deadline, MAX_REPLY_BYTES), nonce)
        except BaseException as error:
            # Whatever it was, also an interrupt: a reply that comes late must not be taken for the next sample's.
            self.close()
            if isinstance(error, TimeoutError) or not isinstance(error, OSError | EOFError | ValueError):
                raise
            how = "was ended" if isinstance(error, ValueError) else "died"
            raise CallFailedError(f"the process of reward function {self._name} {how}: {error}") from error
        if "error" in reply:
            raise CallFailedError(reply["error"])
        return reply["value"]


def _by_import_path(function: Callable[..., Any], name: str) -> bytes:
    module = getattr(function, "__module__", None) or type(function).__module__
    fix = "define it, or its class, at the top of a module"
    if module == "__main__":
        raise ValueError(f"reward function {name} belongs to the script itself, which no other process imports; {fix}")
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"reward function {name} cannot be sent to another process ({error}); {fix}") from error


@functools.cache
def _warn_of_writes() -> None:
    if not landlock_abi():
        logging.getLogger(__name__).warning("this kernel has no Landlock: reward functions can write wherever we can")


def _reply(data: bytes, nonce: bytes) -> dict[str, Any]:
    """The reply to the request with this number. ValueError for anything else."""
    if data[:_NONCE_BYTES] != nonce:
        raise ValueError("something was written to its socket that is no reply to this call")
    reply = json.loads(data[_NONCE_BYTES:])
    if not isinstance(reply, dict) or not reply.keys() & {"value", "error"}:
        raise ValueError("its reply is neither a value nor an error")
    return reply


def run(descriptor: int, caller: int, memory: int | None) -> None:
    """Life of the process."""
    supervise(descriptor, caller, memory, _serve)


def _serve(connection: socket.socket) -> None:
    """Import the function, then answer calls until the caller closes the socket."""
    with contextlib.suppress(EOFError, OSError):
        nonce, pickled = _request(connection)
        try:
            function = pickle.loads(pickled)
        except Exception as error:  # noqa: BLE001 - an import may raise anything, and the caller is to hear of it
            return _send(connection, nonce + _error(error), None)
        _send(connection, nonce + b'{"value": null}', None)
        while True:
            nonce, request = _request(connection)
            limit, arguments = pickle.loads(request)
            signal.setitimer(signal.ITIMER_REAL, limit + _ALARM_GRACE_S)
            reply = _answer(function, arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(connection, nonce + reply, None)


def _request(connection: socket.socket) -> tuple[bytes, bytes]:
    data = _receive(connection, None, None)
    return data[:_NONCE_BYTES], data[_NONCE_BYTES:]


def _as_expected(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Completions, and prompts, that are text as a list of one message, for a function whose annotation of them says
    so (`list[list[dict[str, str]]]`, as TRL's own functions have it)."""
    found, parameters = dict(arguments), {}
    with contextlib.suppress(TypeError, ValueError):  # of some callables nobody knows it
        parameters = dict(inspect.signature(function).parameters)
    for name, role in (("completions", "assistant"), ("prompts", "user")):
        wants_messages = name in parameters and "dict" in str(parameters[name].annotation)
        if wants_messages and all(isinstance(text, str) for text in arguments[name]):
            found[name] = [[{"role": role, "content": text}] for text in arguments[name]]
    return found


def _answer(function: Callable[..., Any], arguments: dict[str, Any]) -> bytes:
    try:
        values = function(**_as_expected(function, arguments))
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        values = list(values)
        if len(values) != 1:
            raise ValueError(f"a reward function returns one value for each completion, but this gave {brief(values)}")
        return json.dumps({"value": as_number(values[0])}).encode()
    except Exception as error:  # noqa: BLE001 - whatever it raises is a failed call
        return _error(error)


async def _awaited(values: Any) -> Any:
    return await values


def _error(error: Exception) -> bytes:
    return json.dumps({"error": f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARS]}).encode()


def _send(connection: socket.socket, data: bytes, deadline: float | None) -> None:
    _wait_until(connection, deadline)
    connection.sendall(len(data).to_bytes(_HEADER_BYTES, "big") + data)


def _receive(connection: socket.socket, deadline: float | None, limit: int | None) -> bytes:
    size = int.from_bytes(_read(connection, _HEADER_BYTES, deadline), "big")
    if limit is not None and size > limit:
        raise ValueError(f"its reply has {size} bytes, more than {limit}")
    return _read(connection, size, deadline)


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait_until(connection, deadline)
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("it closed the connection")
        data += part
    return bytes(data)


def _wait_until(connection: socket.socket, deadline: float | None) -> None:
    """Let the next operation raise TimeoutError at the deadline. `sendall` takes it as the limit of its whole work."""
    if deadline is None:
        return connection.settimeout(None)
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection.settimeout(remaining)
