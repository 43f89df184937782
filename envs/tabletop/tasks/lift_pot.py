"""lift_pot: both arms take a pot by its handles and lift it level."""

from __future__ import annotations

import numpy as np

from envs.tabletop.scene import OBJECT, box, free_body
from envs.tabletop.tasks.two_hand_lift import TwoHandLift
from envs.tabletop.world import LEFT, RIGHT, World

RADIUS_M, HALF_HEIGHT_M = 0.075, 0.045
HANDLE_HALF_M = (0.032, 0.011, 0.009)


class LiftPot(TwoHandLift):
    """A pot of primitives: a cylinder and two bars as handles."""

    name = "lift_pot"
    step_limit = 100
    edge_m = 0.021
    body = "pot"
    grip_m = (0.113, 0.03)
    rest_m = HALF_HEIGHT_M
    lift_m = 0.08
    truth_names = ("pot_x", "pot_y", "pot_z", "pot_cos2yaw", "pot_sin2yaw", "pot_upright")

    def objects_xml(self) -> str:
        """Pot, rim and handles."""
        handles = "".join(
            box(HANDLE_HALF_M, "0.9 0.55 0.05 1", 0.02, f'pos="{x} 0 {self.grip_m[1]}"')
            for x in (-RADIUS_M - 0.027, RADIUS_M + 0.027)
        )
        pot = (
            f'<geom type="cylinder" size="{RADIUS_M} {HALF_HEIGHT_M}" rgba="0.15 0.45 0.5 1" mass="0.25" {OBJECT}/>'
            f'<geom class="visual" type="cylinder" size="{RADIUS_M - 0.012} 0.001" pos="0 0 {HALF_HEIGHT_M}" '
            'rgba="0.05 0.1 0.12 1"/>'
        )
        return free_body(self.body, pot + handles)

    def reset(self, world: World, rng: np.random.Generator) -> None:
        """x and y within 5 cm, yaw within pi / 8 (RoboTwin's ranges)."""
        position = np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05), world.table_z + HALF_HEIGHT_M])
        world.place(self.body, position, rng.uniform(-np.pi / 8, np.pi / 8))

    def succeeded(self, world: World) -> bool:
        """8 cm above its rest (RoboTwin's 0.82 m), tools within 3 cm (times the tolerance) of the handles, level."""
        tools = all(self._off_grip(world, arm) < 0.03 * self.tolerance for arm in (LEFT, RIGHT))
        return self.lifted(world) > self.lift_m and tools and world.body(self.body).upright > 0.8

    def truth(self, world: World) -> np.ndarray:
        """Centre, heading modulo 180 degrees, uprightness."""
        body = world.body(self.body)
        yaw = 2 * body.yaw
        return np.array([*body.position, np.cos(yaw), np.sin(yaw), body.upright], dtype=np.float32)
