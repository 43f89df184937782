"""Cold start with TRL's `SFTTrainer`: cross-entropy on the assistant's turns, written as a checkpoint folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rl_lab.language.model import LanguageModel
from rl_lab.language.question_data import Conversation
from rl_lab.model.chat import HunYuanVLMoTProcessor, answer_labels
from rl_lab.trl_backend.trainer import Log, Settings, check_vlm, common_arguments, optimizers, own_config, train

NAMES = {"text/cross_entropy": "loss"}


class Conversations(Protocol):
    """Conversations by row number: a list or a file."""

    def __getitem__(self, row: int, /) -> Conversation: ...


class Collator:
    """Rows of a step to the model's inputs and labels.

    TRL's collator for images renders and pads in its own way; this one makes what `token_batching.chat_batch` makes.
    """

    def __init__(self, conversations: Conversations, processor: HunYuanVLMoTProcessor) -> None:
        self.conversations, self.processor = conversations, processor

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        made: Any = self.processor.apply_chat_template(
            [self.conversations[row["row"]].chat() for row in rows],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        inputs = {name: made[name] for name in self.processor.model_input_names if name in made}
        return inputs | {"labels": answer_labels(made)}


def train_sft(
    start: LanguageModel,
    conversations: Conversations,
    order: Sequence[Sequence[int]],
    settings: Settings,
    output: Path,
    log: Log,
) -> None:
    """Train a VLM, in place, on one batch of conversations a step and write its checkpoint to `output`.

    `order` lists the rows of each step, equally many, so that both backends can read the same. The loss is the mean
    over the answers' tokens of a step (TRL's `nll` with `assistant_only_loss`). ValueError for steps of different
    size; UserError for a policy; RuntimeError for a loss that is not finite, and then nothing is written.
    """
    sizes = {len(rows) for rows in order}
    if len(sizes) != 1:
        raise ValueError(f"steps have {sorted(sizes)} rows; TRL needs at least one step and equally many rows in each")
    check_vlm(start)
    model: Any = start.model
    with tempfile.TemporaryDirectory() as scratch, own_config(model):
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                scratch,
                max_length=None,
                loss_type="nll",
                train_sampling_strategy="sequential",
                dataset_kwargs={"skip_prepare_dataset": True},
                **common_arguments(settings, len(order), sizes.pop()),
            ),
            data_collator=Collator(conversations, start.processor),
            train_dataset=Dataset.from_dict({"row": [row for rows in order for row in rows]}),
            processing_class=start.processor,
            optimizers=optimizers(model, settings),
        )
        train(trainer, log, NAMES)
    info = start.info
    done = replace(info, weight_version=info.weight_version + 1, steps=info.steps + len(order))
    start.save(output, info=done)
