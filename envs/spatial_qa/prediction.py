"""Prediction: what will be where after a motion.

On still lifes: relations after a push, and what it meets. On rollouts of tasks: paths of objects and grippers, where
things end, where to grasp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.spatial_qa.draws import Draw, Question, give_up_if, sentence
from envs.spatial_qa.items import integers, pair, path_text, point_text, run_lengths
from envs.spatial_qa.perception import point_in
from envs.spatial_qa.rollouts import MIN_SHARE, MOVED_M, OBJECTS, Moment, Rollout, rollout_of
from envs.spatial_qa.still_life import AXES, OPPOSITE, Camera, StillLife
from envs.spatial_qa.things import BOX, Thing
from envs.tabletop.tasks import TASKS
from envs.tabletop.tasks.two_hand_lift import TwoHandLift
from envs.types import ARMS

MOVES = {
    "to the left": np.array([-1.0, 0.0, 0.0]),
    "to the right": np.array([1.0, 0.0, 0.0]),
    "away from the camera": np.array([0.0, 1.0, 0.0]),
    "towards the camera": np.array([0.0, -1.0, 0.0]),
}
"""Directions along the table's edges; the camera looks along +y."""

STEPS_MM = (50, 100, 150, 200, 250)

NONE = "none"

MIN_PATH = 0.1
"""Least length of a path that is asked about, in sides of the image."""

AT_OBJECT_M = 0.15

FEW_STEPS = 12
"""Questions about the whole task are asked within so many control steps from its start, before much has moved."""


def moved_relation(draw: Draw) -> Question:
    """Whether a relation holds after one object was moved by a given distance; half of the moves turn it round."""
    life = draw.still()
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    first, second = life.things[a], life.things[b]
    stays = draw.wish((True, False))
    moves = [move for move in _moves(life, a, b, draw.knobs.margin_m) if (move[2] == move[3]) is stays]
    give_up_if(not moves)
    direction, step, before, held = draw.pick(moves)
    axis = _axis(direction)
    asked = held if draw.coin() else OPPOSITE[held]
    answer = "yes" if asked == held else "no"
    text = f"{sentence(first.name)} moves {step} mm {direction}. Is it then {asked} {second.name}?"
    gap = round(1000 * abs(float((first.position - second.position)[0 if axis is AXES[0] else 1])))
    thought = (
        f"Now {first.name} is at {pair(life.pixel(a))}, {before} {second.name} at {pair(life.pixel(b))}, by {gap} mm. "
        f"After {step} mm {direction} it is {held} {second.name}."
    )
    return Question(text, "yes_no", answer, answer, thought, life.image, life.name)


def _axis(direction: str) -> Callable[..., str | None]:
    """The relation that a move in a direction changes."""
    return AXES[0] if direction.startswith("to the") else AXES[1]


def _moves(life: StillLife, a: int, b: int, margin_m: float) -> list[tuple[str, int, str, str]]:
    """Moves of one object (direction, mm) with its relation to another before and after, both clear."""
    here, there = life.things[a].position, life.things[b].position
    moves = []
    for direction, unit in MOVES.items():
        before = _axis(direction)(life.camera, here, there, margin_m)
        for step in STEPS_MM if before is not None else ():
            after = _axis(direction)(life.camera, here + unit * step / 1000, there, margin_m)
            moves += [(direction, step, str(before), after)] if after is not None else []
    return moves


def pushed_into(draw: Draw) -> Question:
    """What an object hits first when it is pushed along the table; in a third of the items nothing."""
    life = draw.still()
    free = draw.wish((True, False, False))
    pushes = [
        (slot, side, hit)
        for slot in range(len(life.things))
        for side, sign in (("left", -1.0), ("right", 1.0))
        if (hit := first_hit(life, slot, sign, draw.knobs.margin_m)) is not None and (hit == NONE) is free
    ]
    give_up_if(not pushes)
    slot, side, hit = draw.pick(pushes)
    others = [thing.name for index, thing in enumerate(life.things) if index != slot]
    options, letter = draw.choice([*others, NONE], hit)
    name = life.things[slot].name
    text = f"{sentence(name)} is pushed straight to the {side}. What does it hit first? {options}."
    if hit == NONE:
        thought = f"{sentence(name)} is at {pair(life.pixel(slot))}; nothing is in its way to the {side}. So {letter}."
    else:
        target = next(index for index, thing in enumerate(life.things) if thing.name == hit)
        thought = (
            f"{sentence(name)} is at {pair(life.pixel(slot))}; {hit} at {pair(life.pixel(target))} is in its way to "
            f"the {side}. So {letter}."
        )
    return Question(text, "choice", letter, letter, thought, life.image, life.name)


