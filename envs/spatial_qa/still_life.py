"""Still lifes: the tabletop's table, arms and camera with objects that no task knows, rendered and segmented.

Objects stand in layouts, one function each, footprints never overlapping. The pinhole camera takes world points to
image fractions and back to the table, and draws silhouettes of convex solids. Spatial relations are as the camera sees
them, with the margin below which they are not asked about.

Image fractions: x right and y down, 0..1 over the square image. Lengths in metres.
"""

from __future__ import annotations

import envs.tabletop.gl  # noqa: F401  isort: skip  (chooses MUJOCO_GL before mujoco is imported)
import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import mujoco
import numpy as np

from envs.spatial_qa.items import MAX_OBJECTS, Knobs, integers
from envs.spatial_qa.things import COLOURS, SHAPES, Thing, block, build
from envs.tabletop import scene
from envs.tabletop.rendering import SceneRenderer, scene_renderer
from envs.tabletop.scene import TABLE_Z_M, compile_scene, vary_cameras, vary_light, vary_surfaces


@dataclass(frozen=True)
class Camera:
    """Pose and focal length of a square image."""

    position: np.ndarray
    """[3]."""
    rotation: np.ndarray
    """[3, 3]; columns are the directions right, up and backwards in the world."""
    focal: float
    """In sides of the image: 0.5 / tan(fovy / 2)."""

    @classmethod
    def of(cls, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> Camera:
        """A camera of a scene in its current state."""
        index = model.camera(name).id
        focal = 0.5 / math.tan(math.radians(float(model.cam_fovy[index])) / 2)
        return cls(data.cam_xpos[index].copy(), data.cam_xmat[index].reshape(3, 3).copy(), focal)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Image fractions [..., 2] of world points [..., 3] in front of the camera."""
        local = (points - self.position) @ self.rotation
        return 0.5 + self.focal * local[..., :2] * [1.0, -1.0] / -local[..., 2:]

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Distance [...] of world points [..., 3] along the viewing direction."""
        return (self.position - points) @ self.rotation[:, 2]

    def on_plane(self, fractions: np.ndarray, height: float) -> np.ndarray:
        """World x and y [..., 2] where rays through image fractions [..., 2] meet z = height; NaN above the horizon."""
        slope = (fractions - 0.5) * [1.0, -1.0] / self.focal
        rays = np.concatenate([slope, -np.ones_like(slope[..., :1])], axis=-1) @ self.rotation.T
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (height - self.position[2]) / rays[..., 2:]
        return np.where(along > 0, self.position[:2] + along * rays[..., :2], np.nan)


def pixel_centres(size: int) -> np.ndarray:
    """Image fractions [size, size, 2] of the centres of a square image's pixels."""
    centres = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(centres, centres), axis=-1)


