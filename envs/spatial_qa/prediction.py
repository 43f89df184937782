"""Prediction: what will be where after a motion. Still lifes; rollouts are in `motion`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.spatial_qa.answers import pair
from envs.spatial_qa.question import Draw, Question, sentence
from envs.spatial_qa.relations import AXES, OPPOSITE
from envs.spatial_qa.still_life import StillLife
from envs.spatial_qa.things import BOX, Thing

MOVES = {
    "to the left": np.array([-1.0, 0.0, 0.0]),
    "to the right": np.array([1.0, 0.0, 0.0]),
    "away from the camera": np.array([0.0, 1.0, 0.0]),
    "towards the camera": np.array([0.0, -1.0, 0.0]),
}
"""Directions along the table's edges; the camera looks along +y."""
STEPS_MM = (50, 100, 150, 200, 250)
NONE = "none"


def moved_relation(draw: Draw) -> Question | None:
    """Whether a relation holds after one object was moved by a given distance; half of the moves turn it round."""
    life = draw.still()
    if life is None:
        return None
    a, b = (int(i) for i in draw.rng.permutation(len(life.things))[:2])
    first, second = life.things[a], life.things[b]
    stays = draw.wish((True, False))
    moves = [move for move in _moves(life, a, b, draw.knobs.margin_m) if (move[2] == move[3]) is stays]
    if not moves:
        return None
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


def pushed_into(draw: Draw) -> Question | None:
    """What an object hits first when it is pushed along the table; in a third of the items nothing."""
    life = draw.still()
    if life is None:
        return None
    free = draw.wish((True, False, False))
    pushes = [
        (slot, side, hit)
        for slot in range(len(life.things))
        for side, sign in (("left", -1.0), ("right", 1.0))
        if (hit := first_hit(life, slot, sign, draw.knobs.margin_m)) is not None and (hit == NONE) is free
    ]
    if not pushes:
        return None
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
