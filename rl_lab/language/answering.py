"""Questions to engines, answers back, rewards for them: what examinations and reinforcement learning share."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import ray

from envs.spatial_qa.items import Item
from rewards.agreement import agreement
from rewards.compose import Breakdown, Rewards
from rl_lab.language.reward_models import reward_columns
from rl_lab.records.types import Completion, Prompt, Sampling
from rl_lab.workers.pool import Batch, WorkerPool
from rl_lab.workers.rollout_worker import RolloutUnit

Answers = list[list[Completion]]
"""Completions of each prompt."""


def ask(
    engines: WorkerPool, prompts: Sequence[Prompt], sampling: Sampling, weights: ray.ObjectRef, per_call: int
) -> Batch:
    """Give prompts to the engines, `per_call` at once; `weights` is a published `Snapshot` in Ray's object store.

    Which prompts are computed together decides the last bits of their log-probabilities, so `per_call` is part of the
    result, unlike the number of engines.
    """
    units = [
        RolloutUnit(tuple(prompts[start : start + per_call]), sampling) for start in range(0, len(prompts), per_call)
    ]
    return engines.submit(lambda actor, unit: actor.generate.remote(unit, weights), units)


def collect(engines: WorkerPool, batch: Batch, check_stop: Callable[[], None]) -> tuple[Answers, float]:
    """Wait for the answers to prompts that were given to the engines; and the seconds that engines were busy with them.

    Errors as `WorkerPool.results`.
    """
    parts = list(engines.results(batch, check_stop))
    return [row for part in parts for row in part.completions], sum(part.busy_s for part in parts)


@dataclass(frozen=True)
class Scored:
    """Rewards of P questions with G answers each."""

    rewards: np.ndarray
    """float64 [P, G]; NaN where a reward call failed."""
    parts: list[list[dict[str, float | None]]]
    """[P][G] rewards by part."""
    failures: list[list[list[str]]]
    """[P][G] failed reward calls as `PART/REASON`, [] where none failed."""
    examples: Mapping[str, str] = field(default_factory=dict)
    """By `PART/REASON` the first such call in words, with the answer on which it failed."""

    @property
    def all_failed(self) -> bool:
        """Whether no answer has a reward, each because a call failed."""
        nothing = self.rewards.size > 0 and bool(np.isnan(self.rewards).all())
        return nothing and all(names for row in self.failures for names in row)

    @property
    def metrics(self) -> dict[str, float]:
        """`reward_failures/PART/REASON`: counts; `reward_masked`: share of answers without a reward for that reason."""
        flat = [names for row in self.failures for names in row]
        counts = Counter(name for names in flat for name in names)
        masked = [bool(names) and math.isnan(reward) for names, reward in zip(flat, self.rewards.flat, strict=True)]
        failed = {f"reward_failures/{name}": float(count) for name, count in counts.items()}
        return failed | {"reward_masked": sum(masked) / max(len(masked), 1)}


def score(
    rewards: Rewards, items: Sequence[Item], texts: Sequence[Sequence[str]], *, judge_all: bool = False
) -> Scored:
    """Score equally many answers of each item; with `judge_all` the judge says what it thinks of every one.

    ValueError as `Rewards.breakdown`.
    """
    flat = [(item, text) for item, row in zip(items, texts, strict=True) for text in row]
    prompts, answers = [item.prompt for item, _ in flat], [text for _, text in flat]
    result = rewards.breakdown(prompts, answers, judge_all=judge_all, **reward_columns([item for item, _ in flat]))
    return scored_groups(result, items)


def scored_groups(result: Breakdown, items: Sequence[Item]) -> Scored:
    """Rewards of the answers to these items, those of an item one after the other."""
    values = np.array([math.nan if reward is None else reward for reward in result.rewards])
    parts = [{name: column[i] for name, column in result.parts.items()} for i in range(len(values))]
    failures: list[list[str]] = [[] for _ in parts]
    examples: dict[str, str] = {}
    size = len(parts) // len(items)
    for failure in result.failures:
        name = f"{failure.part}/{failure.reason}"
        failures[failure.sample].append(name)
        answer = f"answer {failure.sample % size} to {items[failure.sample // size].id}"
        examples.setdefault(name, f"{failure.part} on {answer} ({failure.reason}: {failure.detail})")
    starts = range(0, len(parts), size)
    return Scored(
        values.reshape(len(items), size),
        [parts[start : start + size] for start in starts],
        [failures[start : start + size] for start in starts],
        examples,
    )


def judge_agreement(scored: Sequence[Scored]) -> dict[str, float]:
    """`judge/agreement`, `judge/kappa` and `judge/items` of judge and verifier; empty where no answer has both."""
    parts = [part for some in scored for row in some.parts for part in row]
    found = agreement([part["judge"] for part in parts], [part["verifier"] for part in parts])
    values = {"judge/agreement": found.rate, "judge/kappa": found.kappa}
    known = {name: value for name, value in values.items() if value is not None}
    return known | {"judge/items": float(found.n)} if found.n else {}


def reward_means(items: Sequence[Item], scored: Scored) -> dict[str, float]:
    """`reward/mean`, `reward/PART`, `reward_category/..`, `reward_type/..`: means over the answers with a reward."""
    found: dict[str, list[float]] = defaultdict(list)
    for item, values, parts in zip(items, scored.rewards.tolist(), scored.parts, strict=True):
        for name in ("reward/mean", f"reward_category/{item.category}", f"reward_type/{item.reward_type}"):
            found[name] += values
        for part in parts:
            for name, value in part.items():
                found[f"reward/{name}"].append(math.nan if value is None else value)
    return means(found.items())


def means(columns: Iterable[tuple[str, Sequence[float]]]) -> dict[str, float]:
    """Means of the numbers of each column that are numbers; columns without any are left out."""
    known = {name: [value for value in values if not math.isnan(value)] for name, values in columns}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def plain(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, None for NaN."""
    return [None if math.isnan(value) else value for value in values]
