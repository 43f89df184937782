"""Cold start, fine-tuning and reinforcement learning by TRL, from checkpoint to checkpoint, in the stage's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from algos.batch import TokenBatch
from rl_lab.config.section import OptimiserConfig
from rl_lab.graph.stage import StageContext
from rl_lab.learner.plans import optimiser
from rl_lab.model.checkpoint import LanguageModel
from rl_lab.training.watch import Watch, nothing_learned


def trl_sft(
    context: StageContext,
    settings: OptimiserConfig,
    start: LanguageModel,
    batches: Callable[[list[int]], TokenBatch],
    order: Sequence[Sequence[int]],
) -> None:
    """Train a language model on rows in a given order by TRL's `SFTTrainer`; the finished one is in `context.out`."""
    from rl_lab.trl_backend.sft import train_sft  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    trl_settings = Settings(optimiser(settings), gradient_checkpointing=settings.gradient_checkpointing)
    train_sft(start, batches, order, trl_settings, context.out, trl_logger(context, settings))


def trl_logger(context: StageContext, settings: OptimiserConfig) -> Callable[[int, dict[str, float]], None]:
    """What TRL tells of each step, into the metrics and the progress of the stage, and before its watch."""
    watch = Watch(context)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.log(step, **metrics)
        watch.add(metrics)
        watch.look(step, nothing_learned(settings.steps))
        context.progress(step, settings.steps, f"loss {metrics['loss']:.4g}")

    return log
