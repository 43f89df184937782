"""One rollout record for all: a prompt, the completions that were sampled of it, and what became of each.

An engine makes completions, scoring and the advantages of a group fill in the rest, and the same record goes to the
pool, the store and the learner. All of it is plain data that crosses processes. Behind it stand files that
trainings leave for reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from envs.spatial_qa.items import Item  # reports read records without the environments


@dataclass(frozen=True)
class Prompt:
    """What to continue."""

    tokens: Sequence[int]
    """Ids as the chat template writes them: one image token for an image. Rows of patches, as of an earlier turn's
    `Completion.prompt_tokens`, are accepted as well."""
    images: Sequence[np.ndarray] = ()
    """uint8 [H, W, 3] of any size, in the order of their tokens."""
    seed: int | None = None
    """Of the samples of this prompt: with it they depend on nothing else but prompt and weights."""


@dataclass(frozen=True)
class Sampling:
    """How to continue; the names are TRL's and vLLM's."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    num_generations: int = 1
    """Completions of each prompt."""
    ignore_eos: bool = False
    """Always `max_tokens` long; for measurements."""


@dataclass(frozen=True)
class TopScores:
    """What a model finds likely at the T tokens of a completion that it only reads."""

    tokens: np.ndarray
    """Its k most likely tokens at each place, the likeliest first, int32 [T, k]."""
    logprobs: np.ndarray
    """Their log-probabilities in the whole vocabulary at temperature 1, float32 [T, k]."""


@dataclass(frozen=True)
class Completion:
    """One sampled text and what became of it."""

    prompt_tokens: tuple[int, ...]
    """The prompt as the model read it, images as rows of patches and separators."""
    tokens: tuple[int, ...]
    """With the token that ended it, if one did."""
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from: after temperature and top_p, and without the tokens that
    stand for patches, which are never drawn."""
    weight_version: int
    """Of the weights that drew every token."""
    finished: bool
    """It ended by itself, not at `max_tokens`."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were not computed again."""
    text: str = ""
    """What was written, with the tags of thought and answer, without the end token."""
    token_texts: tuple[str, ...] = ()
    """Each token as text, for people who read along."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """By part; None: not applicable, or the call failed."""
    reward: float | None = None
    """Weighted sum; None: not scored, or a call failed and the completion is masked."""
    failures: tuple[str, ...] = ()
    """Failed reward calls as `PART/REASON`."""
    advantage: float = 0.0
    """0 for a masked completion and in a group without signal."""
    teacher: TopScores | None = None
    """What a teacher finds likely at its tokens; None: nobody was asked."""


@dataclass(frozen=True)
class RolloutGroup:
    """An item and the completions of its prompt, equally many in all groups of a batch."""

    item: Item
    prompt: Prompt
    completions: list[Completion]

    @property
    def size(self) -> int:
        """Number of completions."""
        return len(self.completions)

    @property
    def rewards(self) -> list[float]:
        """Of each completion, NaN where it has none."""
        return [math.nan if one.reward is None else one.reward for one in self.completions]


def all_completions(groups: Iterable[RolloutGroup]) -> list[Completion]:
    """Those of all groups, one group after the other."""
    return [completion for group in groups for completion in group.completions]


def group_rewards(groups: Sequence[RolloutGroup]) -> np.ndarray:
    """Rewards of P groups of G completions, float64 [P, G], NaN where a completion has none."""
    return np.array([group.rewards for group in groups])


def group_versions(groups: Sequence[RolloutGroup]) -> np.ndarray:
    """Weight version that wrote each group, int64 [P]."""
    return np.array([group.completions[0].weight_version for group in groups], np.int64)


def num_tokens(groups: Iterable[RolloutGroup]) -> int:
    """Tokens that were written."""
    return sum(len(completion.tokens) for completion in all_completions(groups))


def filled(groups: Sequence[RolloutGroup], **columns: Iterable[Any]) -> list[RolloutGroup]:
    """The groups with these fields of their completions, given for `all_completions` in order."""
    completions = all_completions(groups)
    rows = zip(completions, *columns.values(), strict=True)
    made = iter([replace(one, **dict(zip(columns, values, strict=True))) for one, *values in rows])
    return [replace(group, completions=list(islice(made, len(group.completions)))) for group in groups]


SOURCES_FILE = "sources.json"
"""In the output of a cold start: what each source gave to learn from and to measure on."""

EXAMS_FILE = "exams.jsonl"
"""Both skills over time: turn, version, batches of GRPO, steps of RPRO, scores of every question and episode."""

GUARD_FILE = "guard.jsonl"
"""What the guard found and did, a `GuardEvent` a line."""


Scores = tuple[float | None, ...]
"""Of each question or episode, in [0, 1]; None: it could not be scored."""


def known_mean(scores: Scores) -> float:
    """Mean of those that are known, NaN without any."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Exam:
    """A short examination of both skills while an arm trains."""

    turn: int
    scores: dict[str, Scores]
    """By skill."""
    version: int | None = None
    batches: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class GuardEvent:
    """What the guard found and did; see `rl_lab.training.guard`."""

    turn: int
    skill: str
    objective: str
    """The one blamed: the suspect, or the skill's own."""
    action: str
    """lower, freeze, stop, roll_back; none: nothing is done about it."""
    difference: float
    """Of the skill's mean score, to the examinations that it is held against."""
    bound: float
    """One-sided upper bound of the difference."""
    n: int
    """Questions, or episodes, of the difference."""
    since: int
    """Turn of the newest examination that it is held against."""
    given_back: float
    """Mean score that the skill gets back without the suspect's moves."""
    text: str
