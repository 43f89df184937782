"""The lab's end of a RoboTwin server: starts the process, asks it one thing at a time, notices hangs and crashes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.robotwin import layout, protocol
from envs.types import SimulatorError

SERVER = Path(__file__).with_name("server.py")
POLL_S = 0.2
LOG_TAIL = 2000


class RoboTwinError(RuntimeError):
    """The server refused or failed at a request; `kind` is one of `protocol.ERROR_KINDS`."""

    def __init__(self, kind: str, message: str, detail: str = "") -> None:
        super().__init__(f"{message}\n{detail}".strip())
        self.kind = kind


class SeedRejectedError(RoboTwinError):
    """RoboTwin refuses this seed: its scene is unstable, its expert fails on it, or something raises. Take another."""

    @property
    def is_error(self) -> bool:
        """Whether something raised, which may be so on every seed."""
        return self.kind == "raising_seed"


class EpisodeError(RoboTwinError, SimulatorError):
    """RoboTwin raised an error in an episode."""


class ServerDiedError(RuntimeError):
    """The server crashed, or was ended because it did not answer in time. `reset` or `load` start another."""


class ServerTimeoutError(ServerDiedError):
    """The server did not answer in time and was ended."""


@dataclass(frozen=True)
class RoboTwin:
    """Which RoboTwin to run and how long to wait for it."""

    python: str
    """Interpreter in which RoboTwin is installed (ROBOTWIN_PYTHON, or this one)."""
    root: str
    """RoboTwin's checkout (ROBOTWIN_ROOT), or its package in this interpreter."""
    start_timeout_s: float = 300.0
    """From the start of the process until RoboTwin is imported."""
    reset_timeout_s: float = 300.0
    """For `reset`, `restore` and `expert`, which run whole scenes."""
    step_timeout_s: float = 60.0
    """For everything else."""

    @classmethod
    def from_environment(cls, **options: Any) -> RoboTwin:
        """From ROBOTWIN_PYTHON and ROBOTWIN_ROOT, else the runtime installed in this interpreter; ValueError with the
        lines to type if there is neither."""
        named = [name for name in ("ROBOTWIN_PYTHON", "ROBOTWIN_ROOT") if os.environ.get(name)]
        root = find_root()
        if not named and root is not None:
            return cls(sys.executable, root, **options)
        missing = [name for name in ("ROBOTWIN_PYTHON", "ROBOTWIN_ROOT") if name not in named]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} not set; export ROBOTWIN_ROOT=/path/to/RoboTwin (your checkout) and "
                "ROBOTWIN_PYTHON=/path/to/python (the interpreter in which RoboTwin is installed), or set neither and "
                "install its runtime with ./setup.sh robotwin"
            )
        return cls(os.environ["ROBOTWIN_PYTHON"], os.environ["ROBOTWIN_ROOT"], **options)


def find_root() -> str | None:
    """ROBOTWIN_ROOT, where an empty one means none; where it is not set, the runtime installed in this interpreter."""
    named = os.environ.get("ROBOTWIN_ROOT")
    return layout.find_installed() if named is None else named or None