def first_hit(life: StillLife, slot: int, side: float, margin_m: float) -> str | None:
    """Name of what an object hits first on its way along +x or -x, `NONE`, or None where the margin leaves it open."""
    mover = life.things[slot]
    hits: list[tuple[float, str]] = []
    for other in (thing for index, thing in enumerate(life.things) if index != slot):
        ahead, offset = side * (other.position - mover.position)[0], abs((other.position - mover.position)[1])
        inner, outer = (_sure_radius(mover) + _sure_radius(other), mover.radius_m + other.radius_m)
        if ahead < 0 and outer < np.hypot(ahead, offset):
            continue
        if inner - 0.2 * margin_m < offset < outer + 0.2 * margin_m:
            return None
        if offset <= inner:
            hits.append((float(ahead), other.name))
    hits.sort()
    if len(hits) > 1 and hits[1][0] - hits[0][0] < margin_m:
        return None
    return hits[0][1] if hits else NONE


def _sure_radius(thing: Thing) -> float:
    """Radius of a circle inside the footprint, m. Balls touch the flat ones above the table, so they count less."""
    body = thing.parts[0]
    return 0.7 * (min(body.size[:2]) if body.kind == BOX else body.size[0])


def _solved(draw: Draw) -> Rollout:
    """The rollout that the draw asks about, if the expert solved its task."""
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, tuple(OBJECTS))
    give_up_if(not run.succeeded)
    return run


def _moved_object(draw: Draw, waypoints: int) -> tuple[Moment, str, list[list[int]]]:
    """A moment near the start of a solved task, one of the objects it shows, and that one's path in the image."""
    run = _solved(draw)
    body = draw.pick(list(run.objects))
    moment = Moment(run, int(draw.rng.integers(FEW_STEPS)), draw.knobs)
    path = image_path(moment.camera, run.objects[body][moment.time :], waypoints)
    give_up_if(not moment.shows(body))
    return moment, OBJECTS[run.task][body], path


def object_path(draw: Draw) -> Question:
    """The way of an object through the image until it rests, as the scripted expert moves it."""
    moment, name, path = _moved_object(draw, draw.knobs.waypoints)
    run = moment.run
    text = f"Task: {run.instruction} Predict the path of {name} in the image until it is done, as {len(path)} points."
    thought = f"{sentence(name)} is at {pair(path[0])}. It will be moved to {pair(path[-1])}."
    return Question(text, "trajectory", path, path_text(path), thought, moment.image, run.name)


def gripper_path(draw: Draw) -> Question:
    """The way of a gripper through the image during the step that comes next."""
    run = _solved(draw)
    ends = [0, *(end for _, end in run.steps())]
    number = int(draw.rng.integers(len(ends) - 1))
    step, start, end = run.steps()[number][0], ends[number], ends[number + 1]
    working = [arm for arm in range(len(ARMS)) if _works(run, arm, start, end)]
    give_up_if(end <= start or not working)
    arm = draw.pick(working)
    # Start a little into the step: the gripper of an arm at home is outside the image.
    moment = Moment(run, int(draw.rng.integers(start, start + max(1, (end - start) // 2))), draw.knobs)
    path = image_path(moment.camera, run.tools[moment.time : end + 1, arm], draw.knobs.waypoints)
    text = (
        f"Task: {run.instruction} The robot is about to {step}. Predict the path of the {ARMS[arm]} gripper in the "
        f"image until that is done, as {len(path)} points."
    )
    thought = f"The {ARMS[arm]} gripper is at {pair(path[0])}. To {step} it goes to {pair(path[-1])}."
    return Question(text, "trajectory", path, path_text(path), thought, moment.image, run.name)


def final_place(draw: Draw) -> Question:
    """Where an object will be in the image when the task is done."""
    moment, name, path = _moved_object(draw, waypoints=2)
    run = moment.run
    text = f"Task: {run.instruction} Where in the image will {name} be when the task is done? Point to the place."
    thought = f"{sentence(name)} is at {pair(path[0])} now. The task brings it to {pair(path[1])}."
    return Question(text, "point", {"point": path[1]}, point_text(path[1]), thought, moment.image, run.name)


def grasp_point(draw: Draw) -> Question:
    """Where one gripper has to take the object of a two-handed task: the end on its side."""
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, ("grab_roller", "lift_pot"), num_steps=FEW_STEPS)
    task = TASKS[run.task]()
    assert isinstance(task, TwoHandLift)
    moment = Moment(run, int(draw.rng.integers(FEW_STEPS)), draw.knobs)
    arm, world = draw.pick(range(len(ARMS))), moment.env.world
    goal = task.grip_point(world, arm)
    geoms = np.flatnonzero(world.model.geom_bodyid == world.model.body(task.body).id)
    end = geoms[np.argmin(np.linalg.norm(world.data.geom_xpos[geoms] - goal, axis=1))]
    mask = moment.segments == end
    give_up_if(mask.mean() < 0.5 * MIN_SHARE)
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


def image_path(camera: Camera, positions: np.ndarray, waypoints: int) -> list[list[int]]:
    """World positions [T, 3] as `waypoints` image points evenly along the path, not short and inside the image."""
    path = camera.project(positions)
    give_up_if(not ((path > 0.0) & (path < 1.0)).all())
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    give_up_if(length[-1] < MIN_PATH)
    places = np.linspace(0.0, length[-1], waypoints)
    return [integers(point) for point in np.stack([np.interp(places, length, path[:, k]) for k in (0, 1)], axis=1)]
