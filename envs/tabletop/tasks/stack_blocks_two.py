"""stack_blocks_two: the red cube to the middle of the table, the green cube on top of it."""

from __future__ import annotations

import numpy as np

from envs.tabletop.expert import Command
from envs.tabletop.tasks.blocks import BlockTask
from envs.tabletop.world import LEFT, RIGHT, World

BASE_M = np.array([0.0, -0.13])
BASE_ZONE_M = np.array([0.13, 0.05])
"""The green cube is stacked on a red one anywhere within this distance of `BASE_M`."""


class StackBlocksTwo(BlockTask):
    """Stages: red in the middle and released, green lifted, green on red with both grippers open."""

    name = "stack_blocks_two"
    step_limit = 200
    stages = ("base_ready", "lifted", "stacked")
    blocks = ("red", "green")
    half = 0.025
    truth_names = tuple(f"{b}_{v}" for b in blocks for v in ("x", "y", "z", "cos4yaw", "sin4yaw"))

    def reset(self, world: World, rng: np.random.Generator) -> None:
        """Cubes on RoboTwin's ranges, 15 cm away from the middle."""
        self.scatter(world, rng, keep_clear=0.15)

    def succeeded(self, world: World) -> bool:
        """Green one edge above red within (2.5, 2.5) cm times the tolerance and 1.2 cm, both grippers open."""
        return self._stacked(world) and world.is_open(LEFT) and world.is_open(RIGHT)

    def _stacked(self, world: World) -> bool:
        offset = world.body("green").position - self._top(world)
        near = 0.025 * self.tolerance
        return bool((np.abs(offset) < [near, near, 0.012]).all())

    def progress(self, world: World) -> tuple[int, float]:
        """Reaching and carrying of the cube that is due."""
        if not self._base_ready(world):
            return 0, self.approach_fraction(world, "red", self._base(world))
        if self._stacked(world):
            return 2, 0.99
        fraction = self.approach_fraction(world, "green", self._top(world))
        lifted = world.body("green").position[2] > world.table_z + self.half + 0.02
        if lifted and self.holder(world, "green") is not None:
            return 2, 2 * fraction - 1
        return 1, fraction

    def expert(self, world: World) -> tuple[Command, Command]:
        """Red first; a green cube already in a gripper goes on top wherever red stands."""
        if self.holder(world, "green") is not None and self.resting(world, "red"):
            return self.work(world, "green", self.put(self._top(world)))
        if self._stacked(world) and self.holder(world, "red") is None:
            return self.leave(world, LEFT), self.leave(world, RIGHT)
        if self._base_ready(world):
            return self.work(world, "green", self.put(self._top(world)))
        return self.work(world, "red", self._base(world), following="green")

    def _base(self, world: World) -> np.ndarray:
        """Where red goes: the middle, or beside it while green is in the way."""
        green = world.body("green").position
        blocked = np.linalg.norm(green[:2] - BASE_M) < 0.09 and self.holder(world, "green") is None
        x = BASE_M[0] - (0.11 * np.sign(green[0]) if blocked else 0.0)
        return np.array([x, BASE_M[1], world.table_z + self.half])

    def _top(self, world: World) -> np.ndarray:
        return world.body("red").position + [0.0, 0.0, 2 * self.half]

    def _base_ready(self, world: World) -> bool:
        red, green = world.body("red").position, world.body("green").position
        near = bool((np.abs(red[:2] - BASE_M) < BASE_ZONE_M).all())
        clear = np.linalg.norm(red[:2] - green[:2]) > 0.07 or green[2] > red[2] + self.half
        return near and bool(clear) and self.resting(world, "red")
