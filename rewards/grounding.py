"""Rewards of boxes and points. Coordinates 0..1000 per axis; distances in diagonals of that square, 1000 sqrt 2.

An image that is not square is measured as if stretched to a square: its sides are not part of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rewards.answers import COORDINATE_MAX, parse_groups
from rewards.assignment import best_assignment
from rewards.config import BoxesConfig, DistanceConfig
from rewards.mask import decode_mask, distance_to_mask
from rewards.truth import shown, true_boxes, true_coordinates

DIAGONAL = COORDINATE_MAX * math.sqrt(2)


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair, [N, M], of boxes [N, 4] and [M, 4]; 0 for a box without area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area, other_area = (np.prod(np.maximum(b[:, 2:] - b[:, :2], 0.0), axis=-1) for b in (boxes, others))
    union = area[:, None] + other_area[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=(overlap > 0) & (union > 0))


def box_reward(answer: str, truth: Any) -> float:
    """`box`: IoU of the one box of the answer with the true [xmin, ymin, xmax, ymax]; 0 unless it has exactly one."""
    target = true_boxes([truth])
    found = parse_groups(answer, 4)
    return float(box_iou(np.array(found), target)[0, 0]) if found and len(found) == 1 else 0.0


def boxes_reward(answer: str, truth: Any, config: BoxesConfig) -> float:
    """`boxes`: sum of IoU over the best matching / (K + missing_penalty * missing + extra_penalty * extra).

    One-to-one; K = min(answered, true) pairs; `missing` true and `extra` answered boxes are left over. With both
    penalties 1 the denominator is max(answered, true).
    """
    target = true_boxes(truth)
    found = parse_groups(answer, 4)
    if not found:
        return 0.0
    iou = box_iou(np.array(found), target)
    matched = float(iou[best_assignment(iou)].sum())
    missing, extra = max(len(target) - len(found), 0), max(len(found) - len(target), 0)
    pairs = min(len(found), len(target))
    return min(matched / (pairs + config.missing_penalty * missing + config.extra_penalty * extra), 1.0)


def point_reward(answer: str, truth: Any, config: DistanceConfig) -> float:
    """`point`: exp(-d / scale), d from the one point of the answer to the target in diagonals; so 1 inside a mask.

    `truth` is {"point": [x, y]} and/or {"mask": run lengths} (see `rewards.mask`), or [x, y]. The target is the mask's
    pixels and the point together: the nearest counts. 0 unless the answer has exactly one point.
    """
    target = truth if isinstance(truth, Mapping) else {"point": truth}
    distances = []
    found = parse_groups(answer, 2)
    x, y = found[0] if found and len(found) == 1 else (math.nan, math.nan)
    if target.get("point") is not None:
        true_x, true_y = true_coordinates([target["point"]], 2)[0]
        distances.append(math.hypot(x - true_x, y - true_y))
    if target.get("mask") is not None:
        distances.append(distance_to_mask(decode_mask(target["mask"]), x, y))
    if not distances:
        raise ValueError(f"the ground truth {shown(truth)} has neither a point nor a mask")
    return 0.0 if math.isnan(x) else math.exp(-min(distances) / DIAGONAL / config.scale)


def points_reward(answer: str, truth: Any, config: DistanceConfig) -> float:
    """`points`: n m exp(-C / scale), Chamfer distance C = (mean_a min_t d(a, t) + mean_t min_a d(a, t)) / 2.

    n = min(answered, true) / max(answered, true); m: see `spread`, of the pairs of the best one-to-one matching. Else a
    grid would be near every target, one centre or a few copies of it near two, and a crowd would weigh as one point.
    """
    target = true_coordinates(truth, 2)
    found = parse_groups(answer, 2)
    if not found:
        return 0.0
    points = np.array(found)
    ours, theirs = best_assignment(-np.linalg.norm(points[:, None] - target[None], axis=-1))
    number = min(len(points), len(target)) / max(len(points), len(target))
    closeness = math.exp(-chamfer(points, target) / DIAGONAL / config.scale)
    return number * spread(points[ours], target[theirs]) * closeness


def spread(points: np.ndarray, target: np.ndarray) -> float:
    """min(1, 2 e(points) / e(target)), e the diagonal of the box around points [N, 2]; 1 for targets in one place.

    Points in one place, which is near all of a small target, earn nothing; half as far apart is far enough.
    """
    extent, needed = (float(np.linalg.norm(np.ptp(one, axis=0))) for one in (points, target))
    return min(2 * extent / needed, 1.0) if needed else 1.0


def chamfer(points: np.ndarray, others: np.ndarray) -> float:
    """Mean of both directed mean nearest-neighbour distances of point sets [N, 2] and [M, 2]."""
    distance = np.linalg.norm(points[:, None] - others[None], axis=-1)
    return 0.5 * float(distance.min(axis=1).mean() + distance.min(axis=0).mean())
