"""Interaction, on still lifes: what the arms can reach and grasp, and where something can be put down.

Whether a gripper pointing straight down can be brought to a place is asked of inverse kinematics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from envs import se3
from envs.spatial_qa.draws import Draw, Question, UnclearError, give_up_if, sentence
from envs.spatial_qa.items import integers, pair, point_text, run_lengths
from envs.spatial_qa.perception import point_in
from envs.spatial_qa.still_life import StillLife, draw_kinds, pixel_centres
from envs.spatial_qa.things import COLOURS
from envs.tabletop import scene
from envs.tabletop.expert import DOWN, angle_between, tool_rotation
from envs.tabletop.scene import TABLE_HALF_M, TABLE_Z_M
from envs.tabletop.world import ROTATION_WEIGHT_M, BimanualIK
from envs.types import ARMS

OPENING_MM = round(2000 * scene.FINGER_TRAVEL_M)
"""How far the fingers open."""

GRID = 64
"""Cells a side of a mask of free table."""

MIN_FREE_CELLS = 12

ROOM_M = 0.015

MIN_HANDLE_PIXELS = 30
"""Of the segmentation; a handle that shows less is hidden behind its mug."""

REACH_TRIES = 4

HEIGHTS_MM = (100, 200, 300, 350, 400)
"""Both arms reach most of the table itself; higher up their reach shrinks."""

PLATES_MM = (60, 80, 100, 120, 140)


def reach_one_arm(draw: Draw) -> Question:
    """Whether one gripper, pointing down, can be held at a height above an object."""
    life = draw.still()
    wanted, arm = draw.wish((True, False)), draw.pick((0, 1))
    slot, height = _held_above(draw, life, lambda arms: arms[arm] is wanted)
    name, answer = life.things[slot].name, "yes" if wanted else "no"
    text = f"Can the {ARMS[arm]} gripper, pointing straight down, be held {height} mm above {name}?"
    thought = (
        f"{sentence(name)} is at {pair(life.pixel(slot))}, {_base_distance_mm(life, slot, arm)} mm from the base of "
        f"the {ARMS[arm]} arm. At a height of {height} mm that is {'in reach' if wanted else 'out of reach'}."
    )
    return Question(text, "yes_no", answer, answer, thought, life.image, life.name)


def reach_which_arm(draw: Draw) -> Question:
    """Which grippers, pointing down, can be held at a height above an object: left, right, both or none."""
    life = draw.still()
    names = {(True, False): "only left", (False, True): "only right", (True, True): "both", (False, False): "none"}
    wanted = draw.wish(list(names))
    slot, height = _held_above(draw, life, lambda arms: arms == wanted)
    options, letter = draw.choice(list(names.values()), names[wanted])
    name = life.things[slot].name
    text = f"Which gripper, pointing straight down, can be held {height} mm above {name}? {options}."
    left, right = (_base_distance_mm(life, slot, arm) for arm in (0, 1))
    thought = (
        f"{sentence(name)} is at {pair(life.pixel(slot))}, {left} mm from the base of the left arm and {right} mm from "
        f"the right one. At a height of {height} mm it is in reach of {names[wanted]}: {letter}."
    )
    return Question(text, "choice", letter, letter, thought, life.image, life.name)


def _held_above(
    draw: Draw, life: StillLife, wanted: Callable[[tuple[bool | None, bool | None]], bool]
) -> tuple[int, int]:
    """An object and a height (mm) above its centre where the grippers that get there are as wanted."""
    for _ in range(REACH_TRIES):
        slot, height = draw.pick(range(len(life.things))), draw.pick(HEIGHTS_MM)
        if wanted(reachable(life.things[slot].position + [0.0, 0.0, height / 1000], draw.knobs.margin_m)):
            return slot, height
    raise UnclearError


def fits_gripper(draw: Draw) -> Question:
    """Whether an object fits between the open fingers."""
    life = draw.still(draw_kinds(draw.rng, draw.knobs.num_objects, ("cube", "ball", "cylinder", "bar", "plate")))
    clearance = 0.2 * draw.knobs.margin_m * 1000
    wanted = draw.wish((True, False))
    widths = [1000 * thing.grip_width_m for thing in life.things]
    slots = [s for s, w in enumerate(widths) if (OPENING_MM - w if wanted else w - OPENING_MM) > clearance]
    give_up_if(not slots)
    slot = draw.pick(slots)
    name, answer = life.things[slot].name, "yes" if wanted else "no"
    text = f"The fingers open {OPENING_MM} mm. Does {name} fit between them?"
    compared = "less" if wanted else "more"
    thought = f"{sentence(name)} is {round(widths[slot])} mm wide, {compared} than {OPENING_MM} mm."
    return Question(text, "yes_no", answer, answer, thought, life.image, life.name)


def handle_point(draw: Draw) -> Question:
    """A point on the handle of a mug: the handle's visible pixels."""
    kinds = draw_kinds(draw.rng, draw.knobs.num_objects)
    mug = (draw.pick([c for c in COLOURS if (c, "mug") not in kinds]), "mug")
    life = draw.still([mug, *kinds[1:]])
    mask = life.mask(0, part=1)
    give_up_if(mask.sum() < MIN_HANDLE_PIXELS)
    handle = life.things[0].vertices(life.things[0].parts[1]).mean(axis=0)
    point = point_in(mask, integers(life.camera.project(handle)))
    name = life.things[0].name
    text = draw.pick([f"Point to the handle of {name}.", f"Grasp {name} by its handle: where? Point to it."])
    thought = f"{sentence(name)} is at {pair(life.pixel(0))}; its handle is at {pair(point)}."
    truth = {"point": point, "mask": run_lengths(mask)}
    return Question(text, "point", truth, point_text(point), thought, life.image, life.name)


