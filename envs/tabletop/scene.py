"""The whole scene as one MJCF string: table, floor, lights, cameras, arms, and what a task or variant adds.

The two arms have 6 hinges each (yaw, pitch, pitch, pitch, yaw, roll), a parallel gripper and a wrist camera; geoms
only. Zero pose: upper arm up, forearm and gripper forward (+y of the world). The tool frame `tcp` lies between the
finger pads: x forward along the gripper, y the closing direction, z up. RoboTwin's endpose is 0.12 m behind it along x.

In the randomized variant a seed changes more in a copy of the compiled scene than the objects' places, in the spirit of
RoboTwin's demo_randomized (background, clutter, table height, light), with primitives and plain textures. Solid
distractors stand where no task works; flat decals lie anywhere.
"""

from __future__ import annotations

import envs.tabletop.gl  # noqa: F401  isort: skip  (chooses MUJOCO_GL before mujoco is imported)
import math
from functools import lru_cache

import mujoco
import numpy as np

from envs import se3
from envs.types import CAMERAS

TABLE_Z_M = 0.74

TABLE_HALF_M = (0.6, 0.35)

SUBSTEP_S = 0.005

SUBSTEPS = 16

CONTROL_HZ = 1.0 / (SUBSTEP_S * SUBSTEPS)

OBJECT = 'contype="1" conaffinity="7" condim="4" friction="1 0.02 0.001" solref="0.01 1"'
"""Attributes of every geom that is touched."""

SMOOTH = OBJECT.replace('friction="1 ', 'friction="0.3 ')
"""A smooth surface. The larger friction of two touching geoms counts, so only smooth things slide on each other."""

DISTRACTORS = (
    'type="box" size="0.022 0.022 0.03"',
    'type="cylinder" size="0.022 0.04"',
    'type="ellipsoid" size="0.03 0.022 0.022"',
    'type="box" size="0.035 0.02 0.015"',
    'type="cylinder" size="0.03 0.012"',
    'type="capsule" size="0.018 0.025"',
)

DECALS = (
    'type="box" size="0.06 0.04 0.0004"',
    'type="cylinder" size="0.045 0.0004"',
    'type="box" size="0.03 0.09 0.0004"',
)

SURFACES = (
    'builtin="flat" rgb1="1 1 1"',
    'builtin="checker" rgb1="1 1 1" rgb2="0.72 0.72 0.72"',
    'builtin="gradient" rgb1="1 1 1" rgb2="0.6 0.6 0.6"',
    'builtin="flat" rgb1="1 1 1" mark="cross" markrgb="0.6 0.6 0.6"',
    'builtin="flat" rgb1="1 1 1" mark="random" random="0.08" markrgb="0.45 0.45 0.45"',
    'builtin="checker" rgb1="0.95 0.95 0.95" rgb2="0.8 0.8 0.8" mark="edge" markrgb="0.55 0.55 0.55"',
)
"""Grey textures; a geom's own colour tints them."""


def free_body(name: str, geoms: str) -> str:
    """A movable object; its pose is set at reset."""
    return f'<body name="{name}"><freejoint name="{name}"/>{geoms}</body>'


def box(half: tuple[float, float, float], rgba: str, mass: float, extra: str = "", surface: str = OBJECT) -> str:
    """A solid box geom with half sizes in metres and mass in kilograms."""
    return f'<geom type="box" size="{half[0]} {half[1]} {half[2]}" rgba="{rgba}" mass="{mass}" {surface} {extra}/>'


def _assets_xml() -> str:
    return "".join(
        f'<texture name="surface{i}" type="2d" width="128" height="128" {style}/>'
        f'<material name="surface{i}" texture="surface{i}" texrepeat="6 4" texuniform="false" specular="0.1"/>'
        for i, style in enumerate(SURFACES)
    )


def _clutter_xml() -> str:
    """Bodies that only the randomized variant shows, parked below the floor until a reset places them."""
    solids = "".join(
        f'<body name="distractor{i}" pos="0 0 -2"><geom name="distractor{i}" {shape} {OBJECT}/></body>'
        for i, shape in enumerate(DISTRACTORS)
    )
    decals = "".join(
        f'<body name="decal{i}" pos="0 0 -2"><geom name="decal{i}" class="visual" {shape}/></body>'
        for i, shape in enumerate(DECALS)
    )
    return solids + decals


def _room_xml() -> str:
    """Floor and four walls; boxes instead of a sky box, which would cost a third of an image's time."""
    walls = "".join(
        f'<geom name="wall{i}" class="visual" type="box" size="{size}" pos="{pos}" rgba="0.66 0.7 0.74 1"/>'
        for i, (size, pos) in enumerate(
            [
                ("2.2 0.01 1.5", "0 1.8 1.5"),
                ("2.2 0.01 1.5", "0 -2.2 1.5"),
                ("0.01 2.2 1.5", "-2.2 -0.2 1.5"),
                ("0.01 2.2 1.5", "2.2 -0.2 1.5"),
            ]
        )
    )
    return f'<geom name="floor" class="visual" type="box" size="2.2 2.2 0.01" rgba="0.45 0.47 0.5 1"/>{walls}'


