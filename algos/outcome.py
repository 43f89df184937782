"""Outcome reward models: one number r(x, y) for a question x and a whole answer y, a linear head on a language policy.

correctness: L = -1/B sum [c log s(r) + (1 - c) log s(-r)], c = 1 for a correct answer (Cobbe et al., arXiv:2110.14168)
preference:  L = -1/B sum log s(r_w - r_l), as TRL's RewardTrainer (Bradley and Terry 1952; Ouyang, arXiv:2203.02155)

s is the sigmoid. The head reads the residual stream from which the end of the answer would be predicted, so every row
of a batch has exactly one token to learn: the one behind the answer. Letters: B rows or pairs, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algos.batch import TensorRecord, TokenBatch
from algos.objective import ComparablePolicy

EPSILON = 1e-6


class OutcomeHead(nn.Module):
    """RMSNorm and a linear map to one number, in float32: features [B, D] -> [B]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=EPSILON)
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Scores, which are logits of correctness: [B, D] -> [B]."""
        return self.linear(self.norm(features.float()))[:, 0]


def outcome_scores(policy: ComparablePolicy, head: OutcomeHead, answers: TokenBatch) -> Tensor:
    """Scores of answers, float32 [B]. ValueError unless every row has exactly one token to learn."""
    if not bool((answers.completion_mask.sum(1) == 1).all()):
        raise ValueError("an answer is scored at one token, the one behind it; mark no other in completion_mask")
    return head(policy.next_tokens(answers).features)


@dataclass(kw_only=True)
class LabelledAnswers(TensorRecord):
    """Answers and whether they are correct."""

    answers: TokenBatch
    correct: Tensor
    """1 or 0, float [B]."""

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def visual(self) -> Any:
        """Pictures of the rows; None for text alone."""
        return self.answers.visual


@dataclass(kw_only=True)
class AnswerPairs(TensorRecord):
    """Two answers to the same question in each row."""

    chosen: TokenBatch
    rejected: TokenBatch

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def visual(self) -> Any:
        """Pictures of the rows; None for text alone."""
        return self.chosen.visual


class _OfHead:
    """What both objectives train."""

    def __init__(self, head: OutcomeHead, *, groups: tuple[str, ...] = ("vision", "vlm")) -> None:
        self.head, self.groups = head, groups

    def parameters(self) -> Iterable[nn.Parameter]:
        """The head."""
        return self.head.parameters()


class Correctness(_OfHead):
    """The objective on `LabelledAnswers`."""

    def loss(
        self, policy: Any, batch: LabelledAnswers, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics; see `Objective.loss`. Uses no randomness."""
        scores = outcome_scores(policy, self.head, batch.answers)
        correct = batch.correct.to(scores)
        summed = F.binary_cross_entropy_with_logits(scores, correct, reduction="sum")
        agrees = ((scores > 0) == (correct > 0.5)).float().mean()
        return summed / (denominator or len(batch)), {"outcome/accuracy": agrees, "outcome/correct": correct.mean()}


class BradleyTerry(_OfHead):
    """The objective on `AnswerPairs`."""

    def loss(
        self, policy: Any, batch: AnswerPairs, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics; see `Objective.loss`. Uses no randomness."""
        chosen, rejected = (outcome_scores(policy, self.head, side) for side in (batch.chosen, batch.rejected))
        margin = chosen - rejected
        metrics = {"outcome/accuracy": (margin > 0).float().mean(), "outcome/margin": margin.detach().mean()}
        return -F.logsigmoid(margin).sum() / (denominator or len(batch)), metrics