def pixels_of(geoms: Iterable[int], segments: np.ndarray) -> np.ndarray:
    """Where a segmentation [M, M] shows one of the geoms, bool [M, M]."""
    return np.any([segments == geom for geom in geoms], axis=0)


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners [M, 2] of the convex hull of points [N, 2], in the order of rising angle (Andrew's monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))
    chains = []
    for sequence in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains += chain[:-1]
    return np.array(chains)


def fill_convex(corners: np.ndarray, size: int) -> np.ndarray:
    """Pixels of a square image whose centre lies in a convex polygon [M, 2] of image fractions, bool [size, size]."""
    mask = np.zeros((size, size), dtype=bool)
    low, high = (np.clip(bound, 0, size) for bound in _pixel_bounds(corners, size))
    if (high <= low).any():
        return mask
    columns, rows = (np.arange(a, b) + 0.5 for a, b in zip(low, high, strict=True))
    x, y = columns / size, rows[:, None] / size
    edges = (np.roll(corners, -1, axis=0) - corners)[:, :, None, None]
    starts = corners[:, :, None, None]
    inside = edges[:, 0] * (y - starts[:, 1]) - edges[:, 1] * (x - starts[:, 0]) >= 0
    mask[low[1] : high[1], low[0] : high[0]] = inside.all(axis=0)
    return mask


def _pixel_bounds(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = corners.min(axis=0), corners.max(axis=0)
    return np.floor(low * size).astype(int), np.ceil(high * size).astype(int)


X_M, Y_M = (-0.26, 0.24), (-0.19, 0.22)
"""The part of the table that the head camera sees well, m."""

GAP_M = 0.015
"""Least distance between two footprints."""

PER_ROW = 4

TRIES = 60

HOME_REGION = np.array([[X_M[0], Y_M[0]], [X_M[1], Y_M[1]]])


def scatter(rng: np.random.Generator, number: int) -> np.ndarray:
    """Anywhere."""
    return rng.uniform(HOME_REGION[0], HOME_REGION[1], (number, 2))


def row(rng: np.random.Generator, number: int) -> np.ndarray:
    """One line along the table, or two behind each other, a little uneven."""
    num_rows = -(-number // PER_ROW)
    per_row = -(-number // num_rows)
    x = np.tile(np.linspace(*X_M, per_row), num_rows)[:number]
    y = np.repeat(rng.uniform(-0.12, 0.0) + 0.16 * np.arange(num_rows), per_row)[:number]
    return np.stack([x, y], axis=1)[rng.permutation(number)] + rng.uniform(-0.025, 0.025, (number, 2))


def cluster(rng: np.random.Generator, number: int) -> np.ndarray:
    """Around one place."""
    centre = rng.uniform([-0.12, -0.06], [0.12, 0.1])
    return centre + rng.normal(scale=0.1, size=(number, 2))


def ring(rng: np.random.Generator, number: int) -> np.ndarray:
    """On a circle at even angles."""
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * rng.permutation(number) / number
    radius = rng.uniform(0.12, 0.19)
    centre = rng.uniform([-0.05, -0.01], [0.05, 0.04])
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def diagonal(rng: np.random.Generator, number: int) -> np.ndarray:
    """From one corner of the table to the opposite one, a little uneven."""
    along = np.linspace(-1.0, 1.0, number)[rng.permutation(number)]
    side = rng.choice([-1.0, 1.0])
    line = np.stack([0.24 * along, 0.015 + 0.19 * side * along], axis=1)
    return line + rng.uniform(-0.03, 0.03, (number, 2))


LAYOUTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    function.__name__: function for function in (scatter, row, cluster, ring, diagonal)
}


def place(rng: np.random.Generator, layout: str, radii_m: Sequence[float], keep_clear: np.ndarray) -> np.ndarray | None:
    """Centres [N, 2] of N footprints apart from each other and from circles [M, 3] (x, y, radius); None if crowded.

    An object that does not fit where the layout puts it is drawn again alone, with the layout's other places kept.
    """
    placed = keep_clear.reshape(-1, 3)
    wanted = LAYOUTS[layout](rng, len(radii_m))
    for number, radius in enumerate(radii_m):
        for _ in range(TRIES):
            if _fits(wanted[number], radius, placed):
                break
            wanted[number] = LAYOUTS[layout](rng, len(radii_m))[number]
        else:
            return None
        placed = np.concatenate([placed, [[*wanted[number], radius]]])
    return wanted


def _fits(xy: np.ndarray, radius: float, placed: np.ndarray) -> bool:
    inside = (xy >= HOME_REGION[0] - 0.02).all() and (xy <= HOME_REGION[1] + 0.02).all()
    distance = np.linalg.norm(placed[:, :2] - xy, axis=1)
    return bool(inside and (distance > placed[:, 2] + radius + GAP_M).all())


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
        joints = scene.HOME_JOINTS + rng.uniform(-ARM_NOISE_RAD, ARM_NOISE_RAD, (2, scene.JOINTS))
        fingers = rng.uniform(0.0, scene.FINGER_TRAVEL_M, (2, 1)).repeat(2, axis=1)
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
        return pixels_of(geoms if part is None else geoms[part : part + 1], self.segments)

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

    def shown(self, slot: int) -> bool:
        """Whether at least `knobs.min_visible` of an object's silhouette is visible."""
        whole = self.silhouette(slot)
        visible = np.count_nonzero(self.mask(slot) & whole)
        return bool(visible >= self.knobs.min_visible * max(int(np.count_nonzero(whole)), 1))

    def all_clear(self) -> bool:
        """Whether every object may be asked about: all of it inside the image, and enough of it visible."""
        slots = range(len(self.things))
        return all(map(self.in_view, slots)) and all(map(self.shown, slots))

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


LEFT, RIGHT = "to the left of", "to the right of"

NEARER, FARTHER = "nearer to the camera than", "farther from the camera than"

OPPOSITE = {LEFT: RIGHT, RIGHT: LEFT, NEARER: FARTHER, FARTHER: NEARER}

MIN_IMAGE_GAP = 0.03
"""Two objects nearer to each other than this across the image are neither left nor right of each other."""


def sideways(camera: Camera, position: np.ndarray, other: np.ndarray, margin_m: float) -> str | None:
    """LEFT or RIGHT: on the table by at least the margin, and the same way round in the image; else None."""
    gap = float(position[0] - other[0])
    in_image = float((camera.project(position) - camera.project(other))[0])
    if abs(gap) < margin_m or gap * in_image < 0 or abs(in_image) < MIN_IMAGE_GAP:
        return None
    return LEFT if gap < 0 else RIGHT


def in_depth(camera: Camera, position: np.ndarray, other: np.ndarray, margin_m: float) -> str | None:
    """NEARER or FARTHER: by at least the margin in distance, and the same way round along the view; else None."""
    gap = float(np.linalg.norm(position - camera.position) - np.linalg.norm(other - camera.position))
    along = float(camera.depth(position) - camera.depth(other))
    if abs(gap) < margin_m or gap * along < 0 or abs(along) < 0.5 * margin_m:
        return None
    return NEARER if gap < 0 else FARTHER


AXES = (sideways, in_depth)
