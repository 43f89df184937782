"""The objects of still lifes: colours, shapes, sizes, and the vertices that MuJoCo draws them with."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

COLOURS = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.08, 0.6, 0.12),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.95, 0.85, 0.05),
    "orange": (0.98, 0.5, 0.02),
    "purple": (0.5, 0.12, 0.65),
    "black": (0.06, 0.06, 0.06),
    "pink": (0.98, 0.5, 0.72),
}
SHAPES = ("cube", "ball", "cylinder", "bar", "plate", "mug")
BOX, BALL, CYLINDER = (
    int(kind) for kind in (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER)
)
SLICES, STACKS = 12, 6
"""How finely the scene's `quality` draws round shapes; silhouettes follow the drawn polygons, not the ideal ones."""


@dataclass(frozen=True)
class Part:
    """One convex solid of an object."""

    kind: int
    """Type of the geom: `BOX`, `BALL` or `CYLINDER`."""
    size: tuple[float, float, float]
    """MuJoCo's sizes (m): half sides; radius; radius and half height."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre in the object's frame, m."""

    def vertices(self) -> np.ndarray:
        """Corners of the drawn polyhedron in the object's frame, [N, 3]."""
        if self.kind == BOX:
            unit = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
            return np.array(self.offset) + unit * self.size
        angle = 2 * np.pi * np.arange(SLICES) / SLICES
        circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(SLICES)], axis=1)
        if self.kind == CYLINDER:
            radius, half, _ = self.size
            rims = [circle * radius + [0.0, 0.0, side * half] for side in (-1, 1)]
            return np.array(self.offset) + np.concatenate(rims)
        heights = np.pi * np.arange(STACKS + 1) / STACKS
        rings = [circle * np.sin(polar) + [0.0, 0.0, np.cos(polar)] for polar in heights]
        return np.array(self.offset) + self.size[0] * np.concatenate(rings)


@dataclass(frozen=True)
class Thing:
    """One object: what it is called, how it is built, where it stands (upright, turned by `yaw`)."""

    colour: str
    shape: str
    parts: tuple[Part, ...]
    height_m: float
    width_m: float
    """Of the body without a handle: diameter, side of a cube, long side of a bar."""
    radius_m: float
    """Of the circle around the footprint, handle included."""
    position: np.ndarray
    """Centre of the body, [3]."""
    yaw: float

    @property
    def name(self) -> str:
        """Such as "the red cube"."""
        return f"the {self.colour} {self.shape}"

    @property
    def grip_width_m(self) -> float:
        """The narrowest side that a gripper from above can take."""
        return 2 * min(self.parts[0].size[:2]) if self.parts[0].kind == BOX else self.width_m

    def vertices(self, part: Part) -> np.ndarray:
        """World positions of a part's vertices, [N, 3]."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return self.position + part.vertices() @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def build(colour: str, shape: str, rng: np.random.Generator) -> Thing:
    """An object of random size at the origin."""
    parts = _parts(shape, rng)
    body = parts[0]
    half_height = {BOX: body.size[2], BALL: body.size[0], CYLINDER: body.size[1]}[body.kind]
    width = 2 * max(body.size[:2]) if body.kind == BOX else 2 * body.size[0]
    reach = max(float(np.linalg.norm(part.vertices()[:, :2], axis=1).max()) for part in parts)
    yaw = float(rng.uniform(-np.pi, np.pi))
    return Thing(colour, shape, parts, 2 * half_height, width, reach, np.zeros(3), yaw)


def block(colour: str, half: float, yaw: float) -> Thing:
    """A cube of a given half side, m."""
    return Thing(colour, "cube", (Part(BOX, (half,) * 3),), 2 * half, 2 * half, half * 2**0.5, np.zeros(3), yaw)


def _parts(shape: str, rng: np.random.Generator) -> tuple[Part, ...]:
    if shape == "cube":
        return (Part(BOX, (rng.uniform(0.022, 0.055),) * 3),)
    if shape == "ball":
        return (Part(BALL, (rng.uniform(0.024, 0.056), 0.0, 0.0)),)
    if shape == "cylinder":
        return (Part(CYLINDER, (rng.uniform(0.022, 0.054), rng.uniform(0.03, 0.06), 0.0)),)
    if shape == "bar":
        thick = rng.uniform(0.014, 0.02)
        return (Part(BOX, (rng.uniform(0.055, 0.085), thick, thick)),)
    if shape == "plate":
        return (Part(CYLINDER, (rng.uniform(0.05, 0.07), 0.006, 0.0)),)
    radius, half = rng.uniform(0.032, 0.042), rng.uniform(0.035, 0.05)
    handle = Part(BOX, (0.018, 0.008, 0.6 * half), (radius + 0.014, 0.0, 0.0))
    return (Part(CYLINDER, (radius, half, 0.0)), handle)
