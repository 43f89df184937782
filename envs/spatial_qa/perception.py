"""Perception: points, boxes and counts of what a phrase names; how objects lie to each other, sizes and distances."""

from __future__ import annotations

import numpy as np

from envs.spatial_qa.draws import Draw, Question, certain, give_up_if, listed, sentence
from envs.spatial_qa.items import box_text, integers, pair, point_text, run_lengths
from envs.spatial_qa.still_life import AXES, FARTHER, LEFT, NEARER, OPPOSITE, RIGHT, Kind, StillLife, in_depth
from envs.spatial_qa.things import COLOURS, SHAPES

MM = 1000

MIN_GAP_M = 0.06
"""Objects closer than this are not asked about in distances: a relative error would be decided by a pixel."""


def point_object(draw: Draw) -> Question:
    """A point in a named object: its visible pixels, and the centre."""
    life = draw.still()
    slot = draw.pick(range(len(life.things)))
    name, mask = life.things[slot].name, life.mask(slot)
    point = point_in(mask, life.pixel(slot))
    text = draw.pick([f"Point to {name}.", f"Where is {name}? Point to it.", f"Show {name} with a point."])
    truth = {"point": point, "mask": run_lengths(mask)}
    return Question(text, "point", truth, point_text(point), _seen(draw, life, slot), life.image, life.name)


def ground_box(draw: Draw) -> Question:
    """The box around the visible pixels of a named object."""
    life = draw.still()
    slot = draw.pick(range(len(life.things)))
    name, box = life.things[slot].name, mask_box(life.mask(slot))
    text = draw.pick([f"Where is {name}? Draw a box.", f"Find {name} and draw a box around it."])
    thought = f"{_seen(draw, life, slot)} It is {box[2] - box[0]} wide and {box[3] - box[1]} high in the image."
    return Question(text, "box", box, box_text(box), thought, life.image, life.name)


def ground_boxes(draw: Draw) -> Question:
    """The boxes of all objects of a colour or shape, at least two, from left to right."""
    life, noun, slots = _group(draw, at_least=2)
    boxes = [mask_box(life.mask(slot)) for slot in slots]
    text = draw.pick([f"Draw a box around each of the {noun}.", f"Find all {noun} and draw a box around each."])
    thought = f"There are {len(slots)} {noun}: {_places(life, slots)}."
    return Question(text, "boxes", boxes, ", ".join(map(box_text, boxes)), thought, life.image, life.name)


def point_objects(draw: Draw) -> Question:
    """A point in every object of a colour or shape, at least two, from left to right."""
    life, noun, slots = _group(draw, at_least=2)
    points = [life.pixel(slot) for slot in slots]
    text = draw.pick([f"Point to each of the {noun}.", f"Find all {noun} and point to them."])
    thought = f"There are {len(slots)} {noun}: {_places(life, slots)}."
    return Question(text, "points", points, ", ".join(map(point_text, points)), thought, life.image, life.name)


def count(draw: Draw) -> Question:
    """How many objects of a colour or shape, 0 to all of them."""
    life, noun, slots = _group(draw, at_least=0)
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


def _group(draw: Draw, at_least: int) -> tuple[StillLife, str, list[int]]:
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


def relation(draw: Draw) -> Question:
    """Whether one object is left of, right of, nearer than or farther than another."""
    life = draw.still()
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    axis = draw.pick(AXES)
    held = certain(axis(life.camera, life.things[a].position, life.things[b].position, draw.knobs.margin_m))
    asked_about = held if draw.coin() else OPPOSITE[held]
    answer = "yes" if asked_about == held else "no"
    text = f"Is {life.things[a].name} {asked_about} {life.things[b].name}?"
    thought = f"{_compared(life, a, b, axis is in_depth)} So {life.things[a].name} is {held} {life.things[b].name}."
    return Question(text, "yes_no", answer, answer, thought, life.image, life.name)


def relation_choice(draw: Draw) -> Question:
    """Both relations at once: left or right, nearer or farther."""
    life = draw.still()
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    places = [axis(life.camera, life.things[a].position, life.things[b].position, draw.knobs.margin_m) for axis in AXES]
    give_up_if(None in places)
    words = {LEFT: "left", RIGHT: "right", NEARER: "nearer", FARTHER: "farther"}
    right = " and ".join(words[str(place)] for place in places)
    options, letter = draw.choice([f"{x} and {y}" for x in ("left", "right") for y in ("nearer", "farther")], right)
    text = f"Seen from the camera, where is {life.things[a].name} from {life.things[b].name}? {options}."
    thought = f"{_compared(life, a, b, True)} So it is {right}: {letter}."
    return Question(text, "choice", letter, letter, thought, life.image, life.name)


