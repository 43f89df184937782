"""Where the time of a turn goes: the learner's seconds by what they were spent on, and who is at work meanwhile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rl_lab.workers.pool import WorkerPool

PARTS = ("generate", "score", "learn", "publish")
"""What the seconds of a step of GRPO go to."""
OPTIONAL_PARTS = ("teacher",)
"""And in some runs."""


class Clock:
    """Seconds of one turn by what they were spent on.

    `busy` counts seconds of engines. `examine` is no part of the turn, though what is under way goes on meanwhile.
    """

    def __init__(self, **pools: WorkerPool) -> None:
        """`pools`: those whose work in a turn is measured by what they say of it."""
        self._pools = pools
        self.begin()

    def begin(self) -> None:
        """A new turn."""
        self._began, self._seconds = time.perf_counter(), defaultdict[str, float](float)
        self._busy = {name: pool.busy_s for name, pool in self._pools.items()}

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds inside the block."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def spent(self, name: str) -> float:
        """Seconds that went to something in this turn."""
        return self._seconds[name]

    @property
    def seconds(self) -> float:
        """Since the turn began."""
        return max(time.perf_counter() - self._began - self._seconds["examine"], 1e-9)

    def line(self, num_engines: int) -> dict[str, float]:
        """`seconds/PART` and `seconds/step`, and `idle/WORKER`: shares of the step without anything to do."""
        parts, seconds = self._seconds, self.seconds
        named = [*PARTS, *(name for name in OPTIONAL_PARTS if name in parts)]
        return {f"seconds/{name}": parts[name] for name in named} | {
            "idle/rollout": max(0.0, 1 - parts["busy"] / (seconds * num_engines)),
            "idle/learner": max(0.0, 1 - (parts["learn"] + parts["publish"]) / seconds),
            "seconds/step": seconds,
        }

    def turn_line(self, learn_s: float) -> dict[str, float]:
        """`seconds/turn` and `seconds/learn`; `idle/learner` and `idle/POOL`: shares of the turn."""
        seconds, idle = self.seconds, {"learner": learn_s}
        idle |= {name: (pool.busy_s - self._busy[name]) / pool.num_workers for name, pool in self._pools.items()}
        return {"seconds/turn": seconds, "seconds/learn": learn_s} | {
            f"idle/{name}": min(max(1 - busy / seconds, 0.0), 1.0) for name, busy in idle.items()
        }
