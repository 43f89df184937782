"""What both of TRL's trainers are given: a model, the Learner's optimizer and schedule, and a quiet loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl_lab.common.errors import UserError
from rl_lab.learner.optim import Optimiser
from rl_lab.model.checkpoint import LanguageModel, load_language_model

Log = Callable[[int, dict[str, float]], None]
"""Receives the number of a step, from 1, and its metrics."""


@dataclass(frozen=True)
class Settings:
    """How the weights are trained, whatever for."""

    optimiser: Optimiser
    groups: tuple[str, ...] = ("vision", "vlm")
    """Parameter groups that are trained; the others keep their weights."""
    gradient_checkpointing: bool = False


def load_vlm(folder: Path) -> LanguageModel:
    """A checkpoint folder; UserError if there is none or if it is a policy's, whose action side TRL does not know."""
    found = load_language_model(folder)
    check_vlm(found)
    return found


def check_vlm(language: LanguageModel) -> None:
    """UserError unless it is a VLM."""
    if language.actions is not None:
        raise UserError("backend: trl trains vision-language models, not policies; use backend: lab, or give a VLM")


def common_arguments(settings: Settings, steps: int, rows: int) -> dict[str, Any]:
    """`TrainingArguments` of both trainers: `steps` steps of `rows` rows, nothing saved, every step logged."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "max_grad_norm": settings.optimiser.grad_clip,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        # The model computes in the precision of its checkpoint, as in the Learner.
        "bf16": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def optimizers(
    model: Any, groups: Mapping[str, Sequence[nn.Parameter]], settings: Settings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The Learner's optimizer and learning rates; the trainers' own would spare biases and norms the weight decay.

    Moves the model to the trainer's device: master weights made before that would stay on the CPU. Freezes what is not
    trained. ValueError for an unknown parameter group.
    """
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimiser = settings.optimiser
    unknown = set(settings.groups) - set(groups)
    if unknown:
        raise ValueError(f"unknown parameter groups {sorted(unknown)}; there are {sorted(groups)}")
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(name in settings.groups)
    trained = [parameter for name in settings.groups for parameter in groups[name]]
    optimizer = optimiser.make(trained)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, replace(optimiser, lr=1.0).lr_at)


@contextmanager
def own_config(model: Any) -> Iterator[None]:
    """Give the model its config back: TRL writes a pad token and `use_cache` into it, which are no part of ours."""
    config = copy.deepcopy(model.config)
    try:
        yield
    finally:
        model.config = config


class LogCallback(TrainerCallback):
    """Hands each step's metrics on under the lab's names; what the lab has no name for stays behind."""

    def __init__(self, log: Log, names: Mapping[str, str]) -> None:
        self.log, self.names = log, {"loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"} | dict(names)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """RuntimeError for a loss or gradient that is not finite: that step spoilt the weights, so none are saved."""
        if not logs or "loss" not in logs:
            return  # the summary at the end
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(logs[name])]
        if bad:
            raise RuntimeError(f"TRL: {bad[0]} is {logs[bad[0]]} at step {state.global_step}; no checkpoint is written")
        found = {ours: logs.get(theirs) for ours, theirs in self.names.items()}
        self.log(state.global_step, {name: float(value) for name, value in found.items() if value is not None})


def train(trainer: Trainer, log: Log, names: Mapping[str, str]) -> None:
    """Run all steps; the metrics in `names` (the lab's name -> TRL's) go to `log`, and nothing is printed."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogCallback(log, names))
    trainer.train()
