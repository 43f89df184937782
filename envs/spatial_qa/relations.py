"""Spatial relations as the camera sees them, with the margin below which they are not asked about."""

from __future__ import annotations

import numpy as np

from envs.spatial_qa.camera import Camera

LEFT, RIGHT = "to the left of", "to the right of"
NEARER, FARTHER = "nearer to the camera than", "farther from the camera than"
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


OPPOSITE = {LEFT: RIGHT, RIGHT: LEFT, NEARER: FARTHER, FARTHER: NEARER}
AXES = (sideways, in_depth)
