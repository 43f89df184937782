"""Settings of rejection-sampling fine-tuning: how traces are sampled and chosen, and how a model is trained on them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from algos.rft_options import RFTOptions
from rl_lab.config.section import (
    AS_DICT,
    MAX_TOKENS,
    Backend,
    Fraction,
    NonNegativeInt,
    OptimiserConfig,
    PositiveFloat,
    PositiveInt,
    Rows,
    Section,
    Tokens,
    check_trl,
    reader,
)

Select = Annotated[RFTOptions, reader(RFTOptions, most={"max_tokens": MAX_TOKENS}), AS_DICT]


class TracesConfig(Section):
    """Traces of the newest model on the questions of the pool. A section of its own, so that they are not sampled again
    for other settings of the training behind them."""

    samples: Rows = 8
    """Traces of each question."""
    items: PositiveInt | None = None
    """Questions that are asked, drawn from the pool by the run's seed; None: all of the pool."""
    temperature: PositiveFloat = 1.0
    max_tokens: Tokens = 256
    select: Select = RFTOptions()
    """Which traces are kept; `select.min_judge_score` asks the judge of `rewards.judge` about their reasoning."""


class RFTConfig(OptimiserConfig):
    """Cross-entropy on the kept traces, everything of the vision-language model trainable."""

    start: Literal["current", "base"] = "current"
    """The weights that are fine-tuned: those of the newest model, which wrote the traces, or those of the cold start
    (without one, the checkpoint of `model.path`)."""
    steps: PositiveInt = 200
    batch_size: Rows = 32
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 20
    final_lr_fraction: Fraction = 0.1
    backend: Backend = "lab"

    @model_validator(mode="after")
    def _trl_has_it(self) -> Self:
        check_trl(self.backend, lora=self.lora, ema=self.ema)
        return self