class Connection:
    """One server process. After `ServerDiedError` it is closed for good."""

    def __init__(self, robotwin: RoboTwin) -> None:
        self.robotwin = robotwin
        found = layout.detect(robotwin.root)
        python = shutil.which(robotwin.python)
        if python is None:
            raise ValueError(f"ROBOTWIN_PYTHON {robotwin.python} is not an interpreter that can be run")
        self._log = tempfile.TemporaryFile(prefix="robotwin-")  # noqa: SIM115  (lives as long as the process)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python, str(SERVER), str(theirs.fileno()), found.root],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=found.home,
                env=server_environment(found),
                start_new_session=True,
            )
        self._socket.settimeout(POLL_S)
        self._num_requests = 0
        self._open = True
        try:
            self.hello = self.ask("hello", robotwin.start_timeout_s, version=protocol.VERSION)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._open and self._process.poll() is None

    def ask(self, method: str, timeout_s: float | None = None, **params: Any) -> dict:
        """The result of a request; RoboTwinError if it was refused, ServerDiedError if there is no answer."""
        if not self._open:
            raise ServerDiedError("this RoboTwin server has ended; reset starts another")
        slow = ("reset", "restore", "expert")
        default_s = self.robotwin.reset_timeout_s if method in slow else self.robotwin.step_timeout_s
        limit_s = default_s if timeout_s is None else timeout_s
        self._num_requests += 1
        frame = protocol.encode({"id": self._num_requests, "method": method, "params": params})
        deadline = time.monotonic() + limit_s
        try:
            self._send(frame, deadline)
            answer = protocol.read(lambda size: self._receive(size, deadline))
            if answer.get("id") != self._num_requests:
                raise protocol.ProtocolError(f"answer {answer.get('id')} to request {self._num_requests}")
        except TimeoutError:
            tail = self.log_tail()
            self.kill()
            raise ServerTimeoutError(
                f"RoboTwin did not answer {method} within {limit_s:g} s; ended it.\n{tail}"
            ) from None
        except (EOFError, OSError, protocol.ProtocolError) as error:
            raise ServerDiedError(self._obituary(method, error)) from None
        except BaseException:  # interrupted between request and answer: the next answer would be to this one
            self.kill()
            raise
        if "error" in answer:
            problem = answer["error"]
            raise _error_class(method, problem["kind"])(problem["kind"], problem["message"], problem["detail"])
        return answer["result"]

    def close(self) -> None:
        """Ask the server to end, and end it if it does not."""
        if self.is_alive:
            with contextlib.suppress(ServerDiedError, RoboTwinError):
                self.ask("close", 10.0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self.kill()

    def kill(self) -> None:
        """End the server and whatever it started, now."""
        if self._open:
            self._open = False
            self._socket.close()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._log.close()

    def log_tail(self) -> str:
        """The last lines that RoboTwin printed."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), LOG_TAIL, max(0, size - LOG_TAIL))
        return data.decode(errors="replace").strip()

    def _send(self, frame: bytes, deadline: float) -> None:
        view = memoryview(frame)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                self._check(deadline)

    def _receive(self, size: int, deadline: float) -> bytes:
        while True:
            try:
                return self._socket.recv(size)
            except TimeoutError:
                self._check(deadline)

    def _check(self, deadline: float) -> None:
        # Children of a server that died may hold its socket open, so the end of the stream alone does not tell.
        if self._process.poll() is not None:
            raise EOFError("the process ended")
        if time.monotonic() > deadline:
            raise TimeoutError

    def _obituary(self, method: str, error: Exception) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        code = self._process.poll()
        tail = self.log_tail()
        self.kill()
        if code is None:
            how = f"broke the connection ({error})"
        else:
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"RoboTwin {how} during {method}.\n{tail}".strip()


def _error_class(method: str, kind: str) -> type[RoboTwinError]:
    if kind in ("rejected_seed", "raising_seed"):
        return SeedRejectedError
    return EpisodeError if kind == "robotwin" and method not in ("hello", "check") else RoboTwinError


class RoboTwinServer:
    """A server that is started when it is first needed, and again after it died. Environments may take turns on it:
    it has one scene, that of the last one that began or loaded an episode."""

    def __init__(self, robotwin: RoboTwin, restarts: int = 1) -> None:
        self.robotwin, self.restarts = robotwin, restarts
        self.num_starts = 0
        """Servers started so far: one more for every crash or hang that was survived."""
        self._connection: Connection | None = None
        self._owner: object = None

    @property
    def connection(self) -> Connection:
        """The live connection; starts a server if there is none."""
        if self._connection is None or not self._connection.is_alive:
            if self._connection is not None:
                self._connection.kill()
            self._connection = Connection(self.robotwin)
            self.num_starts += 1
        return self._connection

    def begin(self, owner: object, method: str, **params: Any) -> dict:
        """Ask what needs no earlier scene, once more for each of `restarts` deaths; the scene is then the owner's."""
        self._owner = owner
        for _ in range(self.restarts):
            try:
                return self.connection.ask(method, **params)
            except ServerDiedError:
                continue
        return self.connection.ask(method, **params)

    def ask(self, owner: object, method: str, **params: Any) -> dict:
        """Ask something about the owner's scene."""
        if self._connection is None:
            raise RuntimeError("call reset(seed=...) first")
        if self._owner is not owner:
            raise RuntimeError("another environment has used this RoboTwin server since; reset or load first")
        return self._connection.ask(method, **params)

    def close(self) -> None:
        """End the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


VULKAN = Path(sys.prefix) / "share" / "mesa-vulkan"
"""Where ./setup.sh robotwin puts a software Vulkan if the system has none that will do."""


def server_environment(found: layout.Checkout) -> dict[str, str]:
    """Our environment without what makes another interpreter import our modules; with the software Vulkan of our own
    where the box robot needs one and no other is named."""
    drop = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    environment = {name: value for name, value in os.environ.items() if name not in drop} | {"PYTHONUNBUFFERED": "1"}
    named = {"VK_ICD_FILENAMES", "VK_DRIVER_FILES"} & environment.keys()
    if found.has_box_robot and not named and (VULKAN / "lvp_icd.json").is_file():
        libraries = [str(VULKAN / "lib"), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment |= {"VK_ICD_FILENAMES": str(VULKAN / "lvp_icd.json"), "LD_LIBRARY_PATH": ":".join(libraries)}
    return environment
