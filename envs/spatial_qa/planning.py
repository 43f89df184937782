"""Planning: what comes next, in which order, how much is left, whether it is done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.spatial_qa.draws import LETTERS, Draw, Question, certain, give_up_if, listed, sentence
from envs.spatial_qa.items import pair, towers_of
from envs.spatial_qa.rollouts import OBJECTS, STEPS, Moment, Rollout, rollout_of
from envs.spatial_qa.still_life import GAP_M, HOME_REGION, StillLife, arrange, draw_kinds, stack
from envs.spatial_qa.things import COLOURS
from envs.types import ARMS

SETTLED, BEFORE_DONE = 4, 8
"""Control steps around the end of a step in which it is not asked what comes next."""
LEFT_ALONE = 10
"""Control steps after success before a state is shown as done: the hands have let go visibly."""
UNDONE_PROGRESS = 0.75
"""A state above this looks nearly done, so it is not shown as undone."""
MIDDLE_M = 0.04
"""Half width of the strip whose side nobody can tell: the camera is 3 cm beside the middle of the table."""
DONE = "nothing, it is done"
FAILURES = {
    "off_table": "has fallen off the table",
    "out_of_reach": "is out of reach",
    "tipped": "has tipped over",
    "dropped": "has been dropped",
}


def next_step(draw: Draw) -> Question:
    """Which step of the task comes next in the shown state; "nothing" when all are done."""
    run, time, steps, number_done = _between_steps(draw)
    texts = [text for text, _ in steps]
    right = texts[number_done] if number_done < len(texts) else DONE
    options, letter = draw.choice([*texts, DONE], right)
    moment = Moment(run, time, draw.knobs)
    text = f"Task: {run.instruction} What should the robot do next? {options}."
    thought = f"{_done_so_far(texts, number_done)} Next: {right}. So {letter}."
    return Question(text, "choice", letter, letter, thought, moment.image, run.name)


def step_order(draw: Draw) -> Question:
    """The steps that are left in the shown state, in order, without those that are done."""
    run, time, steps, number_done = _between_steps(draw)
    texts = [text for text, _ in steps]
    give_up_if(number_done >= len(texts))
    order = draw.rng.permutation(len(texts)).tolist()
    options = ", ".join(f"{letter} {texts[i]}" for letter, i in zip(LETTERS, order, strict=False))
    answer = [LETTERS[order.index(i)] for i in range(number_done, len(texts))]
    moment = Moment(run, time, draw.knobs)
    text = f"Task: {run.instruction} Which of these steps are left, and in which order? {options}."
    left = ", then ".join(texts[number_done:])
    thought = f"{_done_so_far(texts, number_done)} Left: {left}."
    return Question(text, "ordering", answer, ", ".join(answer), thought, moment.image, run.name)


def steps_left(draw: Draw) -> Question:
    """How many of the listed steps are left in the shown state."""
    run, time, steps, number_done = _between_steps(draw, tuple(OBJECTS))
    texts = [text for text, _ in steps]
    answer = len(texts) - number_done
    moment = Moment(run, time, draw.knobs)
    text = f"Task: {run.instruction} The steps: {', '.join(texts)}. How many are left?"
    thought = f"{_done_so_far(texts, number_done)} {answer} of {len(texts)} are left."
    return Question(text, "count", answer, str(answer), thought, moment.image, run.name)


def task_done(draw: Draw) -> Question:
    """Whether the task is done in the shown state, of a rollout of the expert or of a clumsy one."""
    wanted, clumsy = draw.wish((True, False)), draw.coin()
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, tuple(OBJECTS), clumsy)
    done = run.progress == 1.0
    lasting = done[LEFT_ALONE:] & done[:-LEFT_ALONE]
    times = LEFT_ALONE + np.flatnonzero(lasting) if wanted else np.flatnonzero(run.progress < UNDONE_PROGRESS)
    give_up_if(not len(times))
    # Late states are the interesting ones: what is left then is a failure or one last step.
    time = int(times[-1 - int(draw.rng.integers(len(times)) * draw.rng.random())])
    moment = Moment(run, time, draw.knobs)
    give_up_if(not all(moment.shows(body) for body in run.objects) and run.failures[time] is None)
    answer = "yes" if wanted else "no"
    text = f"Task: {run.instruction} Is the task done?"
    return Question(text, "yes_no", answer, answer, _state_in_words(run, moment, wanted), moment.image, run.name)


def choose_arm(draw: Draw) -> Question:
    """Which arm picks up an object when each works on its own side of the table."""
    life = draw.still()
    slot = draw.pick(range(len(life.things)))
    thing, x = life.things[slot], float(life.things[slot].position[0])
    give_up_if(abs(x) < draw.knobs.margin_m + MIDDLE_M)
    side = ARMS[0] if x < 0 else ARMS[1]
    options, letter = draw.choice(ARMS, side)
    text = f"Each arm works on its own side of the table. Which arm should pick up {thing.name}? {options}."
    thought = (
        f"{sentence(thing.name)} is at {pair(life.pixel(slot))}, {round(1000 * abs(x))} mm to the {side} of the "
        f"middle. So the {side} arm: {letter}."
    )
    return Question(text, "choice", letter, letter, thought, life.image, life.name)


def unstack_order(draw: Draw) -> Question:
    """The blocks of a tower from the top down, in the order in which they can be taken."""
    life, colours, which = _towers(draw)
    answer = [f"{colour} cube" for colour in colours[::-1]]
    shown = [answer[i] for i in draw.rng.permutation(len(answer))]
    text = f"In which order can a robot take the blocks of {which} one at a time: {', '.join(shown)}?"
    thought = f"From the bottom up {which} is {listed(colours)}. The top one goes first."
    return Question(text, "ordering", answer, ", ".join(answer), thought, life.image, life.name)


def blocks_above(draw: Draw) -> Question:
    """How many blocks stand on a block of the tower."""
    life, colours, which = _towers(draw)
    level = int(draw.rng.integers(len(colours)))
    above = len(colours) - 1 - level
    text = f"How many blocks must be taken off {which} before the {colours[level]} cube can be taken?"
    thought = f"From the bottom up {which} is {listed(colours)}. On the {colours[level]} cube stand {above}."
    return Question(text, "count", above, str(above), thought, life.image, life.name)


def _between_steps(
    draw: Draw, tasks: tuple[str, ...] = tuple(STEPS)
) -> tuple[Rollout, int, list[tuple[str, int]], int]:
    """A successful rollout, a time well between two ends of steps, its steps, and how many are done then.

    The blocks of `blocks_ranking_rgb` may be moved in any order, so only questions that ask for none allow that task.
    """
    run = rollout_of(draw.seed, draw.attempt, draw.knobs, tasks)
    give_up_if(not run.succeeded)
    steps = run.steps()
    first = [0, *(end + SETTLED for _, end in steps[:-1]), steps[-1][1] + LEFT_ALONE]
    last = [*(end - BEFORE_DONE for _, end in steps), len(run.snapshots) - 1]
    number_done = draw.pick([number for number in range(len(first)) if first[number] <= last[number]])
    return run, int(draw.rng.integers(first[number_done], last[number_done] + 1)), steps, number_done


def _done_so_far(texts: list[str], number: int) -> str:
    return f"Done: {', '.join(texts[:number])}." if number else "No step is done."


def _state_in_words(run: Rollout, moment: Moment, done: bool) -> str:
    """Where the objects are, and what that means."""
    places = [
        f"{OBJECTS[run.task][body]} at {pair(moment.pixel(path[moment.time]))}" for body, path in run.objects.items()
    ]
    failure = run.failures[moment.time]
    if done:
        return f"I see {listed(places)}. All is as the task asks."
    name = listed(list(OBJECTS[run.task].values())) if len(run.objects) == 1 else "a block"
    return f"{sentence(name)} {FAILURES[failure]}." if failure else f"I see {listed(places)}. A step is missing."


def _towers(draw: Draw) -> tuple[StillLife, list[str], str]:
    """A still life with one tower, or two; the colours of the one asked about from the bottom up, and its name."""
    family = draw.pick(towers_of(draw.seed))
    number = 2 if family == "two_towers" else 1
    height = int(draw.rng.integers(2, 3 + (draw.knobs.num_objects > 3)))
    colours = [str(colour) for colour in draw.rng.permutation(list(COLOURS))]
    places = draw.rng.uniform(HOME_REGION[0] + 0.04, HOME_REGION[1] - [0.04, 0.12], (number, 2))
    if number == 2:
        places[:, 0] = np.sort(places[:, 0]) + [-0.05, 0.05]
    things = [t for i, xy in enumerate(places) for t in stack(draw.rng, colours[i * height : (i + 1) * height], xy)]
    circles = np.array([[*xy, 0.05 + GAP_M] for xy in places])
    spare = max(0, draw.knobs.num_objects - len(things))
    kinds = [kind for kind in draw_kinds(draw.rng, spare) if kind[1] != "cube"] if spare else []
    around = certain(arrange(draw.rng, "scatter", kinds, circles)) if kinds else []
    life = StillLife(f"{family}:{draw.seed}", [*things, *around], replace(draw.knobs, min_visible=0.3), draw.rng)
    give_up_if(not life.all_clear())
    which = int(draw.rng.integers(number))
    name = "the tower" if number == 1 else f"the tower on the {ARMS[which]}"
    return life, colours[which * height : (which + 1) * height], name
