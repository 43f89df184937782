"""Grounding: points, boxes and counts of the objects that a phrase names."""

from __future__ import annotations

import numpy as np

from envs.spatial_qa.answers import box_text, integers, pair, point_text, run_lengths
from envs.spatial_qa.question import Draw, Question, listed, sentence
from envs.spatial_qa.still_life import Kind, StillLife
from envs.spatial_qa.things import COLOURS, SHAPES


def point_object(draw: Draw) -> Question | None:
    """A point in a named object: its visible pixels, and the centre."""
    life = draw.still()
    if life is None:
        return None
    slot = draw.pick(range(len(life.things)))
    name, mask = life.things[slot].name, life.mask(slot)
    point = point_in(mask, life.pixel(slot))
    text = draw.pick([f"Point to {name}.", f"Where is {name}? Point to it.", f"Show {name} with a point."])
    truth = {"point": point, "mask": run_lengths(mask)}
    return Question(text, "point", truth, point_text(point), _seen(draw, life, slot), life.image, life.name)


def ground_box(draw: Draw) -> Question | None:
    """The box around the visible pixels of a named object."""
    life = draw.still()
    if life is None:
        return None
    slot = draw.pick(range(len(life.things)))
    name, box = life.things[slot].name, mask_box(life.mask(slot))
    text = draw.pick([f"Where is {name}? Draw a box.", f"Find {name} and draw a box around it."])
    thought = f"{_seen(draw, life, slot)} It is {box[2] - box[0]} wide and {box[3] - box[1]} high in the image."
    return Question(text, "box", box, box_text(box), thought, life.image, life.name)


def ground_boxes(draw: Draw) -> Question | None:
    """The boxes of all objects of a colour or shape, at least two, from left to right."""
    found = _group(draw, at_least=2)
    if found is None:
        return None
    life, noun, slots = found
    boxes = [mask_box(life.mask(slot)) for slot in slots]
    text = draw.pick([f"Draw a box around each of the {noun}.", f"Find all {noun} and draw a box around each."])
    thought = f"There are {len(slots)} {noun}: {_places(life, slots)}."
    return Question(text, "boxes", boxes, ", ".join(map(box_text, boxes)), thought, life.image, life.name)


def point_objects(draw: Draw) -> Question | None:
    """A point in every object of a colour or shape, at least two, from left to right."""
    found = _group(draw, at_least=2)
    if found is None:
        return None
    life, noun, slots = found
    points = [life.pixel(slot) for slot in slots]
    text = draw.pick([f"Point to each of the {noun}.", f"Find all {noun} and point to them."])
    thought = f"There are {len(slots)} {noun}: {_places(life, slots)}."
    return Question(text, "points", points, ", ".join(map(point_text, points)), thought, life.image, life.name)


def count(draw: Draw) -> Question | None:
    """How many objects of a colour or shape, 0 to all of them."""
    found = _group(draw, at_least=0)
    if found is None:
        return None
    life, noun, slots = found
    text = draw.pick([f"How many {noun} are on the table?", f"How many {noun} do you see?"])
    where = f"The {noun}: {_places(life, slots)}." if slots else f"I see no {noun}."
    number = str(len(slots))
    return Question(text, "count", len(slots), number, f"{where} The number is {number}.", life.image, life.name)


def mask_box(mask: np.ndarray) -> list[int]:
    """The extent of a bool [h, w] mask with at least one pixel as [xmin, ymin, xmax, ymax], 0..1000."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return integers(corners / np.tile(mask.shape[::-1], 2))


def point_in(mask: np.ndarray, point: list[int]) -> list[int]:
    """The point (0..1000) itself if it is in the mask, else the centre of the nearest pixel of the mask."""
    rows, columns = np.nonzero(mask)
    size = np.array(mask.shape[::-1])
    centres = (np.stack([columns, rows], axis=1) + 0.5) / size
    nearest = centres[np.argmin(np.linalg.norm(centres - np.array(point) / 1000, axis=1))]
    column, row = np.minimum(np.array(point) * size // 1000, size - 1)
    return list(point) if mask[row, column] else integers(nearest)


def _group(draw: Draw, at_least: int) -> tuple[StillLife, str, list[int]] | None:
    """A scene, a plural noun and the objects it names from left to right; about any number of them equally often."""
    number = draw.knobs.num_objects
    wanted = draw.wish(range(at_least, number + 1))
    by_colour = draw.coin()
    values = tuple(COLOURS) if by_colour else SHAPES
    value = draw.pick(values)
    others = [other for other in values if other != value]
    kinds: list[Kind] = []
    for index in range(number):
        named = value if index < wanted else draw.pick(others)
        kinds.append((named, draw.pick(SHAPES)) if by_colour else (draw.pick(tuple(COLOURS)), named))
    life = draw.still(kinds)
    if life is None:
        return None
    slots = sorted(range(wanted), key=lambda slot: life.pixel(slot)[0])
    return life, f"{value} objects" if by_colour else f"{value}s", slots


def _places(life: StillLife, slots: list[int]) -> str:
    """`red at (1, 2), blue at (3, 4)`; the shape where the colour is common."""
    things = [life.things[slot] for slot in slots]
    common = len({thing.shape for thing in things}) > 1
    names = [thing.shape if common else thing.colour for thing in things]
    return ", ".join(f"{name} at {pair(life.pixel(slot))}" for name, slot in zip(names, slots, strict=True))


def _seen(draw: Draw, life: StillLife, slot: int) -> str:
    """Where one object is, with or without a list of all objects first."""
    place = f"{sentence(life.things[slot].name)} is at {pair(life.pixel(slot))}."
    return f"I see {listed([thing.name for thing in life.things])}. {place}" if draw.coin() else place
