"""Rollouts as a store has them: rows of plain values, and the groups that are written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import isnan, nan
from pathlib import Path
from typing import Any

from torch import Tensor, where

from envs.spatial_qa.items import Item
from rl_lab.records.rollouts import RolloutRow, kept_batches
from rl_lab.records.types import Completion, Prompt, RolloutGroup, filled

OF_ITEMS = ("item", "prompt", "group", "sample", "completion")
ROLLOUT = {
    "prompt_tokens": (1,),
    "tokens": (2,),
    "logprobs": (-0.1,),
    "token_texts": ("x",),
    "weight_version": 1,
    "finished": True,
}
"""What most tests do not ask about."""


def groups_of(rows: Iterable[Mapping[str, Any]]) -> list[RolloutGroup]:
    """Groups of the rows of an item that stand together; a row has the store's columns that differ from `ROLLOUT`."""
    return [_group([ROLLOUT | dict(row) for row in some]) for _, some in groupby(rows, lambda row: row["item"])]


def learned_groups(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    advantages: Tensor,
    scored: Tensor | None = None,
) -> list[RolloutGroup]:
    """P prompts with G completions each, their advantages [P, G] and whether each has a reward, all by default."""
    rewards = [[0.0] * len(row) for row in completions] if scored is None else where(scored, 0.0, nan).tolist()
    groups = [RolloutGroup(_item(), *one) for one in zip(prompts, map(list, completions), strict=True)]
    known = [None if isnan(reward) else reward for row in rewards for reward in row]
    return filled(groups, advantage=advantages.flatten().tolist(), reward=known)


def answered(items: Iterable[Item], texts: Sequence[str]) -> list[RolloutGroup]:
    """The same texts as answers to each item."""
    completions = [Completion((1,), (2,), (-0.1,), 1, finished=True, text=text) for text in texts]
    return [RolloutGroup(item, Prompt(()), completions) for item in items]


def advantages_of(groups: Iterable[RolloutGroup]) -> list[list[float]]:
    """Of each completion."""
    return [[one.advantage for one in group.completions] for group in groups]


def _item(name: str = "item", prompt: str = "") -> Item:
    return Item(name, "perception", "test", "choice", 0, "test:0", {}, prompt, (), "A", "")


def _group(rows: list[dict[str, Any]]) -> RolloutGroup:
    first = rows[0]
    completions = [
        Completion(text=row["completion"], **{name: row[name] for name in row if name not in OF_ITEMS}) for row in rows
    ]
    return RolloutGroup(_item(first["item"], first["prompt"]), Prompt(()), completions)


def read_kept(run: Path) -> Iterator[RolloutRow]:
    """The kept traces of a finished selection, one after the other, as dictionaries."""
    for batch in kept_batches(run):
        yield from batch.to_pylist()
