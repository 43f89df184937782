"""Stored rollouts under another reward: what would have been paid, and whom that would have changed.

Nothing is generated: the answers of a run are read step by step and scored again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from envs.spatial_qa.items import Item
from rewards.calibration import rank_correlation
from rewards.isolation import FailedCall, failure_counts
from rewards.rubric import Rewards
from rl_lab.common.errors import UserError
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutRow, RolloutStore
from rl_lab.rollouts.answering import reward_columns

COLUMNS = ("step", "item", "group", "sample", "prompt", "completion", "reward")
FLIPS_KEPT = 50
SNIPPET = 200
"""Letters of a completion beside a flip."""


@dataclass(order=True)
class CompletionFlip:
    """An answer that passes under one reward and not under the other."""

    change: float
    """|new - old|, by which flips are ordered."""
    step: int
    item: str = field(compare=False)
    group: int = field(compare=False)
    sample: int = field(compare=False)
    old: float = field(compare=False)
    new: float = field(compare=False)
    completion: str = field(compare=False)


@dataclass
class OrderAgreement:
    """How two rewards order the same answers."""

    answers: int = 0
    """With a reward under both."""
    unscored: int = 0
    """With a reward under one of them only: the other's call failed or did not apply."""
    failures: dict[str, int] = field(default_factory=dict)
    """Calls of the new reward that failed, by PART/REASON."""
    first_failure: str | None = None
    """The first of them in words, with the answer on which it failed."""
    groups: int = 0
    """With at least two such answers."""
    rank_correlation: float | None = None
    """Spearman's rho over all answers; None where one of the rewards does not vary."""
    group_correlation: float | None = None
    """Kendall's tau-b within groups, mean over the groups in which both vary: what GRPO would learn from."""
    best_changed: float = 0.0
    """Share of groups whose best answers under one reward hold none of the best under the other."""
    gained: int = 0
    """Answers that pass under the new reward only."""
    lost: int = 0
    """Answers that passed under the old reward only."""
    flips: list[CompletionFlip] = field(default_factory=list)
    """The widest, at most FLIPS_KEPT."""


def rescore(folder: Path, questions: ItemFile, rewards: Rewards, threshold: float) -> OrderAgreement:
    """Score the rollouts of one training again; an answer passes from `threshold` on.

    UserError without rollouts, and for rollouts of items that are not among the questions.
    """
    store = RolloutStore(folder)
    if not store.steps():
        raise UserError(f"there are no rollouts in {folder}; give a run, or one of its trainings, that has some")
    found, pairs, taus = OrderAgreement(), [], []
    changed = 0
    for rows, new in _scored(store, questions, rewards, found):
        old = np.array([np.nan if row["reward"] is None else row["reward"] for row in rows])
        known = ~np.isnan(old) & ~np.isnan(new)
        found.unscored += int((np.isnan(old) != np.isnan(new)).sum())
        rows = [row for row, use in zip(rows, known, strict=True) if use]
        old, new = old[known], new[known]
        _count_flips(found, rows, old, new, threshold)
        pairs.append((old, new))
        if len(old) > 1:
            found.groups += 1
            changed += not ((old == old.max()) & (new == new.max())).any()
            if np.ptp(old) > 0 and np.ptp(new) > 0:
                taus.append(float(kendalltau(old, new).statistic))
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    found.answers = len(before)
    found.rank_correlation = rank_correlation(before.tolist(), after.tolist())
    found.group_correlation = float(np.mean(taus)) if taus else None
    found.best_changed = changed / max(found.groups, 1)
    found.flips.sort(reverse=True)
    return found


def _scored(
    store: RolloutStore, questions: ItemFile, rewards: Rewards, found: OrderAgreement
) -> Iterator[tuple[list[RolloutRow], np.ndarray]]:
    """The rows of each group with their new rewards, NaN where there is none; failures are counted in `found`."""
    places = questions.rows_by_id()
    for step in store.steps():
        rows = store.read(steps=[step], columns=COLUMNS)
        items = {name: _item(questions, places, name, store) for name in {row["item"] for row in rows}}
        columns = reward_columns([items[row["item"]] for row in rows])
        prompts, texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
        result = rewards.breakdown(prompts, texts, judge_all=False, **columns)
        _count_failures(found, rows, result.failures)
        new = np.array([np.nan if value is None else value for value in result.rewards])
        start = 0
        for _, group in groupby(rows, key=lambda row: row["group"]):
            members = list(group)
            yield members, new[start : start + len(members)]
            start += len(members)


def _count_failures(found: OrderAgreement, rows: list[RolloutRow], failures: list[FailedCall]) -> None:
    for name, count in failure_counts(failures).items():
        found.failures[name] = found.failures.get(name, 0) + count
    if failures and found.first_failure is None:
        first, row = failures[0], rows[failures[0].sample]
        answer = f"answer {row['sample']} to {row['item']} of step {row['step']}"
        found.first_failure = f"{first.part} on {answer} ({first.reason}: {first.detail})"


def _item(questions: ItemFile, places: dict[str, int], item: str, store: RolloutStore) -> Item:
    if item not in places:
        raise UserError(f"{store.folder} has answers to {item}, which is not among the run's questions")
    return questions[places[item]]


def _count_flips(
    found: OrderAgreement, rows: list[RolloutRow], old: np.ndarray, new: np.ndarray, threshold: float
) -> None:
    """Add a group's flips; of all the widest are kept."""
    for row, before, after in zip(rows, old.tolist(), new.tolist(), strict=True):
        if (before >= threshold) == (after >= threshold):
            continue
        found.gained += after >= threshold
        found.lost += after < threshold
        named = {name: row[name] for name in ("step", "item", "group", "sample")}
        flip = CompletionFlip(
            abs(after - before), old=before, new=after, completion=row["completion"][:SNIPPET], **named
        )
        push = heapq.heappush if len(found.flips) < FLIPS_KEPT else heapq.heappushpop
        push(found.flips, flip)
