"""An item: question, images, ground truth and a worked solution; and the knobs that set how hard it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

CATEGORIES = ("perception", "prediction", "interaction", "planning")
MIN_IMAGE, MAX_IMAGE = 16, 480
"""Sides of an image, pixels; the off-screen buffer holds no more than the larger."""
MAX_OBJECTS = 8
MAX_WAYPOINTS = 15
"""Of a trajectory, as in HY-Embodied's public data."""


@dataclass(frozen=True)
class Knobs:
    """What makes an item hard. Each changes the item's id; a generator ignores those that do not concern it."""

    num_objects: int = 4
    """Objects on the table of a still life, 2..8; those that are not asked about distract."""
    margin_m: float = 0.05
    """Least difference (m) that decides an answer: two objects closer than this in depth are not put in order."""
    min_visible: float = 0.85
    """Least visible share of the silhouette of every object asked about, 0.3..1."""
    waypoints: int = 6
    """Points of a trajectory, 2..15."""
    varied: bool = True
    """Random light, textures and camera, or the plain scene."""
    image_size: int = 64
    """Side of the square image, pixels."""
    thinking: bool = True
    """Ask for reasoning (` /think`), or for the answer alone (` /no_think`)."""

    def __post_init__(self) -> None:
        """ValueError for a value out of range."""
        _check("num_objects", self.num_objects, 2, MAX_OBJECTS)
        _check("margin_m", self.margin_m, 0.005, 0.12)
        _check("min_visible", self.min_visible, 0.3, 1.0)
        _check("waypoints", self.waypoints, 2, MAX_WAYPOINTS)
        _check("image_size", self.image_size, MIN_IMAGE, MAX_IMAGE)


def knobs_at(level: float, **fixed: Any) -> Knobs:
    """Knobs of a difficulty from 0 (few objects, clear margins) to 1; `fixed` sets fields by name.

    ValueError for a level outside 0..1, TypeError for an unknown field.
    """
    _check("level", level, 0.0, 1.0)
    drawn = {
        "num_objects": round(2 + 5 * level),
        "margin_m": round(0.08 - 0.06 * level, 3),
        "min_visible": round(0.95 - 0.25 * level, 3),
        "waypoints": round(3 + 6 * level),
        "varied": level > 0.2,
    }
    return Knobs(**(drawn | fixed))


@dataclass(frozen=True)
class Item:
    """One question, the shape shared by pools, stages and reports."""

    id: str
    category: str
    """One of `CATEGORIES`."""
    task: str
    """Name of the generator."""
    reward_type: str
    """Structure of the answer; names as in the rewards."""
    seed: int
    scene: str
    """`family:seed` of the scene; no two splits share one."""
    difficulty: dict[str, Any]
    """The knobs by name."""
    prompt: str
    """The question with the thinking suffix ` /think` or ` /no_think`."""
    images: tuple[np.ndarray, ...]
    """uint8 [H, W, 3] each."""
    answer: Any
    """Ground truth as a JSON value; its form depends on `reward_type`."""
    solution: str
    """A worked reply, `<think>..</think>` and `<answer>..</answer>`, which earns the full reward."""

    def record(self) -> dict[str, Any]:
        """Everything but the images, as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "images"}


def item_id(task: str, seed: int, knobs: Knobs) -> str:
    """A stable name: the generator and 16 hex digits of SHA-256 over generator, seed and knobs."""
    text = json.dumps([task, seed, asdict(knobs)], sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; use {low} to {high}")
