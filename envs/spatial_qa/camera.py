"""A pinhole camera: world points to image fractions and back to the table; silhouettes of convex solids.

Image fractions: x right and y down, 0..1 over the square image. Lengths in metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np


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
    x, y = columns[None, :, None] / size, rows[:, None, None] / size
    start, edge = corners, np.roll(corners, -1, axis=0) - corners
    inside = edge[:, 0] * (y - start[:, 1]) - edge[:, 1] * (x - start[:, 0]) >= 0
    mask[low[1] : high[1], low[0] : high[0]] = inside.all(axis=-1)
    return mask


def _pixel_bounds(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = corners.min(axis=0), corners.max(axis=0)
    return np.floor(low * size).astype(int), np.ceil(high * size).astype(int)