def scene_xml(objects: str, clutter: bool) -> str:
    """MJCF of a task scene; `objects` are the task's bodies, `clutter` adds the randomized variant's bodies."""
    width, depth = TABLE_HALF_M
    legs = "".join(
        f'<geom class="visual" type="box" size="0.02 0.02 0.35" pos="{x} {y} -0.39" rgba="0.35 0.3 0.27 1"/>'
        for x in (-0.55, 0.55)
        for y in (-0.3, 0.3)
    )
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{SUBSTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <size memory="4M"/>
  <statistic extent="1" center="0 0 {TABLE_Z_M}"/>
  <visual>
    <global offwidth="960" offheight="480"/>
    <map znear="0.015" zfar="10"/>
    <quality shadowsize="0" offsamples="4" numslices="12" numstacks="6" numquads="1"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
  </visual>
  <default>{defaults_xml()}</default>
  <asset>{_assets_xml()}</asset>
  <worldbody>
    <light name="main" pos="0.3 -0.6 2.4" dir="-0.15 0.3 -1" directional="true" diffuse="0.45 0.45 0.45"/>
    <camera name="head_camera" pos="-0.032 -0.45 1.35" xyaxes="1 0 0 0 0.777 0.629" fovy="50"/>
    <camera name="watch_camera" pos="0 1.15 1.55" xyaxes="-1 0 0 0 -0.58 0.81" fovy="45"/>
    {_room_xml()}
    <body name="table" pos="0 0 {TABLE_Z_M}">
      <geom name="table" type="box" size="{width} {depth} 0.02" pos="0 0 -0.02" rgba="0.86 0.82 0.74 1" {SMOOTH}/>
      {legs}
    </body>
    {arm_xml("left")}{arm_xml("right")}
    {objects}
    {_clutter_xml() if clutter else ""}
  </worldbody>
  <actuator>{actuators_xml()}</actuator>
</mujoco>"""


@lru_cache(maxsize=16)
def compile_scene(objects: str, clutter: bool) -> mujoco.MjModel:
    """The compiled scene, shared: copy it before changing it."""
    return mujoco.MjModel.from_xml_string(scene_xml(objects, clutter))


@lru_cache(maxsize=1)
def compile_arms() -> mujoco.MjModel:
    """Only the two arms, for kinematics."""
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><compiler angle="radian" autolimits="true"/><default>{defaults_xml()}</default>'
        f"<worldbody>{arm_xml('left')}{arm_xml('right')}</worldbody></mujoco>"
    )


BASE_X_M = 0.3

BASE_Y_M = -0.42

BASE_Z_M = 0.74

FINGER_TRAVEL_M = 0.045
"""Distance of each pad's inner face from the tool axis when the gripper is open."""

JOINTS = 6

JOINT_RANGE = np.array([[-2.0, 2.0], [-1.2, 1.5], [-1.45, 1.3], [-2.2, 2.4], [-1.5, 1.5], [-3.1, 3.1]])
"""Radians; the elbow's range excludes the straight arm, so each tool pose has one solution."""

STIFFNESS = (1200.0, 1200.0, 900.0, 300.0, 300.0, 150.0)

TORQUE_LIMIT = (150.0, 150.0, 120.0, 40.0, 40.0, 20.0)

HOME_JOINTS = np.array(
    [[-0.28758, -0.7099, 1.05999, 0.26914, 0.23726, -0.16584], [0.28758, -0.7099, 1.05999, 0.26914, -0.23726, 0.16584]]
)
"""Start of every episode: tools at (-/+0.26, -0.16, 0.95) m, forward and 0.6 rad downwards."""

WRIST_TILT = math.radians(32)

PAD_FRICTION = "1.6 0.05 0.002"

COLLISION = {"left": 'contype="2" conaffinity="4"', "right": 'contype="4" conaffinity="2"'}
"""Bit 0 table and objects, bit 1 left arm, bit 2 right arm: an arm touches everything but itself."""


def arm_xml(arm: str) -> str:
    """The body tree of one arm, "left" or "right"."""
    x = -BASE_X_M if arm == "left" else BASE_X_M
    link, joint = f'class="{arm}_link"', lambda i: f'name="{arm}_joint{i}" class="arm_joint{i}"'
    tilt = f"0 -1 0 {math.sin(WRIST_TILT):.5f} 0 {math.cos(WRIST_TILT):.5f}"
    return f"""
<body name="{arm}_base" pos="{x} {BASE_Y_M} {BASE_Z_M}" quat="0.7071068 0 0 0.7071068">
  <geom class="visual" type="cylinder" size="0.06 0.2" pos="0 0 -0.1" rgba="0.25 0.27 0.3 1"/>
  <body name="{arm}_link1" pos="0 0 0.12" gravcomp="1">
    <joint {joint(1)} axis="0 0 1"/>
    <geom {link} type="cylinder" size="0.05 0.03" mass="0.8"/>
    <body name="{arm}_link2" pos="0 0 0.04" gravcomp="1">
      <joint {joint(2)} axis="0 1 0"/>
      <geom {link} type="capsule" fromto="0 0 0 0 0 0.38" size="0.036" mass="0.8"/>
      <body name="{arm}_link3" pos="0 0 0.38" gravcomp="1">
        <joint {joint(3)} axis="0 1 0"/>
        <geom {link} type="capsule" fromto="0 0 0 0.38 0 0" size="0.03" mass="0.6"/>
        <body name="{arm}_link4" pos="0.38 0 0" gravcomp="1">
          <joint {joint(4)} axis="0 1 0"/>
          <geom {link} type="capsule" fromto="0 0 0 0.04 0 0" size="0.026" mass="0.25"/>
          <body name="{arm}_link5" pos="0.04 0 0" gravcomp="1">
            <joint {joint(5)} axis="0 0 1"/>
            <geom {link} type="capsule" fromto="0 0 0 0.03 0 0" size="0.024" mass="0.15"/>
            {_hand_xml(arm, joint(6), link, tilt)}
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def _hand_xml(arm: str, joint: str, link: str, tilt: str) -> str:
    fingers = "".join(
        f"""
<body name="{arm}_finger{side}" pos="0 0 0" gravcomp="1">
  <joint name="{arm}_slide{side}" class="finger" axis="0 {sign} 0"/>
  <geom {link} type="box" pos="0.08 {sign * 0.011} 0" size="0.018 0.005 0.011" mass="0.02"/>
  <geom name="{arm}_pad{side}" class="{arm}_pad" pos="0.107 {sign * 0.006} 0" size="0.027 0.006 0.011" mass="0.03"/>
</body>"""
        for side, sign in (("1", 1), ("2", -1))
    )
    return f"""
<body name="{arm}_hand" pos="0.03 0 0" gravcomp="1">
  <joint {joint} axis="1 0 0"/>
  <geom {link} type="cylinder" fromto="0 0 0 0.03 0 0" size="0.026" mass="0.1"/>
  <geom {link} type="box" pos="0.046 0 0" size="0.018 0.056 0.02" mass="0.15"/>
  <camera name="{arm}_camera" pos="0.03 0 0.08" xyaxes="{tilt}" fovy="75"/>
  <site name="{arm}_tcp" pos="0.12 0 0" rgba="0 0 0 0"/>
  {fingers}
</body>"""


def defaults_xml() -> str:
    """Default classes used by `arm_xml`."""
    joints = "".join(
        f'<default class="arm_joint{i + 1}"><joint range="{low} {high}" armature="0.04" damping="1.0"/></default>'
        for i, (low, high) in enumerate(JOINT_RANGE)
    )
    arms = "".join(
        f'<default class="{arm}_link"><geom {COLLISION[arm]} rgba="{rgba}"/></default>'
        f'<default class="{arm}_pad"><geom type="box" {COLLISION[arm]} rgba="0.1 0.1 0.12 1" condim="4" '
        f'friction="{PAD_FRICTION}" solref="0.01 1" priority="1"/></default>'
        for arm, rgba in (("left", "0.93 0.93 0.95 1"), ("right", "0.62 0.66 0.72 1"))
    )
    return f"""
{joints}{arms}
<default class="visual"><geom contype="0" conaffinity="0"/></default>
<default class="finger">
  <joint type="slide" range="0 {FINGER_TRAVEL_M}" armature="0.02" damping="2"/>
</default>"""


def actuators_xml() -> str:
    """Position servos: ctrl is [left 6 joints, left 2 fingers, right 6 joints, right 2 fingers]."""
    rows = []
    for arm in ("left", "right"):
        for i, (kp, limit) in enumerate(zip(STIFFNESS, TORQUE_LIMIT, strict=True)):
            low, high = JOINT_RANGE[i]
            rows.append(
                f'<position joint="{arm}_joint{i + 1}" kp="{kp}" dampratio="1" forcerange="{-limit} {limit}" '
                f'ctrlrange="{low} {high}"/>'
            )
        for side in "12":
            rows.append(
                f'<position joint="{arm}_slide{side}" kp="800" dampratio="1" forcerange="-18 18" '
                f'ctrlrange="0 {FINGER_TRAVEL_M}"/>'
            )
    return "".join(rows)


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
