"""gym-pusht's PushT: a disc pushes a T onto its outline. Commands are two numbers, where the disc shall go; one camera.

The package ends an episode with success where the T covers 95 % of the outline. The expert looks ahead in a simulator
of its own: it tries straight pushes from around the T, goes to the best one's start and pushes while that helps. There
are many good pushes, so what is learned has more than one mode.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from gym_pusht.envs.pusht import PushTEnv

from envs.declared import Declaration

SUBSTEPS, REACH = 10, 15.0
"""Physics steps of a command; the disc's radius in pixels of the 512 x 512 table."""
LENGTH, LOOK = 90.0, 8
"""How far a push aims (pixels), and for how many commands it is looked at."""
DIRECTIONS = np.radians([-40.0, 0.0, 40.0])
"""Of pushes, from the T's normal."""
FURTHER = (4.0, 12.0, 30.0, 90.0)
"""How much farther a push that has begun may go on."""
GAIN = 0.2
"""Pixels by which a push has to bring the T's corners closer on average."""
STRIDE = 60.0
"""Of a walk around the T: how far ahead of the disc the command is."""

IMAGINED = PushTEnv(obs_type="state")
IMAGINED.reset(seed=0)
OUTLINE = shapely.union_all([shapely.Polygon(shape.get_vertices()) for shape in IMAGINED._block_shapes])
CORNERS = np.array(OUTLINE.exterior.coords)[:-1]
GOAL = np.array([256.0, 256.0, np.pi / 4])


def placed(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points of the T's own frame on the table."""
    turn = np.array([[np.cos(pose[2]), -np.sin(pose[2])], [np.sin(pose[2]), np.cos(pose[2])]])
    return points @ turn.T + pose[:2]


def error(pose: np.ndarray) -> float:
    """Mean distance of the T's corners from where they shall be."""
    return float(np.linalg.norm(placed(CORNERS, pose) - placed(CORNERS, GOAL), axis=1).mean())


def pose_of(env: Any) -> np.ndarray:
    return np.array([*env.block.position, env.block.angle])


def pushed(pose: np.ndarray, disc: np.ndarray, speed: np.ndarray, target: np.ndarray) -> float:
    """The smallest error on the way of the disc to a target."""
    env, found = IMAGINED, np.inf
    env._setup()  # a space made anew remembers no contacts of other pushes
    env.block.angle, env.block.position = pose[2], tuple(pose[:2])
    env.agent.position, env.agent.velocity = tuple(disc), tuple(speed)
    for _ in range(LOOK):
        for _ in range(SUBSTEPS):
            now, speed = np.array(env.agent.position), np.array(env.agent.velocity)
            env.agent.velocity = tuple(speed + (env.k_p * (target - now) - env.k_v * speed) * env.dt)
            env.space.step(env.dt)
        found = min(found, error(pose_of(env)))
    return found


@lru_cache(maxsize=64)
def plan(x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The best push of a T that lies there: from where, and in which direction."""
    pose, found = np.array([x, y, angle]), []
    around = shapely.Polygon(placed(CORNERS, pose)).buffer(REACH + 1.5).exterior
    for place in np.arange(0.0, around.length, 12.0):
        start = np.array(around.interpolate(place).coords[0])
        ahead = np.array(around.interpolate((place + 0.5) % around.length).coords[0]) - start
        normal = np.arctan2(-ahead[0], ahead[1])
        if not ((start > 10) & (start < 502)).all():
            continue
        for turn in DIRECTIONS:
            way = np.array([np.cos(normal + turn), np.sin(normal + turn)])
            found.append((pushed(pose, start, np.zeros(2), start + LENGTH * way), start, way))
    _, start, way = min(found, key=lambda push: push[0])
    return start, way


def walk(pose: np.ndarray, disc: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The next corner of the shortest way around the T."""
    shape = shapely.Polygon(placed(CORNERS, pose))
    near_by, close = shape.buffer(REACH + 4.0), shape.buffer(REACH + 0.7)
    hull = np.array(shape.convex_hull.buffer(REACH + 14, quad_segs=2).exterior.coords)[:-1]
    points = [disc, *hull[((hull > 0) & (hull < 512)).all(axis=1)], goal]
    goal_at = len(points) - 1
    lengths, after = {goal_at: 0.0}, {goal_at: goal_at}
    todo = set(range(len(points)))
    while todo & lengths.keys():
        near = min(todo & lengths.keys(), key=lengths.__getitem__)
        todo.remove(near)
        for other in todo:
            length = lengths[near] + float(np.linalg.norm(points[near] - points[other]))
            line = shapely.LineString([points[near], points[other]])
            if length < lengths.get(other, np.inf) and not (close if near == goal_at else near_by).intersects(line):
                lengths[other], after[other] = length, near
    if 0 in after:
        return points[after[0]]
    edge = shape.exterior
    away = disc - np.array(edge.interpolate(edge.project(shapely.Point(disc))).coords[0])  # too near: off the T first
    return disc + 20 * away / np.linalg.norm(away)


def expert(env: Any, observation: Any) -> np.ndarray:
    """A function of the present state alone."""
    env = env.unwrapped
    pose, disc, speed = pose_of(env), np.array(env.agent.position), np.array(env.agent.velocity)
    is_touching = shapely.Polygon(placed(CORNERS, pose)).distance(shapely.Point(disc)) < REACH + 2.0
    if is_touching and np.linalg.norm(speed) > 5.0:
        way = speed / np.linalg.norm(speed)
        targets = [disc + length * way for length in FURTHER]
        errors = [pushed(pose, disc, speed, target) for target in targets]
        if min(errors) < error(pose) - GAIN:
            return targets[int(np.argmin(errors))]
    start, way = plan(*pose)
    if np.linalg.norm(disc - start) < 3.0:
        return start + LENGTH * way
    ahead = walk(pose, disc, start) - disc
    return disc + ahead * min(1.0, STRIDE / max(float(np.linalg.norm(ahead)), 1e-9))


def make(task: str, variant: str) -> Declaration:
    return Declaration(
        env=PushTEnv(obs_type="pixels_agent_pos"),
        control_hz=10.0,
        numbers="raw",
        cameras={"top": "pixels"},
        state="agent_pos",
        success="is_success",
        instructions=("Push the T onto its outline.",),
        step_limit=300,
        expert=expert,
        progress=lambda env: float(np.exp(-error(pose_of(env.unwrapped)) / 100)),
    )
