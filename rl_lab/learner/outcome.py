"""Training of one member of an outcome reward model: a head and a checkpoint on labelled answers.

Answers are labelled from the rollout stores of a run, and split by scene, so that no picture of the training shows up
in the examination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from algos.batch import TokenBatch
from algos.outcome import AnswerPairs, BradleyTerry, Correctness, LabelledAnswers, OutcomeHead
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file
from rl_lab.common.seeding import integer, stream, torch_stream
from rl_lab.config.language import OutcomeConfig
from rl_lab.learner.language import GROUPS, epoch_order
from rl_lab.learner.plans import DataPlan, Parts, trainable
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import LanguageModel, load_language_model
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import is_first_rank, is_sharded, whole
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import imitation_batch, question_prompt

LABELS_FILE = "labels.parquet"

TRUTH = "answer"
"""The part of a stored reward that is the truth, whatever the run trained on."""

SPLITS = ("train", "calibration", "test")

COLUMNS = ("item", "completion", "rewards")


@dataclass(frozen=True)
class LabelledCompletions:
    """N answers with their true rewards."""

    row: np.ndarray
    """Of the question in its file, int64 [N]."""
    completion: list[str]
    truth: np.ndarray
    """float64 [N] in 0..1."""
    split: np.ndarray
    """Index of SPLITS, int64 [N]."""

    def __len__(self) -> int:
        return len(self.completion)

    def of(self, split: str) -> LabelledCompletions:
        """Those of a split."""
        return self.take(np.flatnonzero(self.split == SPLITS.index(split)))

    def take(self, places: np.ndarray) -> LabelledCompletions:
        """Those at these places."""
        texts = [self.completion[place] for place in places.tolist()]
        return LabelledCompletions(self.row[places], texts, self.truth[places], self.split[places])

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        columns = {"row": self.row, "completion": self.completion, "truth": self.truth, "split": self.split}
        write_file(path, lambda file: pq.write_table(pa.table(columns), file))

    @classmethod
    def load(cls, path: Path) -> LabelledCompletions:
        """What `save` wrote."""
        table = pq.read_table(path, use_threads=False)
        row, truth, split = (table[name].to_numpy() for name in ("row", "truth", "split"))
        return cls(row, table["completion"].to_pylist(), truth, split)


def scene_splits(scenes: Sequence[str], shares: tuple[float, float], seed: int) -> dict[str, int]:
    """Index of SPLITS of every scene: `shares` to calibration and test, the rest to training.

    ValueError for fewer than three scenes.
    """
    names = sorted(set(scenes))
    if len(names) < 3:
        raise ValueError(f"there are {len(names)} scenes; training, calibration and test need one each")
    order = stream(seed, "outcome", "splits").permutation(len(names)).tolist()
    sizes = [max(1, round(share * len(names))) for share in shares]
    held = [1] * sizes[0] + [2] * sizes[1]
    return {names[place]: held[k] if k < len(held) else 0 for k, place in enumerate(order)}


def label_answers(
    folders: Sequence[Path], items: ItemFile, shares: tuple[float, float], seed: int
) -> tuple[LabelledCompletions, int]:
    """All answers of the stores with their true rewards, and how many have none (a judge or verifier failed).

    UserError without answers, for one to an unknown question, and where scenes are too few to split.
    """
    places = items.rows_by_id()
    rows, texts, truths, unknown = [], [], [], 0
    for row in _stored(folders):
        if row["item"] not in places:
            raise UserError(f"there is an answer to {row['item']}, which is not among the run's questions")
        truth = row["rewards"].get(TRUTH)
        unknown += truth is None
        if truth is not None:
            rows.append(places[row["item"]])
            texts.append(row["completion"])
            truths.append(truth)
    if not rows:
        raise UserError("there are no stored answers with a true reward; give a run that sampled some")
    scenes = {row: items.record(row)["scene"] for row in set(rows)}
    try:
        splits = scene_splits(list(scenes.values()), shares, seed)
    except ValueError as error:
        raise UserError(f"outcome: {error}") from error
    split = np.array([splits[scenes[row]] for row in rows])
    return LabelledCompletions(np.array(rows), texts, np.array(truths), split), unknown


def _stored(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        store = RolloutStore(folder)
        for step in store.steps():
            yield from store.read(steps=[step], columns=COLUMNS)


def answer_pairs(answers: LabelledCompletions, margin: float, most: int, seed: int) -> list[tuple[int, int]]:
    """Places (better, worse) of answers to the same question whose true rewards differ by `margin` or more.

    At most `most` a question, drawn without replacement; equal texts make no pair.
    """
    pairs: list[tuple[int, int]] = []
    for row in np.unique(answers.row).tolist():
        members = np.flatnonzero(answers.row == row).tolist()
        found = [
            (a, b)
            for a in members
            for b in members
            if answers.truth[a] - answers.truth[b] >= max(margin, 1e-9)
            and answers.completion[a] != answers.completion[b]
        ]
        if len(found) > most:
            chosen = stream(seed, "outcome", "pairs", row).choice(len(found), most, replace=False)
            found = [found[place] for place in sorted(chosen.tolist())]
        pairs += found
    return pairs


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
    batch = imitation_batch(prompts, encoded, processor)
    ends = batch.attention_mask.sum(1) - 1
    return replace(batch, completion_mask=torch.arange(batch.input_ids.shape[1]) == ends[:, None])


def hidden_size(found: LanguageModel) -> int:
    """Size of the residual stream."""
    backbone = found.model.model.vlm if isinstance(found.model, HyVLAPolicy) else found.model.model
    return int(backbone.language_model.lm_head.weight.shape[1])


@dataclass
class OutcomeData:
    """Batches of labelled answers, or of pairs; see `rl_lab.records.action_datasets.Dataset`."""

    rows: LabelledCompletions
    items: ItemFile
    units: list[tuple[int, ...]]
    """Places of answers: one, or the better and the worse of a pair."""
    order: list[list[int]]
    processor: HunYuanVLMoTProcessor
    threshold: float

    def batch(self, step: int) -> LabelledAnswers | AnswerPairs:
        """See `rl_lab.records.action_datasets.Dataset`."""
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
    answers: LabelledCompletions, settings: OutcomeConfig, seed: int
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
    """One member, from a checkpoint and the labels of `label_answers`."""

    policy: Path
    settings: OutcomeConfig
    labels: Path
    items: Path
    seed: int
    """The member's own: its head and the order of its rows follow from it."""

    name = "outcome"

    def data(self, processor: HunYuanVLMoTProcessor) -> OutcomeData:
        """The batches of every step. UserError without anything to learn from."""
        answers = LabelledCompletions.load(self.labels).of("train")
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
    found.save(folder, found.info.after(steps))
    if is_first_rank():
        save_file(weights, folder / HEAD_FILE)


def _whole_head(head: OutcomeHead) -> dict[str, Any]:
    return whole(dict(head.state_dict())) if is_sharded(head) else dict(head.state_dict())
