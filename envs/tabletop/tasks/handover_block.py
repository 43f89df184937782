"""handover_block: the left arm lifts a standing block, the right arm takes it in the air and puts it on the pad.

Differs from RoboTwin: block 5 x 5 x 20 cm (6 x 6 x 20), yaw within 0.25 rad of the table's axes instead of around
22.5 degrees, pad 5 mm thick, and the block must stand upright on it. Block and table are smooth: a clumsy gripper
pushes the block away more often than it tips it over.
"""

from __future__ import annotations

import numpy as np

from envs.tabletop.expert import Command, carried_goal, funnel, grasp, move, nearest_face, ramp, retreat, tool_rotation
from envs.tabletop.scene import SMOOTH, box, free_body
from envs.tabletop.tasks.base import HOME, Task, four_fold
from envs.tabletop.world import LEFT, RIGHT, Pose, World

HALF = (0.025, 0.025, 0.1)
PAD_TOP_M = 0.005
GRIP_OFFSET_M = 0.045
"""The left gripper holds this far below the block's centre, the right one above."""
PITCH = 0.25
HANDOVER_M = np.array([-0.03, -0.05, 0.17])
"""Block centre at the handover, above the table."""
HEADING = (np.pi / 3, np.pi * 5 / 6)
"""Tool headings at the handover; a right angle apart, so that the grippers hold different faces."""
MIN_COSINE = 0.75
UP = np.array([0.0, 0.0, 1.0])
CLOSING = (0.02, 0.036)
"""Grippers close early and open early: a policy cannot see millimetres in small pictures and would wait for them."""


