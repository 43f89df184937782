"""grab_roller: both arms take a roller at its ends and lift it."""

from __future__ import annotations

import numpy as np

from envs.tabletop.scene import OBJECT, free_body
from envs.tabletop.tasks.two_hand_lift import TwoHandLift
from envs.tabletop.world import LEFT, RIGHT, Pose, World

RADIUS_M, HALF_LENGTH_M = 0.02, 0.13
ROLLING = OBJECT.replace('condim="4"', 'condim="6"').replace('friction="1 0.02 0.001"', 'friction="1 0.02 0.004"')
"""Rolling friction: a touched roller stops after centimetres instead of leaving the table."""


class GrabRoller(TwoHandLift):
    """A brown roller with dark handles, lying along the table's x axis."""

    name = "grab_roller"
    step_limit = 100
    edge_m = 0.016
    body = "roller"
    grip_m = (0.1, 0.0)
    rest_m = RADIUS_M
    lift_m = 0.06
    truth_names = ("roller_x", "roller_y", "roller_z", "roller_cos2yaw", "roller_sin2yaw", "roller_slope")

    def objects_xml(self) -> str:
        """One cylinder; the dark ends are only painted on."""
        ends = "".join(
            f'<geom class="visual" type="cylinder" size="{RADIUS_M + 0.0008} 0.03" pos="{x} 0 0" '
            'quat="0.7071068 0 0.7071068 0" rgba="0.15 0.35 0.75 1"/>'
            for x in (-self.grip_m[0], self.grip_m[0])
        )
        body = (
            f'<geom type="cylinder" size="{RADIUS_M} {HALF_LENGTH_M}" quat="0.7071068 0 0.7071068 0" '
            f'rgba="0.85 0.3 0.1 1" mass="0.2" {ROLLING}/>'
        )
        return free_body(self.body, body + ends)

    def reset(self, world: World, rng: np.random.Generator) -> None:
        """x -0.12..0.12, y -0.2..-0.05 (RoboTwin 0.15 and -0.25..-0.05), yaw within 0.4 rad."""
        position = np.array([rng.uniform(-0.12, 0.12), rng.uniform(-0.2, -0.05), world.table_z + RADIUS_M])
        world.place(self.body, position, rng.uniform(-0.4, 0.4))

    def succeeded(self, world: World) -> bool:
        """Centre 6 cm above its rest (0.82 m; RoboTwin 0.8), both grippers closed on it."""
        held = world.held(LEFT, self.body) and world.held(RIGHT, self.body)
        closed = not (world.is_open(LEFT) or world.is_open(RIGHT))
        return self.lifted(world) > self.lift_m and closed and held

    def tipped(self, body: Pose) -> bool:
        """A roller stands on its end."""
        return abs(float(body.rotation[2, 0])) > 0.7

    def truth(self, world: World) -> np.ndarray:
        """Centre, heading modulo 180 degrees, slope of the axis."""
        body = world.body(self.body)
        yaw = 2 * body.yaw
        return np.array([*body.position, np.cos(yaw), np.sin(yaw), body.rotation[2, 0]], dtype=np.float32)
