"""The generators by name, and how a seed becomes an item: the same id always gives the same picture and words."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from envs.spatial_qa import interaction, perception, planning, prediction
from envs.spatial_qa.draws import Draw, Question, UnclearError
from envs.spatial_qa.items import SEEDS_PER_BLOCK, SPLITS, Item, Knobs, asked, item_id, knobs_at, reply, split_of

Generator = Callable[[Draw], Question]

BY_CATEGORY: dict[str, tuple[Generator, ...]] = {
    "perception": (
        perception.point_object,
        perception.point_objects,
        perception.ground_box,
        perception.ground_boxes,
        perception.count,
        perception.relation,
        perception.relation_choice,
        perception.nearest_object,
        perception.depth_order,
        perception.table_distance,
        perception.camera_distance,
        perception.object_size,
    ),
    "prediction": (
        prediction.moved_relation,
        prediction.pushed_into,
        prediction.object_path,
        prediction.gripper_path,
        prediction.final_place,
    ),
    "interaction": (
        interaction.reach_one_arm,
        interaction.reach_which_arm,
        interaction.fits_gripper,
        interaction.handle_point,
        interaction.free_place,
        interaction.between_point,
        prediction.grasp_point,
    ),
    "planning": (
        planning.next_step,
        planning.step_order,
        planning.steps_left,
        planning.task_done,
        planning.choose_arm,
        planning.unstack_order,
        planning.blocks_above,
    ),
}
GENERATORS = {generator.__name__: generator for group in BY_CATEGORY.values() for generator in group}
CATEGORY_OF = {generator.__name__: category for category, group in BY_CATEGORY.items() for generator in group}
MAX_ATTEMPTS = 96
"""Scenes tried for one seed."""
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


class NoClearQuestionError(ValueError):
    """None of the scenes that a seed gave has a clear answer."""


def make_item(task: str, seed: int, knobs: Knobs | None = None) -> Item:
    """The item of a generator and a seed. The seed also decides the split, see `items.split_of`.

    ValueError for an unknown generator and a seed of no split, NoClearQuestionError if no scene has a clear answer.
    """
    if task not in GENERATORS:
        raise ValueError(f"task is {task!r}; use one of {', '.join(GENERATORS)}")
    knobs = Knobs() if knobs is None else knobs
    split_of(seed)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, zlib.crc32(task.encode()), attempt])
        with suppress(UnclearError):
            return _item(task, seed, knobs, GENERATORS[task](Draw(rng, knobs, seed, attempt)))
    raise NoClearQuestionError(
        f"{task} found no clear question for seed {seed} in {MAX_ATTEMPTS} scenes with {knobs}; ease them"
    )


def make_items(
    number: int,
    split: str = "train",
    *,
    tasks: Sequence[str] = (),
    levels: Sequence[float] = LEVELS,
    start: int = 0,
    image_size: int = 64,
    thinking: bool = True,
    per_scene: int = SEEDS_PER_BLOCK,
) -> Iterator[Item]:
    """Items `start`, `start + 1`, .. of a split: all four categories in turn, their tasks in turn, levels mixed.

    Item k is the same whatever `number` and `start` are. `tasks` restricts the generators (all by default); at most
    `per_scene` successive items ask about the same rollout of a task, and the other seeds of its block are left out.
    ValueError for an unknown split or task, `per_scene` outside 1..`SEEDS_PER_BLOCK`, and when the split ends;
    NoClearQuestionError as `make_item`.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    unknown = [task for task in tasks if task not in GENERATORS]
    if unknown:
        raise ValueError(f"unknown tasks {', '.join(unknown)}; use {', '.join(GENERATORS)}")
    groups = [[g.__name__ for g in group if not tasks or g.__name__ in tasks] for group in BY_CATEGORY.values()]
    groups = [group for group in groups if group]
    if not 1 <= per_scene <= SEEDS_PER_BLOCK:
        raise ValueError(f"per_scene is {per_scene}; use 1 to {SEEDS_PER_BLOCK}")

    def seed_of(index: int) -> int:
        return SPLITS[split].start + index // per_scene * SEEDS_PER_BLOCK + index % per_scene

    if number > 0 and seed_of(start + number - 1) >= SPLITS[split].stop:
        raise ValueError(f"split {split} has {len(SPLITS[split])} seeds; ask for fewer items")
    for index in range(start, start + number):
        seed = seed_of(index)
        group = groups[index % len(groups)]
        task = group[index // len(groups) % len(group)]
        level = levels[int(np.random.default_rng([seed, SEEDS_PER_BLOCK]).integers(len(levels)))]
        yield make_item(task, seed, knobs_at(level, image_size=image_size, thinking=thinking))


def _item(task: str, seed: int, knobs: Knobs, question: Question) -> Item:
    return Item(
        id=item_id(task, seed, knobs),
        category=CATEGORY_OF[task],
        task=task,
        reward_type=question.reward_type,
        seed=seed,
        scene=question.scene,
        difficulty=asdict(knobs),
        prompt=asked(question.text, question.reward_type, knobs.thinking),
        images=(question.image,),
        answer=question.answer,
        solution=reply(question.thought if knobs.thinking else "", question.reply),
    )
