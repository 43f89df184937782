"""Settings of an outcome reward model: which stored answers it learns from, what of them, and how it is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rl_lab.config.section import (
    Backend,
    Fraction,
    NonNegativeInt,
    OptimiserConfig,
    PositiveFloat,
    PositiveInt,
    Rows,
    check_trl,
)


class OutcomeConfig(OptimiserConfig):
    """A scalar head on the vision-language model, everything of it trainable; `algos.outcome` has the losses."""

    run: str | None = None
    """Run folder whose stored answers are learned from; None: traces of the newest model, as `traces` says."""
    classifier: str | None = None
    """Folder of a sequence classifier, or of a model that gets its head, which reads question and answer as text and is
    trained in place of the vision-language model."""
    learns: Literal["correctness", "preference"] = "correctness"
    """From single answers, which are correct or not, or from pairs of answers to the same question."""
    threshold: Fraction = 0.5
    """True reward from which an answer is correct."""
    margin: Fraction = 0.1
    """Least difference of the true rewards of a pair."""
    pairs: PositiveInt = 4
    """Pairs of each question, at most."""
    calibration: Fraction = 0.15
    """Share of the scenes on which probabilities are fitted."""
    test: Fraction = 0.15
    """Share of the scenes on which the finished model is examined; neither is trained on."""
    members: Rows = 1
    """Models of the ensemble, each with a head and an order of rows of its own (arXiv:1612.01474)."""
    steps: PositiveInt = 300
    batch_size: Rows = 32
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 20
    final_lr_fraction: Fraction = 0.1
    backend: Backend = "lab"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_trl(self.backend, lora=self.lora, ema=self.ema)
        if self.classifier is not None and self.backend != "trl":
            raise ValueError("classifier is trained by TRL's RewardTrainer; set backend: trl and learns: preference")
        if self.backend == "trl" and self.learns == "correctness":
            raise ValueError("backend is trl, whose RewardTrainer learns from pairs only; set learns: preference")
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            shares = f"calibration is {self.calibration:g} and test {self.test:g}"
            raise ValueError(f"{shares}; give each a share, and leave some to train on")
        return self
