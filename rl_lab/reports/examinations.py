"""What a run measured of its models: answers to held-out questions, rewards while they trained, and arms of joint
training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rl_lab.common.errors import UserError
from rl_lab.common.files import Record, read_lines_as
from rl_lab.common.stats import Array, pass_at_k
from rl_lab.records.types import EXAMS_FILE, GUARD_FILE, Exam, GuardEvent, Scores, known_mean

EXAMINATIONS, TRAININGS, ARMS = "examinations", "grpo", "joint"
"""Folders of a run with one folder a node."""
SKILLS = ("language", "actions")


@dataclass(frozen=True)
class ItemResult:
    """The answers of one model to one question."""

    item: str
    category: str
    rewards: Scores
    """Of each sampled answer."""
    blank: Scores
    """Of answers to the same question with a grey picture."""
    constant: float = math.nan
    """Of the best constant answer of its generator, chosen on training items."""
    low: Scores = ()
    """Of an answer at a low temperature; () where none was asked for."""

    @property
    def reward(self) -> float:
        """Mean over the sampled answers."""
        return known_mean(self.rewards)

    @property
    def blank_reward(self) -> float:
        """Mean over the answers to the grey picture."""
        return known_mean(self.blank)

    @property
    def low_reward(self) -> float:
        """That of the answer at a low temperature, NaN without one."""
        return known_mean(self.low)

    @property
    def failed(self) -> int:
        """Reward calls that failed."""
        return sum(reward is None for reward in (*self.rewards, *self.blank, *self.low))

    def passed(self, k: int, threshold: float) -> float:
        """pass@k, where an answer passes from `threshold` on; NaN with fewer than k known rewards."""
        known = [reward >= threshold for reward in self.rewards if reward is not None]
        return pass_at_k(len(known), sum(known), k) if len(known) >= k else math.nan


@dataclass(frozen=True)
class Examination:
    """One model on all held-out items."""

    node: str
    scheme: str
    """How its curriculum was chosen; `base` for the model that every training starts from."""
    replicate: int
    """Training seed of a study, 1, 2, ...; 0 in other runs."""
    items: list[ItemResult]


@dataclass(frozen=True)
class LearningCurve:
    """One model while it trains: how it did on held-out items at some steps; T examinations of n items."""

    node: str
    scheme: str
    replicate: int
    folder: Path
    """Holds its pool and its rollouts."""
    steps: Array
    """[T], rising."""
    tokens: Array
    """Completion tokens generated for training so far, [T]."""
    rewards: Array
    """Of one sampled answer an item, [T, n]; NaN where the reward call failed."""


@dataclass(frozen=True)
class _HeldOut:
    """A line of `held_out.jsonl`, as far as reports need it."""

    step: int
    tokens: float
    rewards: Scores


def read_examination(path: Path) -> list[ItemResult]:
    """The items of a `results.jsonl`. UserError if one occurs twice: it would be counted twice."""
    items = read_lines_as(path, ItemResult)
    if len({item.item for item in items}) < len(items):
        raise UserError(f"{path} holds the same item more than once")
    return items


def read_training(path: Path) -> tuple[Array, Array, Array]:
    """steps [T], tokens [T] and rewards [T, n] of a `held_out.jsonl`; empty without one.

    A step that a resumed run examined again counts once. ValueError if the number of items changes.
    """
    rows = {row.step: row for row in read_lines_as(path, _HeldOut, missing_ok=True)}
    steps = sorted(rows)
    rewards = [[math.nan if reward is None else reward for reward in rows[step].rewards] for step in steps]
    if len({len(row) for row in rewards}) > 1:
        raise ValueError("its examinations have different numbers of items")
    tokens = [rows[step].tokens for step in steps]
    shape = (len(steps), len(rewards[0]) if rewards else 0)
    return np.array(steps, float), np.array(tokens, float), np.array(rewards, float).reshape(shape)


NOT_EXAMINED = np.empty(0), np.empty(0), np.empty((0, 0))
"""What `read_training` gives of a training without a file."""


def reward_table(
    examinations: Sequence[Examination], items: Sequence[str], value: Callable[[ItemResult], float]
) -> Array:
    """A value of each item under each examination, [n, R]; NaN where an examination lacks the item."""
    found = [{result.item: value(result) for result in examination.items} for examination in examinations]
    return np.array([[column.get(item, math.nan) for column in found] for item in items], float).reshape(
        len(items), len(found)
    )


@dataclass(frozen=True)
class Arm:
    """One arm of a joint run."""

    node: str
    name: str
    folder: Path
    exams: list[Exam] = field(default_factory=list)
    events: list[GuardEvent] = field(default_factory=list)
    lines: list[Record] = field(default_factory=list)
    """Metrics of its turns."""


def read_arm(node: str, name: str, folder: Path, metrics: Sequence[Record]) -> Arm:
    """The files of an arm, as far as they are there; UserError or ValueError for one that is not what it should be."""
    exams = read_lines_as(folder / EXAMS_FILE, Exam, missing_ok=True)
    if any(set(exam.scores) != set(SKILLS) for exam in exams):
        raise ValueError(f"a line has no scores of {' and '.join(SKILLS)}")
    events = read_lines_as(folder / GUARD_FILE, GuardEvent, missing_ok=True)
    lines = [line for line in metrics if line.get("node") == node and "alarm" not in line]
    return Arm(node, name, folder, exams, events, lines)
