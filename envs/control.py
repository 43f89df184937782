"""A control loop at a fixed rate, for a policy that predicts in a process of its own (asynchronous inference).

arXiv:2606.14409, section 5.2: a producer predicts from the newest observation, a consumer commands the robot at servo
rate. Here the producer is a thread that waits for the policy's process, at most one prediction at a time, and
`envs.execution.Executor` says what is commanded meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from envs.execution import Execution, Executor


class Robot(Protocol):
    """What is controlled; both calls must take less than a control step."""

    def observe(self) -> Any:
        """What the policy sees now."""

    def advance(self, command: np.ndarray) -> None:
        """Send a command [A], without waiting for it to be reached."""


@dataclass
class ControlLog:
    """What a loop did."""

    commands: list[np.ndarray] = field(default_factory=list)
    """Sent, one a control step."""
    latencies_s: list[float] = field(default_factory=list)
    """From each observation to its chunk."""
    late: list[int] = field(default_factory=list)
    """The same in control steps that were taken meanwhile."""
    missed: int = 0
    """Control steps that began more than half a step late; the loop goes on from there and does not hurry."""
    stalls: int = 0
    """Control steps in which the last command was held because no chunk had one."""


def control(
    robot: Robot,
    predict: Callable[[Any, int], np.ndarray],
    execution: Execution,
    *,
    hz: float,
    poses: bool,
    steps: int,
    done: Callable[[], bool] = lambda: False,
) -> ControlLog:
    """Control a robot for so many steps at `hz`, or until `done`.

    `predict(observation, number)` gives the chunk [H, A] of decision `number` and may take its time; what it raises
    ends the loop. The robot stands still until the first chunk is there; `execution.latency` is measured here, so it
    must be 0. `poses`: commands are `ee` poses. ValueError for a latency that is set, for chunks that are guided, which
    takes the latency beforehand, or for a rate that is none.
    """
    if execution.join == "guide":
        raise ValueError("join is guide, but how late a chunk will be is not known before; choose another")
    if execution.latency:
        raise ValueError(f"latency is {execution.latency}, but a control loop measures it; leave it out")
    if not (np.isfinite(hz) and hz > 0):
        raise ValueError(f"hz is {hz}; expected control steps a second, above 0")
    executor, log = Executor(execution, poses), ControlLog()
    with ThreadPoolExecutor(1, "predictions") as producer:
        prediction = _Prediction(executor, log, producer, predict)
        prediction.begin(robot)
        prediction.finish(wait=True)
        tick = time.perf_counter()
        for _ in range(steps):
            prediction.finish(wait=False)
            if executor.asks:
                prediction.begin(robot)
            log.commands.append(executor.command())
            robot.advance(log.commands[-1])
            if done():
                break
            tick += 1 / hz
            tick = _sleep_until(tick, 1 / hz, log)
    log.stalls = executor.stalls
    return log


def _sleep_until(tick: float, period: float, log: ControlLog) -> float:
    """Wait for the time at which a step is due; when it begins, which is later if the one before took too long."""
    now = time.perf_counter()
    if now > tick + period / 2:
        log.missed += 1
        return now
    time.sleep(max(0.0, tick - now))
    return tick


class _Prediction:
    """The one that is under way."""

    def __init__(
        self,
        executor: Executor,
        log: ControlLog,
        producer: ThreadPoolExecutor,
        predict: Callable[[Any, int], np.ndarray],
    ) -> None:
        self.executor, self.log, self.producer, self.predict = executor, log, producer, predict
        self.future: Future[np.ndarray] | None = None
        self.began, self.step = 0.0, 0

    def begin(self, robot: Robot) -> None:
        """Decide on what the robot sees now."""
        number = self.executor.decisions
        self.began, self.step = time.perf_counter(), len(self.log.commands)
        self.future = self.producer.submit(self.predict, robot.observe(), number)
        self.executor.ask()

    def finish(self, *, wait: bool) -> None:
        """Take the chunk over if it is there, or when it is."""
        if self.future is None or not (wait or self.future.done()):
            return
        chunk, self.future = self.future.result(), None
        self.log.latencies_s.append(time.perf_counter() - self.began)
        self.log.late.append(len(self.log.commands) - self.step)
        self.executor.arrive(chunk)
