"""Groups of answers on their way from the engines to the learner and to the store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from envs.spatial_qa.items import Item
from rl_lab.language.answering import Answers, Scored, plain
from rl_lab.language.model import token_texts
from rl_lab.language.rollout_store import Rollout
from rl_lab.language.training import Groups
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.types import Completion, Prompt


@dataclass(frozen=True)
class Answered:
    """P items of the pool with G answers each, and what those were worth."""

    numbers: np.ndarray
    """Item numbers, int64 [P]."""
    items: list[Item]
    prompts: list[Prompt]
    answers: Answers
    texts: list[list[str]]
    scored: Scored

    @property
    def versions(self) -> np.ndarray:
        """Weight version that wrote each group, int64 [P]."""
        return np.array([row[0].weight_version for row in self.answers], np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens that were written."""
        return sum(len(answer.tokens) for row in self.answers for answer in row)

    def select(self, kept: Iterable[int]) -> Answered:
        """The groups at these places."""
        places = list(kept)

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[place] for place in places]

        kept_scores = pick(self.scored.parts), pick(self.scored.failures), self.scored.examples
        scored = Scored(self.scored.rewards[places], *kept_scores)
        return Answered(
            self.numbers[places],
            pick(self.items),
            pick(self.prompts),
            pick(self.answers),
            pick(self.texts),
            scored,
        )

    def groups(self, advantages: torch.Tensor) -> Groups:
        """What the learner gets, with advantages float [P, G]."""
        scored = ~torch.from_numpy(self.scored.rewards).isnan()
        return Groups(self.prompts, self.answers, advantages.float(), scored)

    def rollouts(self, advantages: torch.Tensor, processor: HunYuanVLMoTProcessor) -> list[Rollout]:
        """What the store keeps, an entry for each answer."""
        return [
            Rollout(
                item=item.id,
                group=group,
                sample=sample,
                prompt=item.prompt,
                prompt_tokens=answer.prompt_tokens,
                completion=self.texts[group][sample],
                tokens=answer.tokens,
                token_texts=token_texts(answer, processor),
                logprobs=answer.logprobs,
                weight_version=answer.weight_version,
                finished=answer.finished,
                rewards=self.scored.parts[group][sample],
                reward=plain([self.scored.rewards[group, sample]])[0],
                advantage=float(advantages[group, sample]),
            )
            for group, item in enumerate(self.items)
            for sample, answer in enumerate(self.answers[group])
        ]

    def columns(self) -> dict[str, list[Any]]:
        """What the store keeps besides: `failures` of the reward calls of each answer, as `PART/REASON`."""
        return {"failures": [names for row in self.scored.failures for names in row]}


def merged(rounds: Sequence[Answered]) -> Answered:
    """All groups of several rounds, in order."""

    def joined(name: str) -> list[Any]:
        return [value for part in rounds for value in getattr(part, name)]

    scored = Scored(
        np.concatenate([part.scored.rewards for part in rounds]),
        [row for part in rounds for row in part.scored.parts],
        [row for part in rounds for row in part.scored.failures],
        {name: words for part in reversed(rounds) for name, words in part.scored.examples.items()},
    )
    numbers = np.concatenate([part.numbers for part in rounds])
    return Answered(numbers, joined("items"), joined("prompts"), joined("answers"), joined("texts"), scored)


def stored_answers(rows: Sequence[dict[str, Any]]) -> tuple[Answers, list[list[str]], Scored]:
    """Answers, texts and rewards of the store's rows of whole groups, as they were when they were stored."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    ordered = [sorted(groups[group], key=lambda row: row["sample"]) for group in sorted(groups)]
    rewards = [[math.nan if row["reward"] is None else row["reward"] for row in group] for group in ordered]
    answers = [
        [
            Completion(
                prompt_tokens=tuple(row["prompt_tokens"]),
                tokens=tuple(row["tokens"]),
                logprobs=tuple(row["logprobs"]),
                weight_version=row["weight_version"],
                finished=row["finished"],
                num_cached_tokens=0,
            )
            for row in group
        ]
        for group in ordered
    ]
    texts = [[row["completion"] for row in group] for group in ordered]
    parts = [[row["rewards"] for row in group] for group in ordered]
    failures = [[row["failures"] for row in group] for group in ordered]
    return answers, texts, Scored(np.array(rewards), parts, failures)
