"""`live.json`: signs of life of a run that goes on, for whoever watches its folder, from another machine too.

It is there while the driver lives, and says when it was written, where, how far stages are and how the workers do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_lab.common.files import write_whole

LIVE_FILE = "live.json"
BEAT_S = 5.0


class Heartbeat:
    """A thread that writes the file as long as the body runs; a disk that refuses it is no trouble of the run's."""

    def __init__(self, folder: Path, signs: Callable[[], dict[str, Any]], every_s: float = BEAT_S) -> None:
        """`signs`: what to say beside `time` (seconds since 1970), `every_s`, `host` and `pid`."""
        self._path, self._signs, self._every_s = folder / LIVE_FILE, signs, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while True:
            self._beat()
            if self._over.wait(self._every_s):
                return

    def _beat(self) -> None:
        own = {"time": time.time(), "every_s": self._every_s, "host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(OSError):
            write_whole(self._path, json.dumps(own | self._signs()) + "\n")
