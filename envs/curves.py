"""Cubic Bezier curves from one motion into another, as Smooth Interpolation and chunk stitching draw them."""

from __future__ import annotations

import numpy as np

MIN_MOTION = 1e-4
"""Less motion than this in a step (metres, or units of a plain number) has no direction; the chord gives it then."""


def control_points(
    start: np.ndarray, motion: np.ndarray, goal: np.ndarray, goal_motion: np.ndarray, reach: float
) -> np.ndarray:
    """Control points [4, ..., n] from places and motions [..., n]: the inner ones lie `reach` chords from the ends,
    along the motion with which the curve begins and against that with which it ends."""
    chord = goal - start
    inner = (_inner_point(start, motion, chord, reach), _inner_point(goal, -goal_motion, -chord, reach))
    return np.stack([start, *inner, goal])


def _inner_point(end: np.ndarray, motion: np.ndarray, chord: np.ndarray, reach: float) -> np.ndarray:
    """`end` + `reach` |chord| along `motion`, or along the chord where there is no motion: [..., n]."""
    speed = np.linalg.norm(motion, axis=-1, keepdims=True)
    direction = np.where(speed > MIN_MOTION, motion, chord)
    length = np.linalg.norm(direction, axis=-1, keepdims=True)
    unit = direction / np.where(length > 0, length, 1.0)
    return end + reach * np.linalg.norm(chord, axis=-1, keepdims=True) * unit


def cubic(control: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Points of curves [4, ..., n] at s in [0, 1], which broadcasts with [..., 1]."""
    p0, p1, p2, p3 = control
    return (1 - s) ** 3 * p0 + 3 * (1 - s) ** 2 * s * p1 + 3 * (1 - s) * s**2 * p2 + s**3 * p3
