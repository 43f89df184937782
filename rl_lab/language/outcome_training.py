"""Training of one member of an outcome reward model: a head and a checkpoint on labelled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from algos.outcome import AnswerPairs, BradleyTerry, Correctness, LabelledAnswers, OutcomeHead
from algos.token_batch import TokenBatch
from rl_lab.config.outcome import OutcomeConfig
from rl_lab.errors import UserError
from rl_lab.language.item_files import ItemFile
from rl_lab.language.model import LanguageModel, load_language_model, question_prompt
from rl_lab.language.outcome_labels import OutcomeLabels, answer_pairs
from rl_lab.language.token_batching import answer_batch
from rl_lab.language.training import GROUPS, epoch_order
from rl_lab.learning.ranks import is_first_rank
from rl_lab.learning.training import DataPlan, Parts, trainable
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import is_sharded, whole
from rl_lab.seeding import integer, torch_stream

HEAD_FILE = "head.safetensors"


def scoring_batch(
    questions: Sequence[tuple[str, Sequence[np.ndarray]]],
    rows: Sequence[tuple[int, str]],
    processor: HunYuanVLMoTProcessor,
) -> TokenBatch:
    """Answers as a head reads them: a row is the place of its question (text, pictures) and the answer's text.

    Each ends with the end token, the one token to learn, whether or not the answer was cut off.
    """
    prompts = [question_prompt(text, tuple(images), processor) for text, images in questions]
    tokenizer: Any = processor.tokenizer
    encoded = [
        (place, [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]) for place, text in rows
    ]
    batch = answer_batch(prompts, encoded, processor)
    ends = batch.attention_mask.sum(1) - 1
    return replace(batch, completion_mask=torch.arange(batch.input_ids.shape[1]) == ends[:, None])


def hidden_size(found: LanguageModel) -> int:
    """Size of the residual stream."""
    backbone = found.model.model.vlm if isinstance(found.model, HyVLAPolicy) else found.model.model
    return int(backbone.language_model.lm_head.weight.shape[1])


@dataclass
class OutcomeData:
    """Batches of labelled answers, or of pairs; see `rl_lab.action.datasets.Dataset`."""

    rows: OutcomeLabels
    items: ItemFile
    units: list[tuple[int, ...]]
    """Places of answers: one, or the better and the worse of a pair."""
    order: list[list[int]]
    processor: HunYuanVLMoTProcessor
    threshold: float

    def batch(self, step: int) -> LabelledAnswers | AnswerPairs:
        """See `rl_lab.action.datasets.Dataset`."""
        return self.batch_of(self.order[step])

    def batch_of(self, numbers: list[int]) -> LabelledAnswers | AnswerPairs:
        """These answers, or pairs."""
        units = [self.units[number] for number in numbers]
        sides = [self._tokens([unit[side] for unit in units]) for side in range(len(units[0]))]
        if len(sides) == 2:
            return AnswerPairs(chosen=sides[0], rejected=sides[1])
        truth = self.rows.truth[[place for (place,) in units]]
        return LabelledAnswers(answers=sides[0], correct=torch.from_numpy((truth >= self.threshold).astype(np.float32)))

    def both_sides(self, numbers: list[int]) -> TokenBatch:
        """The better answers of these pairs, then the worse ones, as one batch."""
        units = [self.units[number] for number in numbers]
        return self._tokens([unit[side] for side in (0, 1) for unit in units])

    def _tokens(self, places: list[int]) -> TokenBatch:
        asked = [int(self.rows.row[place]) for place in places]
        shown = list(dict.fromkeys(asked))
        questions = [(item.prompt, item.images) for item in map(self.items.__getitem__, shown)]
        texts = [(shown.index(row), self.rows.completion[place]) for row, place in zip(asked, places, strict=True)]
        return scoring_batch(questions, texts, self.processor)


def training_rows(
    answers: OutcomeLabels, settings: OutcomeConfig, seed: int
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Places of the answers to learn from, one, or the better and the worse of a pair; and the units of each step.

    UserError without anything to learn from.
    """
    correct = int((answers.truth >= settings.threshold).sum())
    if settings.learns == "preference":
        units: list[tuple[int, ...]] = [*answer_pairs(answers, settings.margin, settings.pairs, seed)]
    else:
        units = [(place,) for place in range(len(answers))] if 0 < correct < len(answers) else []
    if not units:
        raise UserError(
            f"outcome: of {len(answers)} answers {correct} are correct, so there is nothing to tell apart; lower "
            "outcome.threshold or outcome.margin, or sample other questions"
        )
    return units, epoch_order(len(units), settings.steps, settings.batch_size, integer(seed, "outcome"))


@dataclass(frozen=True)
class OutcomePlan(DataPlan):
    """One member, from a checkpoint and the labels of `outcome_labels`."""

    policy: Path
    settings: OutcomeConfig
    labels: Path
    items: Path
    seed: int
    """The member's own: its head and the order of its rows follow from it."""

    name = "outcome"

    def data(self, processor: HunYuanVLMoTProcessor) -> OutcomeData:
        """The batches of every step. UserError without anything to learn from."""
        answers = OutcomeLabels.load(self.labels).of("train")
        units, order = training_rows(answers, self.settings, self.seed)
        return OutcomeData(answers, ItemFile(self.items), units, order, processor, self.settings.threshold)

    def start(self) -> tuple[LanguageModel, OutcomeHead]:
        """The checkpoint, and a head of the member's own."""
        found = load_language_model(self.policy)
        head = OutcomeHead(hidden_size(found))
        with torch.no_grad():
            head.linear.weight.normal_(0.0, 0.02, generator=torch_stream(self.seed, "outcome", "head"))
            head.linear.bias.zero_()
        return found, head

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        start, head = self.start()
        data = self.data(start.processor)
        start.model.to(device)  # type: ignore[arg-type]
        head.to(device)
        trained = trainable(start.model, self.settings, GROUPS, integer(self.seed, "lora"))
        objective = (BradleyTerry if self.settings.learns == "preference" else Correctness)(head, groups=GROUPS)
        return Parts(trained, objective, data, lambda folder: save_member(folder, start, head, self.settings.steps))


def save_member(folder: Path, found: LanguageModel, head: OutcomeHead, steps: int) -> None:
    """Write a member: the checkpoint's files and its head."""
    weights = {name: value.detach().cpu().contiguous() for name, value in _whole_head(head).items()}
    version = found.info.weight_version + 1
    found.save(folder, replace(found.info, weight_version=version, steps=found.info.steps + steps))
    if is_first_rank():
        save_file(weights, folder / HEAD_FILE)


def _whole_head(head: OutcomeHead) -> dict[str, Any]:
    return whole(dict(head.state_dict())) if is_sharded(head) else dict(head.state_dict())
