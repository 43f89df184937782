"""Supervised training with TRL's `SFTTrainer`: cross-entropy on answers, written as a checkpoint folder."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from algos.batch import TokenBatch
from rl_lab.model.backbone import Pictures
from rl_lab.model.chat import IGNORED
from rl_lab.model.checkpoint import LanguageModel
from rl_lab.trl_backend.trainer import Log, Settings, check_vlm, common_arguments, optimizers, own_config, train

NAMES = {"text/cross_entropy": "loss"}


Batches = Callable[[list[int]], TokenBatch]
"""The batch of rows by their numbers."""


def model_inputs(batch: TokenBatch) -> dict[str, Tensor]:
    """A batch as the model's `forward` takes it, pictures once for each row that shows them."""
    found = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.long(),
        "labels": torch.where(batch.completion_mask, batch.input_ids, IGNORED),
    }
    visual: Pictures | None = batch.visual
    if visual is None:
        return found
    parts = visual.pixels.split([math.prod(grid) for grid in visual.grids])
    for kind, suffix, is_video in (("image", "", False), ("video", "_videos", True)):
        shown = [index for row in visual.shown for index in row if visual.is_video[index] == is_video]
        if shown:
            found[f"pixel_values{suffix}"] = torch.cat([parts[index] for index in shown])
            found[f"{kind}_grid_thw"] = torch.tensor([visual.grids[index] for index in shown])
    return found


def train_sft(
    start: LanguageModel,
    batches: Batches,
    order: Sequence[Sequence[int]],
    settings: Settings,
    output: Path,
    log: Log,
) -> None:
    """Train a VLM, in place, on one batch of rows a step and write its checkpoint to `output`.

    `order` lists the rows of each step, equally many, so that both backends can read the same. The loss is the mean
    over the answers' tokens of a step (TRL's `nll` with `assistant_only_loss`). ValueError for steps of different
    size; UserError for a policy; RuntimeError for a loss that is not finite, and then nothing is written.
    """
    sizes = {len(rows) for rows in order}
    if len(sizes) != 1:
        raise ValueError(f"steps have {sorted(sizes)} rows; TRL needs at least one step and equally many rows in each")
    check_vlm(start)
    model: Any = start.model

    def collate(rows: list[dict[str, int]]) -> dict[str, Tensor]:
        """TRL's collator for images renders and pads in its own way; here both backends read the same batch."""
        return model_inputs(batches([row["row"] for row in rows]))

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
            data_collator=collate,
            train_dataset=Dataset.from_dict({"row": [row for rows in order for row in rows]}),
            processing_class=start.processor,
            optimizers=optimizers(model, model.parameter_groups(), settings),
        )
        train(trainer, log, NAMES)
    start.save(output, start.info.after(len(order)))
