"""What the two-arm lifts share: both grippers take an object from above at its ends and raise it together."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from envs.tabletop.expert import DOWN, Command, carried_goal, grasp, move, nearest_face, tool_heading, tool_rotation
from envs.tabletop.tasks.base import Task
from envs.tabletop.world import LEFT, RIGHT, Pose, World

UP = np.array([0.0, 0.0, 1.0])
HEADING = (0.0, np.pi)
"""Tool headings: wrist cameras on the inner side, fingers across the object's long axis."""
LIFT_STEP_M = 0.018
MAX_SLIP_M = 0.025
REACH_X_M, REACH_Y_M = 0.28, (-0.32, 0.2)


class TwoHandLift(Task):
    """Stages: both grippers hold the object, it is lifted."""

    stages = ("grasped", "lifted")
    body: ClassVar[str]
    grip_m: ClassVar[tuple[float, float]]
    """Distance of the grip points from the body's centre along its x axis and their height above it."""
    rest_m: ClassVar[float]
    """Height of the body's centre above the table at rest."""
    lift_m: ClassVar[float]
    """How much the centre must rise for success."""

    @abstractmethod
    def succeeded(self, world: World) -> bool:
        """Task-specific check."""

    def grip_point(self, world: World, arm: int) -> np.ndarray:
        """World position (m) of an arm's grip point: the left arm takes the end with the smaller x."""
        body = world.body(self.body)
        along = body.rotation[:, 0] * (-1.0 if body.rotation[0, 0] >= 0 else 1.0)
        return body.position + (1.0 if arm == LEFT else -1.0) * self.grip_m[0] * along + self.grip_m[1] * body.up

    def lifted(self, world: World) -> float:
        """Height of the body's centre above its rest, m."""
        return float(world.body(self.body).position[2]) - world.table_z - self.rest_m

    def progress(self, world: World) -> tuple[int, float]:
        """Reach of both tools, then height."""
        holds = [world.held(arm, self.body) for arm in (LEFT, RIGHT)]
        if all(holds):
            return 1, self.lifted(world) / self.lift_m
        reach = [self._off_grip(world, arm) for arm in (LEFT, RIGHT)]
        return 0, sum(0.45 if held else 0.4 * (1 - d / 0.4) for held, d in zip(holds, reach, strict=True))

    def _off_grip(self, world: World, arm: int) -> float:
        return float(np.linalg.norm(world.tcp(arm).position - self.grip_point(world, arm)))

    def failure(self, world: World) -> str | None:
        """`off_table`, `tipped`, or `out_of_reach` when no gripper touches it."""
        if world.off_table(self.body):
            return "off_table"
        body = world.body(self.body)
        if self.tipped(body):
            return "tipped"
        if world.touched(self.body):
            return None
        x, y, _ = body.position
        return None if abs(x) < REACH_X_M and REACH_Y_M[0] < y < REACH_Y_M[1] else "out_of_reach"

    def tipped(self, body: Pose) -> bool:
        """Whether the object has fallen over: more than 53 degrees, held or not."""
        return body.upright < 0.6

    def expert(self, world: World) -> tuple[Command, Command]:
        """Both grasp; with both grips the lower tool leads the lift; with one grip that arm puts its end down.

        A grip away from its point is given up and taken again.
        """
        holds = [world.held(arm, self.body) and self._off_grip(world, arm) < MAX_SLIP_M for arm in (LEFT, RIGHT)]
        if all(holds):
            return self._lift(world, LEFT), self._lift(world, RIGHT)
        left, right = (self._hold(world, arm) if holds[arm] else self._grasp(world, arm) for arm in (LEFT, RIGHT))
        return left, right

    def _grasp(self, world: World, arm: int) -> Command:
        body = world.body(self.body)
        rotation = tool_rotation(nearest_face(body.yaw, HEADING[arm], np.pi), DOWN)
        grip = self.aimed(Pose(self.grip_point(world, arm), rotation), UP)
        return grasp(world.tcp(arm), grip, UP, height=0.09)

    def _hold(self, world: World, arm: int) -> Command:
        """Bring the object back to rest, level, while the other arm comes."""
        tcp, body = world.tcp(arm), world.body(self.body)
        rest = np.array([*body.position[:2], world.table_z + self.rest_m])
        goal = carried_goal(tcp, body, rest, tool_heading(tcp))
        return move(tcp, goal.position, goal.rotation, 0.0, speed=0.5)

    def _lift(self, world: World, arm: int) -> Command:
        tcp = world.tcp(arm)
        lowest = min(self.grip_point(world, LEFT)[2], self.grip_point(world, RIGHT)[2])
        top = world.table_z + self.rest_m + self.grip_m[1] + self.lift_m + 0.04
        rise = min(lowest + LIFT_STEP_M, top) - self.grip_point(world, arm)[2]
        heading = nearest_face(world.body(self.body).yaw, HEADING[arm], np.pi)
        return move(tcp, tcp.position + rise * UP, tool_rotation(heading, DOWN), 0.0)