def nearest_object(draw: Draw) -> Question:
    """Which object is nearest to the camera, or farthest from it."""
    life = draw.still()
    order = sorted(range(len(life.things)), key=life.distance)
    near = draw.coin()
    first, second = (order[0], order[1]) if near else (order[-1], order[-2])
    certain(in_depth(life.camera, *_positions(life, first, second), draw.knobs.margin_m))
    names = [thing.name for thing in life.things]
    options, letter = draw.choice(names, names[first])
    question = "nearest to the camera" if near else "farthest from the camera"
    thought = f"{_distances(life, order)} So {names[first]} is {question}: {letter}."
    return Question(f"Which object is {question}? {options}.", "choice", letter, letter, thought, life.image, life.name)


def depth_order(draw: Draw) -> Question:
    """Three or more objects (two, if there are only two) from the nearest to the farthest."""
    life = draw.still()
    chosen: list[int] = []
    for slot in draw.rng.permutation(len(life.things)).tolist():
        gaps = [in_depth(life.camera, *_positions(life, slot, other), draw.knobs.margin_m) for other in chosen]
        chosen += [slot] if None not in gaps else []
    give_up_if(len(chosen) < min(3, len(life.things)))
    order = sorted(chosen, key=life.distance)
    names = [life.things[slot].name for slot in chosen]
    answer = [life.things[slot].name.removeprefix("the ") for slot in order]
    text = f"Order {listed(names)} from nearest to farthest from the camera."
    return Question(text, "ordering", answer, ", ".join(answer), _distances(life, order), life.image, life.name)


def table_distance(draw: Draw) -> Question:
    """Distance of two objects' centres along the table, mm."""
    life = draw.still()
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    first, second = life.things[a], life.things[b]
    side, depth = np.abs(first.position - second.position)[:2]
    give_up_if(np.hypot(side, depth) < MIN_GAP_M)
    answer = round(float(np.hypot(side, depth)) * MM)
    text = draw.pick(
        [
            f"How far apart on the table are the centres of {first.name} and {second.name}, in mm?",
            f"What is the distance on the table from {first.name} to {second.name}, centre to centre, in mm?",
        ]
    )
    thought = (
        f"{sentence(first.name)} is at {pair(life.pixel(a))}, {second.name} at {pair(life.pixel(b))}. "
        f"That is {round(side * MM)} mm to the side and {round(depth * MM)} mm in depth, together {answer} mm."
    )
    return Question(text, "number", float(answer), str(answer), thought, life.image, life.name)


def camera_distance(draw: Draw) -> Question:
    """Distance of an object's centre from the camera, mm."""
    life = draw.still()
    slot = draw.pick(range(len(life.things)))
    answer, name = round(life.distance(slot) * MM), life.things[slot].name
    text = draw.pick([f"How far is {name} from the camera, in mm?", f"What is the depth of {name}, in mm?"])
    text = text.replace("the depth of", "the distance from the camera to")
    thought = (
        f"{sentence(name)} is at {pair(life.pixel(slot))} on the table; a line from the camera is {answer} mm long."
    )
    return Question(text, "number", float(answer), str(answer), thought, life.image, life.name)


def object_size(draw: Draw) -> Question:
    """Height or width of an object, mm."""
    life = draw.still()
    slot = draw.pick(range(len(life.things)))
    thing = life.things[slot]
    tall = thing.shape in ("cylinder", "mug") and draw.coin()
    answer = round((thing.height_m if tall else thing.width_m) * MM)
    give_up_if(thing.shape == "mug" and not tall)
    box = mask_box(life.mask(slot))
    word = "tall" if tall else "long" if thing.shape == "bar" else "wide"
    thought = (
        f"{sentence(thing.name)} is {round(life.distance(slot) * MM)} mm away and {box[2] - box[0]} wide and "
        f"{box[3] - box[1]} high in the image. So it is {answer} mm {word}."
    )
    text = f"How {word} is {thing.name}, in mm?"
    return Question(text, "number", float(answer), str(answer), thought, life.image, life.name)


def _positions(life: StillLife, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    return life.things[a].position, life.things[b].position


def _compared(life: StillLife, a: int, b: int, depth: bool) -> str:
    """Places of two objects, and their distances from the camera where depth is asked."""
    first, second = life.things[a].name, life.things[b].name
    text = f"{sentence(first)} is at {pair(life.pixel(a))}, {second} at {pair(life.pixel(b))}."
    return f"{text} {_distances(life, [a, b])}" if depth else text


def _distances(life: StillLife, slots: list[int]) -> str:
    parts = [f"{life.things[slot].name} {round(life.distance(slot) * MM)} mm" for slot in slots]
    return f"From the camera: {', '.join(parts)}."
