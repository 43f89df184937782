"""What the cube tasks share: reset ranges, picking and placing from above, and who works while the other waits."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from envs.tabletop.expert import (
    DOWN,
    Command,
    bounded,
    funnel,
    grasp,
    nearest_face,
    ramp,
    retreat,
    tool_heading,
    tool_rotation,
)
from envs.tabletop.scene import box, free_body
from envs.tabletop.tasks.base import HOME, Task, four_fold
from envs.tabletop.world import LEFT, RIGHT, Pose, World, standing_cube

UP = np.array([0.0, 0.0, 1.0])
HEADING = np.pi / 2
SIDE = (1.0, -1.0)
"""Sign of x towards the other arm."""
HOVER_M = 0.09
GAP_M = 0.14
"""Least distance of the two tools in x."""
X_RANGE_M, Y_RANGE_M, YAW_RANGE = (-0.28, 0.28), (-0.08, 0.05), 0.6
"""RoboTwin's reset ranges; yaw 0.75 there, less here to keep the choice of face unambiguous."""
REACH_X_M, REACH_Y_M = 0.4, (-0.3, 0.2)
COLOURS = {"red": "0.9 0.08 0.08 1", "green": "0.1 0.75 0.15 1", "blue": "0.1 0.2 0.95 1"}


class BlockTask(Task):
    """Cubes named by colour, moved one at a time by the arm on whose side they lie."""

    blocks: ClassVar[tuple[str, ...]]
    half: ClassVar[float]

    def objects_xml(self) -> str:
        """One free cube per colour."""
        half = (self.half, self.half, self.half)
        return "".join(free_body(name, box(half, COLOURS[name], 0.08)) for name in self.blocks)

    def cube(self, world: World, name: str) -> Pose:
        """The cube's pose with z up whichever face it lies on."""
        return standing_cube(world.body(name))

    def holder(self, world: World, name: str) -> int | None:
        """The arm that holds a cube, None if neither does."""
        return next((arm for arm in (LEFT, RIGHT) if world.held(arm, name)), None)

    def resting(self, world: World, name: str) -> bool:
        """On the table (not on another block) and in no gripper."""
        height = world.body(name).position[2] - world.table_z
        return height < self.half + 0.008 and self.holder(world, name) is None

    def failure(self, world: World) -> str | None:
        """`off_table`, or `out_of_reach` for a cube outside both arms' area that no gripper touches."""
        for name in self.blocks:
            if world.off_table(name):
                return "off_table"
            x, y, _ = world.body(name).position
            if not (abs(x) < REACH_X_M and REACH_Y_M[0] < y < REACH_Y_M[1]) and not world.touched(name):
                return "out_of_reach"
        return None

    def truth(self, world: World) -> np.ndarray:
        """Position and heading modulo 90 degrees of each cube."""
        cubes = [self.cube(world, name) for name in self.blocks]
        return np.array([v for c in cubes for v in (*c.position, *four_fold(c.yaw))], dtype=np.float32)

    def scatter(self, world: World, rng: np.random.Generator, keep_clear: float) -> None:
        """Random cubes, 10 cm apart, `keep_clear` away from (0, -0.1) and not on the middle line."""
        placed: list[np.ndarray] = []
        for name in self.blocks:
            while True:
                xy = np.array([rng.uniform(*X_RANGE_M), rng.uniform(*Y_RANGE_M)])
                clear = all(np.linalg.norm(xy - other) > 0.1 for other in placed)
                if clear and abs(xy[0]) > 0.05 and np.linalg.norm(xy - [0.0, -0.1]) > keep_clear:
                    break
            placed.append(xy)
            world.place(name, np.array([*xy, world.table_z + self.half]), rng.uniform(-YAW_RANGE, YAW_RANGE))

    def arm_for(self, world: World, name: str) -> int:
        """The arm on the cube's side."""
        return LEFT if world.body(name).position[0] < 0 else RIGHT

    def pick(self, world: World, arm: int, name: str) -> Command:
        """Grasp from above."""
        return grasp(world.tcp(arm), self.aimed(self._grip(world, name), UP), UP, height=HOVER_M)

    def hover(self, world: World, arm: int, name: str, limit_x: float) -> Command:
        """Wait open above a cube, on the arm's own side of `limit_x`."""
        grip = self._grip(world, name)
        x = bounded(grip.position[0], limit_x, SIDE[arm])
        goal = Pose(np.array([x, *grip.position[1:]]), grip.rotation)
        return funnel(world.tcp(arm), goal, UP, height=HOVER_M, gripper=1.0, standoff=HOVER_M)

    def _grip(self, world: World, name: str) -> Pose:
        """Tool pose on a cube: fingers on the faces that no neighbour blocks, else on those nearest to `HEADING`."""
        cube = self.cube(world, name)
        heading = nearest_face(cube.yaw, self.turned(HEADING))
        closing = tool_rotation(heading, DOWN)[:, 1]
        offsets = [world.body(other).position - cube.position for other in self.blocks if other != name]
        near = [offset for offset in offsets if np.linalg.norm(offset[:2]) < 2 * self.half + 0.05]
        if any(abs(offset @ closing) > 0.7 * np.linalg.norm(offset) for offset in near):
            heading += np.pi / 2 if heading < HEADING else -np.pi / 2
        return Pose(cube.position, tool_rotation(heading, DOWN))

    def carry(self, world: World, arm: int, name: str, centre: np.ndarray) -> Command:
        """Bring a held cube's centre to `centre` from above, open when its lowest corner is there.

        The tool points down whatever the cube's tilt in the hand; the table straightens it.
        """
        tcp, cube = world.tcp(arm), self.cube(world, name)
        reach_down = self.half * float(np.abs(cube.rotation[2]).sum())
        offset = cube.position - centre - (reach_down - self.half) * UP
        heading = nearest_face(HEADING, tool_heading(tcp))
        goal = Pose(tcp.position - offset, tool_rotation(heading, DOWN))
        placed = ramp(offset[2], 0.007, 0.003) * ramp(float(np.linalg.norm(offset[:2])), 0.012, 0.008)
        return funnel(tcp, goal, UP, height=HOVER_M, gripper=placed, slope=2.0)

    def leave(self, world: World, arm: int) -> Command:
        """Clear the nearest cube, then go home."""
        tcp = world.tcp(arm)
        centres = [world.body(name).position for name in self.blocks]
        nearest = min(centres, key=lambda centre: float(np.linalg.norm(centre - tcp.position)))
        return retreat(tcp, nearest, HOME[arm])

    def work(
        self, world: World, name: str, centre: np.ndarray, following: str | None = None
    ) -> tuple[Command, Command]:
        """Move cube `name` to `centre`; the other arm waits above `following` if that is on its side."""
        holder = self.holder(world, name)
        arm = self.arm_for(world, name) if holder is None else holder
        active = self.pick(world, arm, name) if holder is None else self.carry(world, arm, name, centre)
        active = self._behind_other(world, arm, active)
        if following is not None and self.arm_for(world, following) != arm:
            side = SIDE[arm]
            stops = (world.tcp(arm).position[0], world.body(name).position[0], centre[0])
            foremost = side * max(side * float(x) for x in stops)
            waiting = self.hover(world, 1 - arm, following, foremost + side * (GAP_M + 0.04))
        else:
            waiting = self.leave(world, 1 - arm)
        return (active, waiting) if arm == LEFT else (waiting, active)

    def _behind_other(self, world: World, arm: int, command: Command) -> Command:
        """Stop the sideways motion while the other hand is less than `GAP_M` ahead."""
        side = SIDE[arm]
        limit = side * max(side * world.tcp(1 - arm).position[0] - GAP_M, side * world.tcp(arm).position[0])
        position = np.array([bounded(command.position[0], limit, side), *command.position[1:]])
        return Command(position, command.rotation, command.gripper)

    def approach_fraction(self, world: World, name: str, centre: np.ndarray) -> float:
        """Half for reaching a cube, half for bringing it to `centre`."""
        distance = float(np.linalg.norm(world.body(name).position - centre))
        if self.holder(world, name) is not None:
            return 1.0 - 0.5 * min(1.0, distance / 0.4)
        reach = float(np.linalg.norm(world.tcp(self.arm_for(world, name)).position - world.body(name).position))
        return 0.5 * (1.0 - min(1.0, reach / 0.5))