def free_place(draw: Draw) -> Question:
    """Free table for a plate of given width, beside a named object: all cells where the plate touches nothing."""
    life = draw.still()
    width, side = draw.pick(PLATES_MM), draw.pick(("left", "right"))
    slot = draw.pick(range(len(life.things)))
    clearance, xy = free_clearance(life)
    offset = life.things[slot].position[:2] - xy
    beside = offset[..., 0] * (1.0 if side == "left" else -1.0)
    free = (clearance > width / 2000) & (beside > width / 2000 + life.things[slot].radius_m)
    give_up_if(free.sum() < MIN_FREE_CELLS)
    # Solvers put the plate near the object, but with some room if there is any.
    roomy = free & (clearance > width / 2000 + ROOM_M)
    row, column = np.unravel_index(
        np.argmin(np.where(roomy if roomy.any() else free, np.linalg.norm(offset, axis=-1), np.inf)), free.shape
    )
    point = integers((np.array([column, row]) + 0.5) / GRID)
    name = life.things[slot].name
    text = f"Where is free table for a plate {width} mm wide, to the {side} of {name}? Point to its centre."
    thought = (
        f"{sentence(name)} is at {pair(life.pixel(slot))}. To the {side} of it the table is free around {pair(point)}, "
        f"{round(2000 * float(clearance[row, column]))} mm wide."
    )
    truth = {"point": point, "mask": run_lengths(free)}
    return Question(text, "point", truth, point_text(point), thought, life.image, life.name)


def between_point(draw: Draw) -> Question:
    """The middle of the table between two objects."""
    life = draw.still()
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    first, second = life.things[a], life.things[b]
    gap = float(np.linalg.norm((first.position - second.position)[:2])) - first.radius_m - second.radius_m
    middle = np.array([*(first.position + second.position)[:2] / 2, TABLE_Z_M])
    point = integers(life.camera.project(middle))
    give_up_if(gap < draw.knobs.margin_m or not _shows_table(life, point))
    text = f"Point to the table in the middle between {first.name} and {second.name}."
    thought = (
        f"{sentence(first.name)} is at {pair(life.pixel(a))}, {second.name} at {pair(life.pixel(b))}. "
        f"The table in the middle is at {pair(point)}."
    )
    return Question(text, "point", {"point": point}, point_text(point), thought, life.image, life.name)


def free_clearance(life: StillLife) -> tuple[np.ndarray, np.ndarray]:
    """For cells of the image [GRID, GRID]: distance (m) from the nearest footprint or the edge, and world x, y [.., 2].

    -1 where the image does not show the table. Footprints are circles around the objects.
    """
    xy = life.camera.on_plane(pixel_centres(GRID), TABLE_Z_M)
    edge = np.min(np.array(TABLE_HALF_M) - np.abs(xy), axis=-1)
    gaps = [np.linalg.norm(xy - thing.position[:2], axis=-1) - thing.radius_m for thing in life.things]
    side = len(life.segments)
    sample = ((np.arange(GRID) + 0.5) * side / GRID).astype(int)
    table = life.segments[np.ix_(sample, sample)] == life.model.geom("table").id
    return np.where(table, np.minimum(edge, np.min(gaps, axis=0)), -1.0), xy


def _shows_table(life: StillLife, point: list[int]) -> bool:
    side = len(life.segments)
    column, row = np.minimum(np.array(point) * side // 1000, side - 1)
    return bool(life.segments[row, column] == life.model.geom("table").id)


def _base_distance_mm(life: StillLife, slot: int, arm: int) -> int:
    """Horizontal distance of an object from an arm's base."""
    base = np.array([scene.BASE_X_M * (-1.0 if arm == 0 else 1.0), scene.BASE_Y_M])
    return round(1000 * float(np.linalg.norm(life.things[slot].position[:2] - base)))


HEADINGS = tuple(np.pi / 2 + np.linspace(-1.2, 1.2, 5))
"""Tool headings tried; +y is pi / 2."""

ROUNDS = 4
"""Solver calls from the last result: one call stops after few steps."""

REACHED_M = 0.005


def reachable(position: np.ndarray, margin_m: float) -> tuple[bool | None, bool | None]:
    """For the left and the right arm: True within `REACHED_M`, False beyond the margin, None between."""
    left, right = (
        True if error < REACHED_M else False if error > max(margin_m, 2 * REACHED_M) else None
        for error in reach_errors(position).tolist()
    )
    return left, right


def reach_errors(position: np.ndarray) -> np.ndarray:
    """Least error of each arm's tool pointing down at a world position [3], [2]: m, with 0.2 m a radian."""
    solver = _solver()
    errors = np.full(2, np.inf)
    for heading in HEADINGS:
        goal = tool_rotation(float(heading), DOWN)
        joints = scene.HOME_JOINTS.copy()
        quats = np.tile(se3.matrix_to_quat(goal), (2, 1))
        for _ in range(ROUNDS):
            joints = solver.solve(joints, np.tile(position, (2, 1)), quats)
        reached, rotations = solver.forward(joints)
        turned = [ROTATION_WEIGHT_M * angle_between(rotation, goal) for rotation in rotations]
        errors = np.minimum(errors, np.linalg.norm(reached - position, axis=1) + turned)
    return errors


@lru_cache(maxsize=1)
def _solver() -> BimanualIK:
    return BimanualIK()
