"""blocks_ranking_rgb: red, green and blue cubes in a row from left to right."""

from __future__ import annotations

import numpy as np

from envs.tabletop.expert import Command
from envs.tabletop.tasks.blocks import BlockTask
from envs.tabletop.world import LEFT, RIGHT, World

SLOT_X_M = (-0.1, 0.0, 0.1)
ROW_Y_M = -0.16
IN_PLACE_M = np.array([0.02, 0.012])
SPARE_M = np.array([0.22, -0.02])
"""Where a cube is parked (mirrored to its arm's side) while another one stands in its slot."""


class BlocksRankingRGB(BlockTask):
    """Stages: each cube in its slot; the last one is success with both grippers open."""

    name = "blocks_ranking_rgb"
    step_limit = 300
    stages = ("one_placed", "two_placed", "ranked")
    blocks = ("red", "green", "blue")
    half = 0.02
    truth_names = tuple(f"{b}_{v}" for b in blocks for v in ("x", "y", "z", "cos4yaw", "sin4yaw"))

    def reset(self, world: World, rng: np.random.Generator) -> None:
        """Cubes on RoboTwin's ranges, drawn again while they are in order already."""
        while True:
            self.scatter(world, rng, keep_clear=0.1)
            xy = [world.data.qpos[self._start(world, name) :][:2].copy() for name in self.blocks]
            if not self._ordered(xy):
                return

    def succeeded(self, world: World) -> bool:
        """Neighbours within 13 cm and 3 cm times the tolerance, x rising from red to blue, both grippers open."""
        xy = [world.body(name).position[:2] for name in self.blocks]
        return self._ordered(xy) and world.is_open(LEFT) and world.is_open(RIGHT)

    def progress(self, world: World) -> tuple[int, float]:
        """Number of cubes in place; reaching and carrying of the next one."""
        placed = sum(self._in_place(world, name) for name in self.blocks)
        due = self._due(world)
        return min(placed, 2), 0.99 if due is None else self.approach_fraction(world, due, self._slot(world, due))

    def expert(self, world: World) -> tuple[Command, Command]:
        """The first misplaced cube whose slot is free; a cube in a gripper is finished first."""
        due = self._due(world)
        if due is None:
            return self.leave(world, LEFT), self.leave(world, RIGHT)
        centre = self._slot(world, due)
        if not self._free(world, due):
            side = -1.0 if self.arm_for(world, due) == LEFT else 1.0
            centre = np.array([side * SPARE_M[0], SPARE_M[1], centre[2]])
        waiting = [name for name in self.blocks if name != due and not self._in_place(world, name)]
        return self.work(world, due, centre, following=waiting[0] if waiting else None)

    def _start(self, world: World, name: str) -> int:
        return int(world.model.jnt_qposadr[world.model.body(name).jntadr[0]])

    def _ordered(self, xy: list[np.ndarray]) -> bool:
        steps = np.diff(np.array(xy), axis=0)
        return bool((np.abs(steps) < [0.13, 0.03 * self.tolerance]).all() and (steps[:, 0] > 0).all())

    def _slot(self, world: World, name: str) -> np.ndarray:
        return np.array([SLOT_X_M[self.blocks.index(name)], ROW_Y_M, world.table_z + self.half])

    def _in_place(self, world: World, name: str) -> bool:
        offset = np.abs(world.body(name).position[:2] - self._slot(world, name)[:2])
        return bool((offset < IN_PLACE_M).all()) and self.resting(world, name)

    def _free(self, world: World, name: str) -> bool:
        slot = self._slot(world, name)[:2]
        others = [world.body(other).position[:2] for other in self.blocks if other != name]
        return all(np.linalg.norm(other - slot) > 0.065 for other in others)

    def _due(self, world: World) -> str | None:
        misplaced = [name for name in self.blocks if not self._in_place(world, name)]
        held = [name for name in misplaced if self.holder(world, name) is not None]
        free = [name for name in misplaced if self._free(world, name)]
        return next(iter([*held, *free, *misplaced]), None)
