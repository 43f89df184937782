"""Results on held-out questions: rewards of every scheme, and paired differences to what they are held against.

Intervals are those of `stats`. Differences are taken item by item, and between schemes also replicate by
replicate (same training seed), before anything is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from rl_lab.reports.examinations import Examination, ItemResult, reward_table
from rl_lab.reports.rundir import BASE, RunFolder
from rl_lab.reports.verdict import OVERALL, Row
from rl_lab.stats import Array, mean_interval

BLANK, CONSTANT = "blank", "constant"
"""Names of what a model is held against besides other models: itself with grey pictures, and the best fixed answer."""
THRESHOLD = 0.5
"""Reward from which on an answer counts as a pass, unless the config sets examine.pass_threshold."""


def pass_threshold(run: RunFolder) -> float:
    """Reward from which on an answer counts as a pass."""
    return (run.config.get("examine") or {}).get("pass_threshold", THRESHOLD)


def num_samples(run: RunFolder) -> int:
    """Answers that were sampled for an item: the k of pass@k."""
    return max((len(item.rewards) for e in run.examinations for item in e.items), default=0)


def of_scheme(run: RunFolder, scheme: str) -> list[Examination]:
    """Its examinations, one a replicate."""
    return [examination for examination in run.examinations if examination.scheme == scheme]


def scoped_items(run: RunFolder) -> dict[str, list[str]]:
    """Ids of the items of each scope: overall and each category."""
    categories = {item.item: item.category for examination in run.examinations for item in examination.items}
    scopes = {OVERALL: list(categories)}
    for item, category in categories.items():
        scopes.setdefault(category, []).append(item)
    return scopes


def interval_row(rewards: Array) -> Row | None:
    """n items, R replicates, value, low and high of a mean; replicates without any value are left out, None if all."""
    rewards = rewards[:, ~np.isnan(rewards).all(0)]
    if not rewards.size:
        return None
    n = int((~np.isnan(rewards)).any(1).sum())
    return {"n": n, "replicates": rewards.shape[1], **asdict(mean_interval(rewards))}


def _score(run: RunFolder, scheme: str, items: Sequence[str]) -> Row:
    """Reward, pass@1, pass@k, and the reward with grey pictures and of constant answers."""
    examinations, wanted = of_scheme(run, scheme), set(items)
    k, threshold = num_samples(run), pass_threshold(run)
    results = [item for examination in examinations for item in examination.items if item.item in wanted]
    values: dict[str, Callable[[ItemResult], float]] = {
        "reward": lambda item: item.reward,
        "pass@1": lambda item: item.passed(1, threshold),
        f"pass@{k}": lambda item: item.passed(k, threshold),
        BLANK: lambda item: item.blank_reward,
        CONSTANT: lambda item: item.constant,
    }
    counts = {"failed_calls": sum(item.failed for item in results), "unscored": sum(map(_unscored, results))}
    return counts | {name: interval_row(reward_table(examinations, items, value)) for name, value in values.items()}


def _unscored(item: ItemResult) -> bool:
    """Whether no answer to an item could be scored."""
    return bool(np.isnan(item.reward))


def policies(run: RunFolder) -> list[Row]:
    """The base and every scheme, overall and by category."""
    return [
        {"scheme": scheme, "scope": scope, **_score(run, scheme, items)}
        for scope, items in scoped_items(run).items()
        for scheme in (BASE, *run.schemes)
        if of_scheme(run, scheme)
    ]


def _rewards(examinations: Sequence[Examination], items: Sequence[str]) -> Array:
    return reward_table(examinations, items, lambda item: item.reward)


def _over_itself(run: RunFolder, scheme: str, items: Sequence[str]) -> dict[str, Array]:
    """Reward minus that with grey pictures, and minus that of constant answers, [n, R]."""
    own = of_scheme(run, scheme)
    return {
        BLANK: reward_table(own, items, lambda item: item.reward - item.blank_reward),
        CONSTANT: reward_table(own, items, lambda item: item.reward - item.constant),
    }


def _over_others(run: RunFolder, scheme: str, items: Sequence[str]) -> dict[str, Array]:
    """Reward minus that of the base, and of every other scheme in the same replicate, [n, R]."""
    own, found = of_scheme(run, scheme), {}
    for other in (BASE, *run.schemes):
        theirs = of_scheme(run, other)
        if other == scheme or not theirs or not own:
            continue
        if BASE in (scheme, other):
            found[other] = _rewards(own, items) - _rewards(theirs, items)
            continue
        shared = sorted({e.replicate for e in own} & {e.replicate for e in theirs})
        sides = [[e for r in shared for e in side if e.replicate == r] for side in (own, theirs)]
        found[other] = _rewards(sides[0], items) - _rewards(sides[1], items)
    return found


def differences(run: RunFolder) -> list[Row]:
    """Every scheme over the base, over grey pictures, over constant answers and over every other scheme."""
    rows = []
    for scope, items in scoped_items(run).items():
        for scheme in (BASE, *run.schemes):
            others = _over_others(run, scheme, items) if scheme != BASE else {}
            for over, rewards in (_over_itself(run, scheme, items) | others).items():
                row = interval_row(rewards)
                if row is not None:
                    rows.append({"scheme": scheme, "scope": scope, "over": over, **row})
    return rows
