"""How predicted chunks become the commands of control steps, while the policy takes its time to predict.

Asynchronous inference (arXiv:2606.14409, section 5.2): the robot runs one chunk while the next is computed. Here the
latency is a number of control steps, so that what it costs can be measured in a simulator, step by step the same.
Letters: H commands of a chunk, A numbers of a command, s a control step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from envs.options import ControlSteps, Options
from envs.se3 import normalize, split_arms
from envs.stitching import fresh, stitch

Join = Literal["wait", "jump", "ensemble", "stitch", "guide"]

ENSEMBLE_RATE = 0.01
"""m of ACT's weights exp(-m i), i = 0 for the oldest chunk (arXiv:2304.13705, section 4.3)."""


class Execution(Options):
    """How chunks are executed; steps are control steps."""

    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction."""
    latency: Annotated[int, Field(ge=0, le=1000)] = 0
    """Steps that a prediction takes; 0: time stands still meanwhile. An episode begins with its first chunk."""
    join: Join = "wait"
    """What the robot does meanwhile. wait: it holds its last command. The others run the chunk before and, when the new
    one is there, drop its commands whose time has passed and jump to the others, take the mean over all chunks that
    have a command for a step (ACT's temporal ensembling), stitch them on with a curve (Hy-VLA), or jump to a chunk that
    was sampled so as to go on from the one before (real-time chunking)."""

    @property
    def period(self) -> int:
        """Control steps from a decision to the next, which waits until the one before is there."""
        return self.execute + self.latency if self.join == "wait" else max(self.execute, self.latency)


@dataclass(frozen=True)
class Plan:
    """What a robot will do while a policy decides."""

    commands: np.ndarray
    """Left of the chunk before, from the present step on, [m, A]."""
    late: int
    """How many of them will have been run when the new chunk is there."""


class Executor:
    """The commands of one episode or branch: says when the policy is to decide, and has a command for every step."""

    def __init__(self, execution: Execution, poses: bool) -> None:
        """`poses`: commands are `ee` poses of arms."""
        self.execution, self.poses = execution, poses
        self.decisions = 0
        """So far."""
        self.stalls = 0
        """Steps in which the last command was held because no chunk had one."""
        self._waits = False
        self._late = 0
        """Steps since the decision."""
        self._run = 0
        """Steps since the decision, or, where the robot waits for it, since its chunk was there."""
        self._layers: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    @property
    def plan(self) -> Plan | None:
        """What a decision in the present state is told of the commands to come; None: nothing."""
        if self.execution.join != "guide" or not self._layers or not len(self._layers[-1]):
            return None
        return Plan(self._layers[-1], self.execution.latency)

    @property
    def asks(self) -> bool:
        """Whether the policy decides in the present state."""
        return not self._waits and (self.decisions == 0 or self._run >= self.execution.execute)

    def ask(self) -> None:
        """The policy decides on the present state; its chunk comes later."""
        self.decisions, self._waits, self._late, self._run = self.decisions + 1, True, 0, 0
        if self.execution.join == "wait":
            self._layers = []

    def arrive(self, chunk: np.ndarray) -> None:
        """The chunk [H, A] that was asked for is there, before the next step. ValueError for one that is too short."""
        if len(chunk) < self.execution.execute:
            raise ValueError(f"execute is {self.execution.execute}, but the chunk has {len(chunk)} commands")
        self._waits, late, join = False, self._late, self.execution.join
        if join == "wait" or not self._done:
            self._layers, self._run = [chunk], 0
        elif join == "ensemble":
            self._layers = [*self._layers, chunk[late:]]
        elif join in ("jump", "guide") or self._continues(chunk, late):
            self._layers = [chunk[late:]]
        else:
            self._layers = [stitch(np.stack(self._done), fresh(chunk, late), poses=self.poses)]

    def _continues(self, chunk: np.ndarray, late: int) -> bool:
        """Whether there is nothing to join: no step has passed, or the last one was run as the chunk has it."""
        return late == 0 or (late <= len(chunk) and np.array_equal(chunk[late - 1], self._done[-1]))

    def command(self) -> np.ndarray:
        """The command [A] of the next control step."""
        self._layers = [layer for layer in self._layers if len(layer)]
        if self._layers:
            command = _mean([layer[0] for layer in self._layers], self.poses)
            self._layers = [layer[1:] for layer in self._layers]
        else:
            command = self._done[-1]
            self.stalls += 1
        self._done = [*self._done[-1:], command]
        self._late, self._run = self._late + 1, self._run + 1
        return command


class LateExecutor(Executor):
    """The same in a simulator, where a chunk that is known at once is held back for `execution.latency` steps."""

    _coming: np.ndarray | None = None

    @property
    def asks(self) -> bool:
        """Every `period` steps, so that what a memory looks back at is known before."""
        return self.decisions == 0 or self._late == self.execution.period

    def give(self, chunk: np.ndarray) -> None:
        """What the policy decided in the present state, [H, A]; the first chunk is there at once."""
        self.ask()
        self._coming = chunk
        if self.decisions == 1 or self.execution.latency == 0:
            self._come()

    def command(self) -> np.ndarray:
        """See `Executor`."""
        command = super().command()
        if self._coming is not None and self._late == self.execution.latency:
            self._come()
        return command

    def _come(self) -> None:
        assert self._coming is not None, "a chunk arrives once"
        self.arrive(self._coming)
        self._coming = None


def _mean(commands: list[np.ndarray], poses: bool) -> np.ndarray:
    """Mean of commands [A] of one step, the oldest first, by ACT's weights; of quaternions the normalised one."""
    if len(commands) == 1:
        return commands[0]
    weights = np.exp(-ENSEMBLE_RATE * np.arange(len(commands)))
    weights /= weights.sum()
    mean = np.einsum("k,k...->...", weights, np.stack(commands))
    if not poses:
        return mean
    quats = split_arms(np.stack(commands))[..., 3:7]
    signs = np.where((quats * quats[-1]).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    split_arms(mean)[..., 3:7] = normalize(np.einsum("k,k...->...", weights, signs * quats))
    return mean


def jerk(poses: np.ndarray, control_hz: float) -> float:
    """Root mean square of the third derivative of the arms' positions, m/s^3, from measured poses [T, 16]; 0 for fewer
    than four."""
    third = np.diff(split_arms(poses)[..., :3], n=3, axis=0) * control_hz**3
    return float(np.sqrt((third**2).sum(axis=-1).mean())) if len(third) else 0.0
