"""Turns at workers that stages share, and how long the thread of a stage waited for its turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_waits = threading.local()


def waited_s() -> float:
    """Seconds that this thread has waited for turns so far."""
    return getattr(_waits, "seconds", 0.0)


class Turns:
    """A lock whose waits are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Until the body ends nobody else has a turn."""
        began = time.monotonic()
        with self._lock:
            _waits.seconds = waited_s() + time.monotonic() - began
            yield
