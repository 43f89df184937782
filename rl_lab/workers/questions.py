"""Rendering questions in a worker: a range of a split's questions in, records and pictures out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from rl_lab.language.item_files import Row, item_row

UNIT_QUESTIONS = 64
"""Questions that a worker renders at once."""


@dataclass(frozen=True)
class QuestionUnit:
    """Questions `start`, ..., `start + UNIT_QUESTIONS - 1` of a split; see `envs.spatial_qa.questions.make_items`."""

    split: str
    start: int
    tasks: tuple[str, ...]
    levels: tuple[float, ...]
    image_size: int
    thinking: bool
    per_scene: int


def question_units(unit: QuestionUnit) -> Iterator[QuestionUnit]:
    """This unit and all that follow it."""
    start = unit.start
    while True:
        yield replace(unit, start=start)
        start += UNIT_QUESTIONS


def render(unit: QuestionUnit) -> list[Row]:
    """The questions of a unit, without those seeds for which no scene has a clear answer."""
    from envs.spatial_qa.questions import NoClearQuestionError, make_items  # here, because it imports the simulator

    ask = partial(
        make_items,
        1,
        unit.split,
        tasks=unit.tasks,
        levels=unit.levels,
        image_size=unit.image_size,
        thinking=unit.thinking,
        per_scene=unit.per_scene,
    )
    rows = []
    for index in range(unit.start, unit.start + UNIT_QUESTIONS):
        try:
            rows += [item_row(item) for item in ask(start=index)]
        except NoClearQuestionError:
            continue
    return rows
