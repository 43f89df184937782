"""Still lifes: the tabletop's table, arms and camera with objects that no task knows, rendered and segmented."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property, lru_cache

import envs.tabletop.gl  # noqa: F401  isort: skip  (chooses MUJOCO_GL before mujoco is imported)
import mujoco
import numpy as np

from envs.spatial_qa.answers import integers
from envs.spatial_qa.camera import Camera, convex_hull, fill_convex
from envs.spatial_qa.items import MAX_OBJECTS, Knobs
from envs.spatial_qa.layouts import place
from envs.spatial_qa.things import COLOURS, SHAPES, Thing, block, build
from envs.tabletop import robot
from envs.tabletop.rendering import SceneRenderer, scene_renderer
from envs.tabletop.scene import TABLE_Z_M, compile_scene
from envs.tabletop.variation import vary_cameras, vary_light, vary_surfaces

CAMERA = "head_camera"
SEGMENT_SIZE = 256
"""Side of the segmentation, pixels: a pixel is 4 of the 1000 units of an answer. Larger images use their own size."""
PARTS = 2
IMAGE_RIM = 0.03
"""Share of the image at each side that objects keep free before the camera is varied."""
ARM_NOISE_RAD = 0.12
TINT = 0.05
OUTSIDE_M = -2.0
"""Height of unused objects, below the floor."""
Kind = tuple[str, str]
"""Colour and shape."""

# The parts' offset keeps the compiler from treating both frames as one, which would ignore a later offset.
SLOTS_XML = "".join(
    f'<body name="thing{i}" pos="0 0 {OUTSIDE_M}">'
    + "".join(
        f'<geom name="thing{i}_{j}" class="visual" type="box" size="0.01 0.01 0.01" pos="{0.1 * j} 0 {0.1 * j}"/>'
        for j in range(PARTS)
    )
    + "</body>"
    for i in range(MAX_OBJECTS)
)


@lru_cache(maxsize=1)
def _template() -> mujoco.MjModel:
    return compile_scene(SLOTS_XML, False)


def _renderer() -> SceneRenderer:
    return scene_renderer(_template(), SLOTS_XML, False)


class StillLife:
    """Objects on the table, what the camera sees of them, and the truth about both."""

    def __init__(self, name: str, things: list[Thing], knobs: Knobs, rng: np.random.Generator) -> None:
        self.name, self.things, self.knobs = name, things, knobs
        self.model = copy.copy(_template())
        self.data = mujoco.MjData(self.model)
        if knobs.varied:
            vary_light(self.model, rng)
            vary_surfaces(self.model, rng)
            vary_cameras(self.model, rng)
        for slot, thing in enumerate(things):
            self._show(slot, thing, rng)
        joints = robot.HOME_JOINTS + rng.uniform(-ARM_NOISE_RAD, ARM_NOISE_RAD, (2, robot.JOINTS))
        fingers = rng.uniform(0.0, robot.FINGER_TRAVEL_M, (2, 1)).repeat(2, axis=1)
        self.data.qpos[:] = np.concatenate([joints, fingers], axis=1).ravel()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        self.camera = Camera.of(self.model, self.data, CAMERA)

    def _show(self, slot: int, thing: Thing, rng: np.random.Generator) -> None:
        body = self.model.body(f"thing{slot}").id
        self.model.body_pos[body] = thing.position
        self.model.body_quat[body] = [np.cos(thing.yaw / 2), 0.0, 0.0, np.sin(thing.yaw / 2)]
        rgb = np.clip(np.array(COLOURS[thing.colour]) + rng.uniform(-TINT, TINT, 3), 0.02, 1.0)
        for geom, part in zip(self.geoms(slot), thing.parts, strict=False):
            self.model.geom_type[geom], self.model.geom_size[geom] = part.kind, part.size
            self.model.geom_pos[geom], self.model.geom_rgba[geom, :3] = part.offset, rgb
        for geom in self.geoms(slot)[len(thing.parts) :]:
            self.model.geom_rgba[geom, 3] = 0.0

    def geoms(self, slot: int) -> list[int]:
        """Geom ids of an object's parts."""
        return [self.model.geom(f"thing{slot}_{j}").id for j in range(PARTS)]

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 [image_size, image_size, 3]."""
        side = self.knobs.image_size
        return _renderer().render(self.model, self.data, [self.model.camera(CAMERA).id], side, side)[0]

    @cached_property
    def segments(self) -> np.ndarray:
        """Geom id of every pixel, int32 [M, M] with M = max(SEGMENT_SIZE, image_size)."""
        side = max(SEGMENT_SIZE, self.knobs.image_size)
        return _renderer().segment(self.model, self.data, self.model.camera(CAMERA).id, side, side)

    def mask(self, slot: int, part: int | None = None) -> np.ndarray:
        """Visible pixels of an object or of one part of it, bool [M, M]."""
        geoms = self.geoms(slot)
        return np.isin(self.segments, geoms if part is None else geoms[part])

    def outline(self, slot: int) -> np.ndarray:
        """Image fractions [N, 2] of all vertices of an object."""
        thing = self.things[slot]
        return np.concatenate([self.camera.project(thing.vertices(part)) for part in thing.parts])

    def silhouette(self, slot: int, part: int | None = None) -> np.ndarray:
        """Pixels that an object, or one part, would cover alone in the image, bool [M, M]."""
        thing = self.things[slot]
        parts = thing.parts if part is None else thing.parts[part : part + 1]
        side = len(self.segments)
        filled = [fill_convex(convex_hull(self.camera.project(thing.vertices(p))), side) for p in parts]
        return np.any(filled, axis=0)

    def in_view(self, slot: int) -> bool:
        """Whether the whole object is inside the image, with a rim of 1 %."""
        outline = self.outline(slot)
        return bool((outline > 0.01).all() and (outline < 0.99).all())

    def clear(self, slot: int) -> bool:
        """Whether an object may be asked about: inside the image and visible to at least `knobs.min_visible`."""
        if not self.in_view(slot):
            return False
        whole = self.silhouette(slot)
        return bool((self.mask(slot) & whole).sum() >= self.knobs.min_visible * max(int(whole.sum()), 1))

    def all_clear(self) -> bool:
        """Whether every object may be asked about."""
        return all(self.in_view(slot) for slot in range(len(self.things))) and all(
            self.clear(slot) for slot in range(len(self.things))
        )

    def pixel(self, slot: int) -> list[int]:
        """Where an object's centre is in the image, 0..1000."""
        return integers(self.camera.project(self.things[slot].position))

    def distance(self, slot: int) -> float:
        """From the camera to an object's centre, m."""
        return float(np.linalg.norm(self.things[slot].position - self.camera.position))


