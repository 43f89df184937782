"""Where the time of a joint run goes: who is at work while the learner takes its turns; examinations are left out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rl_lab.workers.pool import WorkerPool


class Times:
    """Seconds of one turn."""

    def __init__(self, engines: WorkerPool, simulations: WorkerPool) -> None:
        self.pools = {"engines": engines, "simulators": simulations}
        self.seconds = self.examine_s = 0.0
        self.busy: dict[str, float] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One turn: waiting for its batch, learning and publishing."""
        busy, began = self._busy(), time.perf_counter()
        yield
        self.seconds = max(time.perf_counter() - began, 1e-9)
        self.busy = {name: now - busy[name] for name, now in self._busy().items()}

    def line(self, learn_s: float) -> dict[str, float]:
        """`seconds/turn` and `seconds/learn`; `idle/learner`, `idle/engines`, `idle/simulators`: shares of the turn.

        Examinations are no part of a turn, though what is under way goes on meanwhile.
        """
        idle = {"learner": 1 - learn_s / self.seconds}
        idle |= {name: 1 - busy / (self.seconds * self.pools[name].num_workers) for name, busy in self.busy.items()}
        return {"seconds/turn": self.seconds, "seconds/learn": learn_s} | {
            f"idle/{name}": min(max(share, 0.0), 1.0) for name, share in idle.items()
        }

    @contextmanager
    def examining(self) -> Iterator[None]:
        """An examination, the guard's answer included."""
        began = time.perf_counter()
        yield
        self.examine_s = time.perf_counter() - began

    def _busy(self) -> dict[str, float]:
        return {name: pool.busy_s for name, pool in self.pools.items()}


PARTS = ("generate", "score", "learn", "publish")
"""What the seconds of a step go to."""

OPTIONAL_PARTS = ("teacher",)
"""And in some runs."""


class Clock:
    """Seconds of one step by what they were spent on. `busy` counts seconds of engines, `examine` is left out."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new step."""
        self._began, self._seconds = time.perf_counter(), defaultdict[str, float](float)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds inside the block."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def line(self, num_engines: int) -> dict[str, float]:
        """`seconds/PART` and `seconds/step`, and `idle/WORKER`: shares of the step without anything to do."""
        parts = self._seconds
        seconds = max(time.perf_counter() - self._began - parts["examine"], 1e-9)
        named = [*PARTS, *(name for name in OPTIONAL_PARTS if name in parts)]
        return {f"seconds/{name}": parts[name] for name in named} | {
            "idle/rollout": max(0.0, 1 - parts["busy"] / (seconds * num_engines)),
            "idle/learner": max(0.0, 1 - (parts["learn"] + parts["publish"]) / seconds),
            "seconds/step": seconds,
        }
