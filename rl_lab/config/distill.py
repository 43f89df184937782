"""Settings of on-policy distillation: of the student, of its teacher, and of the control that imitates the teacher."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from algos.distillation_options import DistillationOptions
from rl_lab.config.language import ColdStartConfig
from rl_lab.config.model import ModelConfig
from rl_lab.config.section import (
    AtLeastOne,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rounds,
    Rows,
    ScheduleConfig,
    Section,
    Tokens,
)

Trained = AtLeastOne[Literal["vision", "vlm"]]
"""Parameter groups that are trained."""


class DistillConfig(ScheduleConfig):
    """On-policy distillation: how answers are sampled and compared, for how long, and what stops it.

    `divergence` to `average` are options of `algos.distillation_options`.
    """

    replicate: Rounds = 1
    """1, 2, ...: another one has other random streams, with the same student, teacher and traces."""
    steps: PositiveInt = 150
    """Batches of answers, one optimiser step each."""
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 5
    final_lr_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.0
    train: Trained = ("vision", "vlm")
    rows_at_once: Rows | None = None
    """Answers that go through the models together; a larger batch is learned in parts. None: all of them."""
    batch_size: Rows = 16
    """Prompts of a step, drawn evenly from the pool."""
    num_generations: Rows = 1
    """Answers of the student to each prompt."""
    max_completion_length: Tokens = 256
    temperature: PositiveFloat = 1.0
    """Of the student's answers, and what both models' logits are divided by where they are compared; as in TRL."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: Fraction = 0.5
    top_k: Rows | None = None
    tail: Literal["bucket", "renormalise"] = "bucket"
    average: Literal["sequence", "token"] = "sequence"
    scored_by: Literal["learner", "engine"] = "learner"
    """learner: the teacher's model lies beside the student's. engine: vLLM engines of its own hold the teacher and say
    its `top_k` most likely tokens."""
    reward_weight: NonNegativeFloat = 0.0
    """Weight of the GRPO loss (section `grpo`) on the same answers that is added to the divergence; 0 for none."""
    staleness: NonNegativeInt = 0
    """Weight versions that answers may be behind: batches that are answered while earlier ones train. 0: in turns."""
    examine_every: NonNegativeInt = 20
    """Steps between short examinations on the held-out questions, one answer each; 0 for none."""
    mismatch_limit: PositiveFloat = 0.1
    """With a reward weight: mean |log pi_trainer - log pi_engine| of the newest answers at which the run stops."""

    def options(self) -> DistillationOptions:
        """How the two models are compared."""
        names = ("divergence", "beta", "temperature", "top_k", "tail", "average")
        return DistillationOptions(**self.model_dump(include=set(names)))

    @model_validator(mode="after")
    def _works(self) -> Self:
        self.options()  # ValueError for options that do not go together
        if self.reward_weight and self.num_generations < 2:
            raise ValueError(
                f"reward_weight is {self.reward_weight:g} but num_generations is {self.num_generations}; rewards are "
                "compared within the answers to one prompt, so sample at least 2, or leave reward_weight out"
            )
        if self.scored_by == "engine" and self.top_k is None:
            raise ValueError("scored_by is engine, which says the most likely tokens only; set top_k")
        if self.scored_by == "engine" and self.temperature != 1:
            raise ValueError(
                f"scored_by is engine but temperature is {self.temperature:g}: an engine knows a prompt's "
                "log-probabilities at temperature 1 only; set temperature to 1, or scored_by to learner"
            )
        return self


class TeacherConfig(Section):
    """The model that the student learns from: a base model of its own, or a checkpoint as it is."""

    model: ModelConfig = ModelConfig(preset="small")
    """Its sizes, or `path`: any checkpoint with the student's tokenizer and chat template."""
    cold_start: ColdStartConfig | None = None
    """How it is trained on the worked solutions; None: like a base model without settings, or, with `model.path`, not
    at all."""

    @property
    def training(self) -> ColdStartConfig | None:
        """The settings of its training; None: there is none."""
        return self.cold_start or (ColdStartConfig() if self.model.path is None else None)


class ImitateConfig(ScheduleConfig):
    """The control: cross-entropy on the teacher's own answers, from the same student."""

    replicate: Rounds = 1
    """1, 2, ...: another one has other random streams, with the same student, teacher and traces."""
    steps: PositiveInt = 300
    """Optimiser steps, on `batch_size` answers each."""
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 5
    final_lr_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.0
    train: Trained = ("vision", "vlm")
    rows_at_once: Rows | None = None
    batch_size: Rows = 16
    examine_every: NonNegativeInt = 20
    """Steps between short examinations on the held-out questions, one answer each; 0 for none."""