class HandoverBlock(Task):
    """Stages: left holds the lifted block, both hold it, the right alone holds it, it stands on the pad."""

    name = "handover_block"
    step_limit = 180
    edge_m = 0.032
    stages = ("lifted", "both_hold", "right_holds", "placed")
    truth_names = ("block_x", "block_y", "block_z", "block_cos4yaw", "block_sin4yaw", "block_upright", "pad_x", "pad_y")

    def objects_xml(self) -> str:
        """A red block and a blue pad (mocap, so that its place is part of the state)."""
        pad = (
            f'<body name="pad" mocap="true"><geom type="box" size="0.05 0.05 {PAD_TOP_M / 2}" rgba="0.1 0.2 0.95 1" '
            'contype="1" conaffinity="1"/></body>'
        )
        return free_body("block", box(HALF, "0.9 0.1 0.1 1", 0.15, surface=SMOOTH)) + pad

    def reset(self, world: World, rng: np.random.Generator) -> None:
        """Block at x -0.25..-0.05, y 0..0.25, pad at x 0.1..0.25, y 0.15..0.2 (RoboTwin's ranges)."""
        block = np.array([rng.uniform(-0.25, -0.05), rng.uniform(0.0, 0.25), world.table_z + HALF[2]])
        world.place("block", block, rng.uniform(-0.25, 0.25))
        pad = np.array([rng.uniform(0.1, 0.25), rng.uniform(0.15, 0.2), world.table_z + PAD_TOP_M / 2])
        world.place("pad", pad, 0.0)

    def succeeded(self, world: World) -> bool:
        """Block upright on the pad within 3 cm (times the tolerance) in x and y, 1 cm in z, right gripper open."""
        return self._on_pad(world) and world.is_open(RIGHT)

    def _on_pad(self, world: World) -> bool:
        block, pad = world.body("block"), world.body("pad")
        offset = np.abs(block.position - HALF[2] * block.up - pad.position - PAD_TOP_M / 2 * UP)
        near = offset[0] < 0.03 * self.tolerance and offset[1] < 0.03 * self.tolerance
        return bool(near and offset[2] < 0.01 and block.upright > 0.9)

    def progress(self, world: World) -> tuple[int, float]:
        """Distances of the tool that acts next, or of the block to the pad."""
        block, pad = world.body("block"), world.body("pad")
        left, right = world.held(LEFT, "block"), world.held(RIGHT, "block")
        lift = block.position[2] - world.table_z - HALF[2]
        if self._on_pad(world) and not left:
            return 3, 0.99
        if right and not left:
            return 3, 1.0 - float(np.linalg.norm(block.position[:2] - pad.position[:2])) / 0.4
        if right and left:
            return 2, 0.5 * (1.0 - world.gripper(LEFT))
        if left and lift > 0.01:
            reach = np.linalg.norm(world.tcp(RIGHT).position - block.position - GRIP_OFFSET_M * block.up)
            return 1, 1.0 - float(np.linalg.norm(block.position - self._handover_centre(world)) + reach) / 0.8
        reach = np.linalg.norm(world.tcp(LEFT).position - block.position + GRIP_OFFSET_M * block.up)
        return 0, 0.8 * (1.0 - float(reach) / 0.5) + (0.2 if left else 0.0)

    def failure(self, world: World) -> str | None:
        """`off_table`; `tipped`, leaning by more than 40 degrees free or down on the table; `misheld`, so in a hand.

        The expert can neither stand a lying block up nor turn one in the hand.
        """
        if world.off_table("block"):
            return "off_table"
        block = world.body("block")
        low = block.position[2] - world.table_z < 0.07
        if block.upright < MIN_COSINE and (low or not world.touched("block")):
            return "tipped"
        turned = [world.held(arm, "block") and world.tcp(arm).up @ block.up < MIN_COSINE for arm in (LEFT, RIGHT)]
        return "misheld" if any(turned) else None

    def truth(self, world: World) -> np.ndarray:
        """Block position, heading modulo 90 degrees, uprightness; pad position."""
        block, pad = world.body("block"), world.body("pad")
        values = [*block.position, *four_fold(block.yaw), block.upright, *pad.position[:2]]
        return np.array(values, dtype=np.float32)

    def expert(self, world: World) -> tuple[Command, Command]:
        """Who holds the block decides the phase; poses decide everything else."""
        left, right = world.held(LEFT, "block"), world.held(RIGHT, "block")
        if right and left:
            return self._hold(world, LEFT, 1.0), self._hold(world, RIGHT, 0.0)
        if right:
            return self._leave(world, LEFT), self._carry_to_pad(world)
        if left:
            return self._carry_to_handover(world), self._take(world)
        block, pad = world.body("block"), world.body("pad")
        if np.abs(block.position - self.put(pad.position))[:2].max() < 0.03 * self.tolerance:
            return self._leave(world, LEFT), self._leave(world, RIGHT)
        if block.position[0] > 0.06:
            return self._leave(world, LEFT), self._pick(world, RIGHT, np.pi / 2 + 0.2)
        return self._pick(world, LEFT, np.pi / 2), self._leave(world, RIGHT)

    def _hold(self, world: World, arm: int, gripper: float) -> Command:
        tcp = world.tcp(arm)
        return Command(tcp.position, tcp.rotation, gripper)

    def _leave(self, world: World, arm: int) -> Command:
        return retreat(world.tcp(arm), self._grip_point(world, arm), HOME[arm])

    def _grip_point(self, world: World, arm: int) -> np.ndarray:
        block = world.body("block")
        return block.position + (GRIP_OFFSET_M if arm == RIGHT else -GRIP_OFFSET_M) * block.up

    def _pick(self, world: World, arm: int, preferred: float) -> Command:
        """Grasp the standing block from the side whose face is nearest to the preferred heading."""
        rotation = tool_rotation(nearest_face(world.body("block").yaw, self.turned(preferred)), PITCH)
        goal = self.aimed(Pose(self._grip_point(world, arm), rotation), -rotation[:, 0])
        return grasp(world.tcp(arm), goal, -rotation[:, 0], height=0.1, closing=CLOSING)

    def _handover_centre(self, world: World) -> np.ndarray:
        return HANDOVER_M + np.array([0.0, 0.0, world.table_z])

    def _carry_to_handover(self, world: World) -> Command:
        """Lift while moving: sideways only as fast as the block clears the table."""
        tcp, block = world.tcp(LEFT), world.body("block")
        goal = carried_goal(tcp, block, self._handover_centre(world), HEADING[LEFT])
        free = ramp(block.position[2] - HALF[2] - world.table_z, -0.005, 0.03)
        target = goal.position.copy()
        target[:2] = tcp.position[:2] + free * (target[:2] - tcp.position[:2])
        return move(tcp, target, goal.rotation, 0.0)

    def _take(self, world: World) -> Command:
        """Close in on the upper half as the block comes to the handover point."""
        tcp, block = world.tcp(RIGHT), world.body("block")
        away = float(np.linalg.norm(block.position - self._handover_centre(world)))
        near = ramp(away, 0.08, 0.02)
        nominal = self._handover_centre(world) + GRIP_OFFSET_M * UP
        point = near * self._grip_point(world, RIGHT) + (1.0 - near) * nominal
        heading = near * nearest_face(block.yaw, HEADING[RIGHT]) + (1.0 - near) * HEADING[RIGHT]
        rotation = tool_rotation(heading, PITCH)
        goal = Pose(point, rotation)
        return grasp(tcp, goal, -rotation[:, 0], height=0.14, standoff=0.14 * ramp(away, 0.01, 0.06), closing=CLOSING)

    def _carry_to_pad(self, world: World) -> Command:
        """Over the pad, down, and open within the last centimetre; waits for the left gripper to be clear."""
        tcp, block, pad = world.tcp(RIGHT), world.body("block"), world.body("pad")
        goal_centre = self.put(pad.position) + (PAD_TOP_M / 2 + HALF[2]) * UP
        offset = block.position - goal_centre
        goal = carried_goal(tcp, block, goal_centre, np.pi / 2 + 0.3)
        clear = ramp(float(np.linalg.norm(world.tcp(LEFT).position - self._grip_point(world, LEFT))), 0.03, 0.08)
        placed = ramp(offset[2], 0.015, 0.006) * ramp(float(np.linalg.norm(offset[:2])), 0.028, 0.02)
        command = funnel(tcp, goal, UP, height=0.07, gripper=placed, slope=2.0)
        position = tcp.position + clear * (command.position - tcp.position)
        return Command(position, command.rotation if clear > 0.5 else tcp.rotation, command.gripper)