def draw_kinds(rng: np.random.Generator, number: int, shapes: tuple[str, ...] = SHAPES) -> list[Kind]:
    """Different objects: no colour twice in half of the draws, else colours may repeat on different shapes."""
    if rng.random() < 0.5:
        colours = rng.permutation(list(COLOURS))[:number]
        return [(str(colour), str(rng.choice(shapes))) for colour in colours]
    pairs = [(colour, shape) for colour in COLOURS for shape in shapes]
    return [pairs[i] for i in rng.permutation(len(pairs))[:number]]


@lru_cache(maxsize=1)
def _nominal_camera() -> Camera:
    """The camera of the plain scene, which the varied ones hardly leave."""
    data = mujoco.MjData(_template())
    mujoco.mj_kinematics(_template(), data)
    mujoco.mj_comPos(_template(), data)
    mujoco.mj_camlight(_template(), data)
    return Camera.of(_template(), data, CAMERA)


def _fits_image(thing: Thing) -> bool:
    outline = np.concatenate([_nominal_camera().project(thing.vertices(part)) for part in thing.parts])
    return bool((np.abs(outline - 0.5) < 0.5 - IMAGE_RIM).all())


def arrange(
    rng: np.random.Generator, layout: str, kinds: list[Kind], keep_clear: np.ndarray | None = None
) -> list[Thing] | None:
    """Objects of these kinds standing on the table, inside the image; None if they find no room."""
    things = [build(colour, shape, rng) for colour, shape in kinds]
    circles = np.zeros((0, 3)) if keep_clear is None else keep_clear
    centres = place(rng, layout, [thing.radius_m for thing in things], circles)
    if centres is None:
        return None
    placed = [
        replace(thing, position=np.array([*xy, TABLE_Z_M + thing.height_m / 2]))
        for thing, xy in zip(things, centres, strict=True)
    ]
    return placed if all(map(_fits_image, placed)) else None


def stack(rng: np.random.Generator, colours: list[str], xy: np.ndarray) -> list[Thing]:
    """Cubes of one size on each other, from the bottom up."""
    half = float(rng.uniform(0.022, 0.028))
    return [
        replace(
            block(colour, half, float(rng.uniform(-0.3, 0.3))),
            position=np.array([*(xy + rng.uniform(-0.004, 0.004, 2)), TABLE_Z_M + half * (2 * level + 1)]),
        )
        for level, colour in enumerate(colours)
    ]
