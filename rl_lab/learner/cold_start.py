"""The cold start: imitation of worked solutions and conversations, of one set or of several sources.

The rows of a step lie side by side: the model computes no padding, and no row sees another, so a step is a pack of
separate documents. Rows that are too long are found before training begins, from the sizes of their pictures alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.batch import MixedBatch, TokenBatch
from algos.cross_entropy import CrossEntropy, token_scores
from algos.mixing import MixedSampler
from algos.objective import ComparablePolicy, Objective
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer
from rl_lab.config.language import ColdStartConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.auxiliary import FIRST_ROWS, seeing
from rl_lab.learner.dtype import FromModel
from rl_lab.learner.language import GROUPS, LanguagePlan, OrderedData, epoch_order
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import LanguageModel, initial_language_model
from rl_lab.records.item_files import SolutionFile
from rl_lab.records.token_batches import chat_batch, chat_length


@dataclass(frozen=True)
class Source:
    """Rows of a file of `rl_lab.records.item_files`."""

    path: Path
    name: str = ""
    """Empty where there is one set only."""
    rows: tuple[int, ...] | None = None
    """Rows of the file that are used; None: all of them."""
    overlong: int = 0
    """Rows that are not, because they are too long."""
    tokens: int | None = None
    """Of all used rows, pictures included; None: not counted."""


def fitting(
    source: Source, max_length: int | None, processor: HunYuanVLMoTProcessor, tell: Callable[..., None]
) -> Source:
    """The source without rows of more tokens than that; `tell(done, total, words)` on the way.

    UserError where all are longer.
    """
    if max_length is None:
        return source
    file, lengths = SolutionFile(source.path), []
    for row in range(len(file)):
        talk = file.outline(row)
        lengths.append(chat_length(talk.messages, talk.images, processor))
        tell(row + 1, len(file), f"tokens of {source.path.stem}")
    kept = tuple(row for row, length in enumerate(lengths) if length <= max_length)
    if not kept:
        raise UserError(
            f"cold_start.max_length is {max_length}, but all {len(file)} rows of {source.path.stem} are longer (the "
            f"shortest has {min(lengths)} tokens with its pictures); raise it"
        )
    tokens = sum(lengths[row] for row in kept)
    return Source(source.path, source.name, kept, len(file) - len(kept), tokens)


class SourceRows:
    """Conversations of several sources by number, one source after another."""

    def __init__(self, sources: Sequence[Source], processor: HunYuanVLMoTProcessor) -> None:
        self.names, self.processor = tuple(source.name for source in sources), processor
        self.files = [SolutionFile(source.path) for source in sources]
        self.rows = [
            range(len(file)) if source.rows is None else source.rows
            for source, file in zip(sources, self.files, strict=True)
        ]
        self.sizes = list(map(len, self.rows))
        self._starts = list(accumulate(self.sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def batch(self, numbers: Sequence[int]) -> TokenBatch:
        """These rows; of sources with names a `MixedBatch`."""
        sources = [bisect_right(self._starts, number) - 1 for number in numbers]
        chats = [
            self.files[source][self.rows[source][number - self._starts[source]]].chat()
            for source, number in zip(sources, numbers, strict=True)
        ]
        found = chat_batch(chats, self.processor)
        if self.names == ("",):
            return found
        return MixedBatch(**vars(found), source=torch.tensor(sources), names=self.names)

    def first_pictures(self) -> list[np.ndarray]:
        """Of the first rows of every source."""
        each = FIRST_ROWS // len(self.files) or 1
        return [
            image
            for file, rows in zip(self.files, self.rows, strict=True)
            for row in rows[:each]
            for image in file.images(row)
        ]


def conversation_data(
    sources: Sequence[Source], settings: ColdStartConfig, seed: int, processor: HunYuanVLMoTProcessor
) -> OrderedData:
    """Conversations to imitate, in the order of a cold start."""
    rows, seed = SourceRows(sources, processor), integer(seed, "cold_start")
    if not settings.ratios:
        return OrderedData(rows, epoch_order(len(rows), settings.steps, settings.batch_size, seed), rows.batch)
    sampler = MixedSampler(rows.sizes, [settings.ratios[name] for name in rows.names], settings.batch_size, seed)
    return OrderedData(rows, [sampler.numbers(step).tolist() for step in range(settings.steps)], rows.batch)


def conversation_objective(data: OrderedData, settings: ColdStartConfig, seed: int, model: Any) -> Objective:
    """Cross-entropy on `conversation_data`, with auxiliary losses where these have a weight. UserError as
    `rl_lab.learner.auxiliary.picture_heads`."""
    rows, text = data.rows, CrossEntropy(groups=GROUPS)
    processor, seed = rows.processor.image_processor, integer(seed, "cold_start")
    return seeing(text, settings, "cold_start", model, rows.first_pictures, processor, seed)


def calibrate(model: LanguageModel, sources: Sequence[Source]) -> None:
    """Fit random weights to the first pictures of the sources and to numbers."""
    model.calibrate(SourceRows(sources, model.processor).first_pictures())


@dataclass
class Validation:
    """Loss and accuracy on rows that are never learned; see `rl_lab.learner.plans.Measured`."""

    rows: SourceRows
    settings: ColdStartConfig

    def is_due(self, step: int) -> bool:
        """After so many steps, and after the last."""
        every = self.settings.validate_every
        return step == self.settings.steps or (every > 0 and step % every == 0)

    def measure(self, policy: ComparablePolicy) -> dict[str, float]:
        """Mean over the answers' tokens of -log pi, and the share of them that are the likeliest; by source too."""
        at_once = self.settings.rows_at_once or self.settings.batch_size
        device, sums = policy.get_input_embeddings().weight.device, np.zeros((len(self.rows.names), 3))  # type: ignore[attr-defined]
        for start in range(0, len(self.rows), at_once):
            batch = self.rows.batch(range(start, min(start + at_once, len(self.rows))))
            scores = torch.stack([value.sum(1) for value in token_scores(policy, batch.to(device))], 1)
            np.add.at(sums, batch.source.numpy(), scores.double().cpu().numpy())  # type: ignore[attr-defined]
        found = {"validation": sums.sum(0)} | {
            f"validation/{name}": own for name, own in zip(self.rows.names, sums, strict=True)
        }
        return {
            f"{where}/{what}": float(value / own[2])
            for where, own in found.items()
            for what, value in (("loss", own[0]), ("accuracy", own[1]))
        }


@dataclass(frozen=True)
class ColdStartPlan(FromModel, LanguagePlan):
    """Imitation of conversations, from a preset's random weights or from a checkpoint."""

    model: ModelConfig
    settings: ColdStartConfig
    sources: tuple[Source, ...]
    seed: int
    measured: tuple[Source, ...] = ()
    """Never learned from."""

    name = "cold_start"

    def start(self) -> LanguageModel:
        """See `LanguagePlan`; random weights are fitted to pictures and numbers."""
        found = initial_language_model(self.model, self.seed)
        if self.model.path is None:
            calibrate(found, self.sources)
        return found

    def data(self, processor: HunYuanVLMoTProcessor) -> OrderedData:
        """See `LanguagePlan`."""
        return conversation_data(self.sources, self.settings, self.seed, processor)

    def objective(self, start: LanguageModel, data: OrderedData) -> Objective:
        """See `LanguagePlan`."""
        return conversation_objective(data, self.settings, self.seed, start.model)

    def validation(self, processor: HunYuanVLMoTProcessor) -> Validation | None:
        """See `LanguagePlan`."""
        return Validation(SourceRows(self.measured, processor), self.settings) if self.measured else None
