"""Outcome reward models with TRL's `RewardTrainer`: the Bradley-Terry loss on pairs of answers.

TRL's own collator reads text alone, which is all that a sequence classifier needs. For a head on the lab's model, which
sees pictures, both backends read the same batch: better answers first, worse ones behind.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from trl import RewardConfig, RewardTrainer

from algos.batch import TokenBatch
from algos.outcome import OutcomeHead, outcome_scores
from rl_lab.model.checkpoint import LanguageModel
from rl_lab.rollouts.reward_model import TextClassifier
from rl_lab.trl_backend.trainer import Log, Settings, check_vlm, common_arguments, optimizers, train

NAMES = {"outcome/accuracy": "accuracy", "outcome/margin": "margin"}
CLASSIFIER = "classifier"
"""The one parameter group of a sequence classifier."""
Batches = Callable[[list[int]], TokenBatch]
"""The answers of pairs by the pairs' numbers: the better ones, then the worse ones."""


class SequenceClassifier(nn.Module):
    """A model and its head as `RewardTrainer` calls them."""

    def __init__(self, start: LanguageModel, head: OutcomeHead) -> None:
        super().__init__()
        self.language, self.head = start.model, head
        self.config = copy.deepcopy(start.model.config)
        self.config.num_labels = 1

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the model, and the head."""
        return self.language.parameter_groups() | {"head": list(self.head.parameters())}

    def add_model_tags(self, tags: Any) -> None:
        """For a model card on a hub, where this model does not go."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """As the model."""
        self.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def forward(self, answers: TokenBatch, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        """Scores as `logits` [B, 1]."""
        model: Any = self.language
        return SimpleNamespace(logits=outcome_scores(model, self.head, answers)[:, None])


def train_outcome(
    start: LanguageModel,
    head: OutcomeHead,
    batches: Batches,
    order: Sequence[Sequence[int]],
    settings: Settings,
    log: Log,
) -> None:
    """Train a VLM and its head, in place, on the pairs of `order`, equally many a step.

    UserError for a policy; RuntimeError for a loss that is not finite.
    """
    check_vlm(start)
    model = SequenceClassifier(start, head)
    rows = [row for step in order for row in step]
    tokenised = {"pair": rows, "chosen_ids": [[0]] * len(rows), "rejected_ids": [[0]] * len(rows)}

    def collate(pairs: list[dict[str, Any]]) -> dict[str, Any]:
        answers = batches([row["pair"] for row in pairs])
        return {"attention_mask": answers.attention_mask, "answers": answers}

    given = {"data_collator": collate, "optimizers": optimizers(model, model.parameter_groups(), settings)}
    _train(model, start.processor.tokenizer, tokenised, order, settings, log, **given)


def train_classifier(
    classifier: TextClassifier,
    pairs: Sequence[tuple[list[int], list[int]]],
    order: Sequence[Sequence[int]],
    settings: Settings,
    log: Log,
) -> None:
    """Train all of a sequence classifier, in place, on the pairs of `order`: token ids of the better and worse answers.

    RuntimeError for a loss that is not finite.
    """
    model, rows = classifier.model, [pairs[row] for step in order for row in step]
    tokenised = {"chosen_ids": [better for better, _ in rows], "rejected_ids": [worse for _, worse in rows]}
    given = {"optimizers": optimizers(model, {CLASSIFIER: list(model.parameters())}, settings)}
    _train(model, classifier.tokenizer, tokenised, order, settings, log, **given)
    model.eval()


def _train(
    model: Any,
    tokenizer: Any,
    tokenised: dict[str, Any],
    order: Sequence[Sequence[int]],
    settings: Settings,
    log: Log,
    **given: Any,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model,
            args=RewardConfig(
                scratch,
                max_length=None,
                disable_dropout=False,
                train_sampling_strategy="sequential",
                **common_arguments(settings, len(order), len(order[0])),
            ),
            train_dataset=Dataset.from_dict(tokenised),
            processing_class=tokenizer,
            **given,
        )
        train(trainer, log, NAMES)
