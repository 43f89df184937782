"""Cold start, fine-tuning and reinforcement learning by TRL, from checkpoint to checkpoint, in the stage's thread."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rl_lab.config.section import OptimiserConfig
from rl_lab.graph.stage import StageContext
from rl_lab.learner.language import LanguagePlan
from rl_lab.learner.plans import optimiser
from rl_lab.training.watch import Watch, nothing_learned


def trl_sft(context: StageContext, plan: LanguagePlan) -> None:
    """Cross-entropy by TRL's `SFTTrainer`, which reads the batches that the Learner would."""
    from rl_lab.trl_backend.sft import train_sft  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    settings = plan.settings
    torch.set_num_threads(settings.threads)
    start = plan.start()
    data = plan.data(start.processor)
    trl_settings = Settings(optimiser(settings), gradient_checkpointing=settings.gradient_checkpointing)
    tell, validation = trl_logger(context, settings), plan.validation(start.processor)

    def log(step: int, metrics: dict[str, float]) -> None:
        if validation is not None and validation.is_due(step):
            metrics = metrics | validation.measure(start.model)
        tell(step, metrics)

    if validation is not None:
        context.log(0, **validation.measure(start.model))
    train_sft(start, data.batch_of, data.order, trl_settings, context.out, log)


def trl_logger(context: StageContext, settings: OptimiserConfig) -> Callable[[int, dict[str, float]], None]:
    """What TRL tells of each step, into the metrics and the progress of the stage, and before its watch."""
    watch = Watch(context)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.log(step, **metrics)
        watch.add(metrics)
        watch.look(step, nothing_learned(settings.steps))
        context.progress(step, settings.steps, f"loss {metrics['loss']:.4g}")

    return log
