"""The randomized variant: what a seed changes in a copy of the compiled scene, besides the objects' places.

In the spirit of RoboTwin's demo_randomized (background, clutter, table height, light), with primitives and plain
textures. Solid distractors stand where no task works; flat decals lie anywhere.
"""

from __future__ import annotations

import mujoco
import numpy as np

from envs import se3
from envs.tabletop.scene import DECALS, DISTRACTORS, SURFACES, TABLE_Z_M
from envs.types import CAMERAS

TABLE_DROP_M = 0.03
"""The table is up to this much lower (RoboTwin's random_table_height)."""
CAMERA_JITTER = {"head_camera": (0.012, 0.02), "left_camera": (0.004, 0.02), "right_camera": (0.004, 0.02)}
"""Standard bounds of position (m) and rotation (rad) per camera."""
OBJECT_TINT = 0.08
BACKGROUND = (("table",), ("floor",), ("wall0", "wall1", "wall2", "wall3"))


def randomize(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Draw table height, lights, colours, textures, camera poses and clutter into `model`, in place."""
    table_z = TABLE_Z_M - rng.uniform(0.0, TABLE_DROP_M)
    model.body_pos[model.body("table").id, 2] = table_z
    vary_light(model, rng)
    vary_surfaces(model, rng)
    _vary_objects(model, rng)
    vary_cameras(model, rng)
    _place_clutter(model, rng, table_z)


def vary_light(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Direction, strength and warmth of the lamp, ambient light."""
    warmth = rng.uniform(-0.12, 0.12)
    tint = np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    model.light_dir[0] = se3.normalize(np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.6), -1.0]))
    model.light_diffuse[0] = np.clip(rng.uniform(0.25, 0.65) * tint, 0.0, 1.0)
    model.vis.headlight.ambient[:] = np.clip(rng.uniform(0.3, 0.5) * tint, 0.0, 1.0)
    model.vis.headlight.diffuse[:] = rng.uniform(0.15, 0.4)


def vary_surfaces(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Muted colours and a texture for table, floor and walls."""
    for names in BACKGROUND:
        colour = rng.uniform(0.45, 0.95) * rng.uniform(0.75, 1.0, 3)
        material = model.material(f"surface{rng.integers(len(SURFACES))}").id
        for name in names:
            geom = model.geom(name).id
            model.geom_rgba[geom, :3], model.geom_matid[geom] = colour, material


def _vary_objects(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """A slight tint of everything the task moves and of the arms; instructions name colours, so hues stay."""
    fixed = {model.geom(name).id for names in BACKGROUND for name in names}
    for geom in range(model.ngeom):
        if geom not in fixed:
            tinted = model.geom_rgba[geom, :3] + rng.uniform(-OBJECT_TINT, OBJECT_TINT, 3)
            model.geom_rgba[geom, :3] = np.clip(tinted, 0.02, 1.0)


def vary_cameras(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """A slight shift and turn of the three cameras a policy sees."""
    for name in CAMERAS:
        camera = model.camera(name).id
        shift, turn = CAMERA_JITTER[name]
        model.cam_pos[camera] += rng.uniform(-shift, shift, 3)
        rotation = np.concatenate([[1.0], 0.5 * rng.uniform(-turn, turn, 3)])
        model.cam_quat[camera] = se3.normalize(se3.quat_multiply(model.cam_quat[camera], rotation))


def _place_clutter(model: mujoco.MjModel, rng: np.random.Generator, table_z: float) -> None:
    """Two to five solids along the back and the sides of the table, up to three decals."""
    shown = rng.permutation(len(DISTRACTORS))[: rng.integers(2, len(DISTRACTORS))]
    back = iter(rng.permutation(np.linspace(-0.36, 0.36, 7)))
    for index in shown:
        body, geom = model.body(f"distractor{index}").id, model.geom(f"distractor{index}").id
        side = rng.choice([-1.0, 1.0])
        sideways = (side * rng.uniform(0.43, 0.54), rng.uniform(-0.1, 0.25))
        xy = (next(back), rng.uniform(0.315, 0.325)) if rng.random() < 0.6 else sideways
        model.body_pos[body] = [*xy, table_z + _half_height(model, geom)]
        model.body_quat[body] = _yaw_quat(rng.uniform(-np.pi, np.pi))
        model.geom_rgba[geom, :3] = rng.uniform(0.1, 0.9, 3)
    for index in range(rng.integers(0, len(DECALS) + 1)):
        body, geom = model.body(f"decal{index}").id, model.geom(f"decal{index}").id
        model.body_pos[body] = [rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.28), table_z + 0.0005]
        model.body_quat[body] = _yaw_quat(rng.uniform(-np.pi, np.pi))
        model.geom_rgba[geom, :3] = rng.uniform(0.35, 0.85) * rng.uniform(0.8, 1.0, 3)


def _half_height(model: mujoco.MjModel, geom: int) -> float:
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    if kind == int(mujoco.mjtGeom.mjGEOM_CYLINDER):
        return float(size[1])
    return float(size[0] + size[1]) if kind == int(mujoco.mjtGeom.mjGEOM_CAPSULE) else float(size[2])


def _yaw_quat(yaw: float) -> np.ndarray:
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
