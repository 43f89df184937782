"""Questions about motion in a task: paths of objects and grippers, where things end, where to grasp."""

from __future__ import annotations

import numpy as np

from envs.spatial_qa.answers import integers, pair, path_text, point_text, run_lengths
from envs.spatial_qa.camera import Camera
from envs.spatial_qa.grounding import point_in
from envs.spatial_qa.question import Draw, Question, sentence
from envs.spatial_qa.rollouts import MIN_SHARE, MOVED_M, OBJECTS, Moment, Rollout, rollout_of
from envs.tabletop.tasks import TASKS
from envs.tabletop.tasks.two_hand_lift import TwoHandLift
from envs.types import ARMS

MIN_PATH = 0.1
"""Least length of a path that is asked about, in sides of the image."""
AT_OBJECT_M = 0.15
FEW_STEPS = 12
"""Questions about the whole task are asked within so many control steps from its start, before much has moved."""


def _solved(draw: Draw) -> Rollout | None:
    """The rollout that the draw asks about, if the expert solved its task."""
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, tuple(OBJECTS))
    return run if run is not None and run.succeeded else None


def _start(draw: Draw) -> tuple[Rollout, str, Moment] | None:
    """A solved task, one of its objects, and a moment near the start."""
    run = _solved(draw)
    if run is None:
        return None
    body = draw.pick(list(run.objects))
    return run, body, Moment(run, int(draw.rng.integers(FEW_STEPS)), draw.knobs)


def object_path(draw: Draw) -> Question | None:
    """The way of an object through the image until it rests, as the scripted expert moves it."""
    start = _start(draw)
    if start is None:
        return None
    run, body, moment = start
    path = image_path(moment.camera, run.objects[body][moment.time :], draw.knobs.waypoints)
    if path is None or not moment.shows(body):
        return None
    name = OBJECTS[run.task][body]
    text = f"Task: {run.instruction} Predict the path of {name} in the image until it is done, as {len(path)} points."
    thought = f"{sentence(name)} is at {pair(path[0])}. It will be moved to {pair(path[-1])}."
    return Question(text, "trajectory", path, path_text(path), thought, moment.image, run.name)


def gripper_path(draw: Draw) -> Question | None:
    """The way of a gripper through the image during the step that comes next."""
    run = _solved(draw)
    if run is None:
        return None
    ends = [0, *(end for _, end in run.steps())]
    number = int(draw.rng.integers(len(ends) - 1))
    step, start, end = run.steps()[number][0], ends[number], ends[number + 1]
    working = [arm for arm in range(len(ARMS)) if _works(run, arm, start, end)]
    if end <= start or not working:
        return None
    arm = draw.pick(working)
    # Start a little into the step: the gripper of an arm at home is outside the image.
    moment = Moment(run, int(draw.rng.integers(start, start + max(1, (end - start) // 2))), draw.knobs)
    path = image_path(moment.camera, run.tools[moment.time : end + 1, arm], draw.knobs.waypoints)
    if path is None:
        return None
    text = (
        f"Task: {run.instruction} The robot is about to {step}. Predict the path of the {ARMS[arm]} gripper in the "
        f"image until that is done, as {len(path)} points."
    )
    thought = f"The {ARMS[arm]} gripper is at {pair(path[0])}. To {step} it goes to {pair(path[-1])}."
    return Question(text, "trajectory", path, path_text(path), thought, moment.image, run.name)


def final_place(draw: Draw) -> Question | None:
    """Where an object will be in the image when the task is done."""
    start = _start(draw)
    if start is None:
        return None
    run, body, moment = start
    path = image_path(moment.camera, run.objects[body][moment.time :], 2)
    if path is None or not moment.shows(body):
        return None
    name = OBJECTS[run.task][body]
    text = f"Task: {run.instruction} Where in the image will {name} be when the task is done? Point to the place."
    thought = f"{sentence(name)} is at {pair(path[0])} now. The task brings it to {pair(path[1])}."
    return Question(text, "point", {"point": path[1]}, point_text(path[1]), thought, moment.image, run.name)


def grasp_point(draw: Draw) -> Question | None:
    """Where one gripper has to take the object of a two-handed task: the end on its side."""
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, ("grab_roller", "lift_pot"))
    if run is None:
        return None
    task = TASKS[run.task]()
    assert isinstance(task, TwoHandLift)
    moment = Moment(run, int(draw.rng.integers(FEW_STEPS)), draw.knobs)
    arm, world = draw.pick(range(len(ARMS))), moment.env.world
    goal = task.grip_point(world, arm)
    geoms = np.flatnonzero(world.model.geom_bodyid == world.model.body(task.body).id)
    end = geoms[np.argmin(np.linalg.norm(world.data.geom_xpos[geoms] - goal, axis=1))]
    mask = moment.segments == end
    if mask.mean() < 0.5 * MIN_SHARE:
        return None
    point, name = point_in(mask, moment.pixel(goal)), OBJECTS[run.task][task.body]
    text = f"Task: {run.instruction} Point to where the {ARMS[arm]} gripper should take {name}."
    centre = moment.pixel(world.body(task.body).position)
    thought = f"{sentence(name)} is at {pair(centre)}. Its {ARMS[arm]} end is at {pair(point)}."
    truth = {"point": point, "mask": run_lengths(mask)}
    return Question(text, "point", truth, point_text(point), thought, moment.image, run.name)


def _works(run: Rollout, arm: int, start: int, end: int) -> bool:
    """Whether a gripper ends a step at what the step moved, or at any object if none moved: the other one waits."""
    paths = list(run.objects.values())
    moved = [path for path in paths if np.linalg.norm(path[end] - path[start]) > MOVED_M]
    return min(float(np.linalg.norm(run.tools[end, arm] - path[end])) for path in moved or paths) < AT_OBJECT_M


def image_path(camera: Camera, positions: np.ndarray, waypoints: int) -> list[list[int]] | None:
    """World positions [T, 3] as `waypoints` image points evenly along the path; None if short or outside the image."""
    path = camera.project(positions)
    if not ((path > 0.0) & (path < 1.0)).all():
        return None
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    if length[-1] < MIN_PATH:
        return None
    places = np.linspace(0.0, length[-1], waypoints)
    return [integers(point) for point in np.stack([np.interp(places, length, path[:, k]) for k in (0, 1)], axis=1)]
