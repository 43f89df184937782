"""Settings of the language side: questions, cold start, examinations and reinforcement learning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from algos.curriculum_options import CurriculumOptions
from algos.grpo_options import GRPOOptions, known_options
from rewards.config import RewardConfig
from rl_lab.config.section import (
    AS_DICT,
    MAX_PROCESSES,
    MAX_ROUNDS,
    MAX_ROWS,
    MAX_TOKENS,
    AnyNumber,
    AtLeastOne,
    Backend,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OptimiserConfig,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Rows,
    ScheduleConfig,
    Section,
    Tokens,
    check_trl,
    reader,
)

Rewards = Annotated[
    RewardConfig,
    reader(RewardConfig, most={"judge.concurrency": MAX_PROCESSES, "judge.max_tokens": MAX_TOKENS}),
    AS_DICT,
]
BATCH_SIZE = 8
"""Groups of a step where the file says nothing; the curriculum itself has no default."""
Curriculum = Annotated[
    CurriculumOptions,
    reader(CurriculumOptions, lambda value: {"batch_size": BATCH_SIZE} | dict(value), {"batch_size": MAX_ROWS}),
    AS_DICT,
]
_LARGEST_GRPO = {
    "num_generations": MAX_ROWS,
    "max_completion_length": MAX_TOKENS,
    "num_iterations": MAX_ROUNDS,
}
GRPO = Annotated[GRPOOptions, reader(GRPOOptions, known_options, _LARGEST_GRPO), AS_DICT]


class QuestionsConfig(Section):
    """Questions over images: generated ones, or files of one's own (`rl_lab.language.question_data`)."""

    tasks: AnyNumber[str] = ()
    """Generators of `envs.spatial_qa`; () for all of them."""
    levels: AtLeastOne[Fraction] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Difficulties, mixed evenly; see `envs.spatial_qa.items.knobs_at`."""
    image_size: Pixels = 64
    thinking: bool = True
    """Ask for reasoning before the answer, and show it in worked solutions."""
    per_scene: Annotated[int, Field(ge=1, le=64)] = 8
    """Successive questions that may ask about one rollout of a task; fewer show more scenes and take longer to make."""
    train: PositiveInt = 3000
    """Questions of the curriculum pool."""
    cold_start: PositiveInt = 2000
    """Further questions, whose worked solutions the cold start imitates."""
    held_out: PositiveInt = 200
    development: NonNegativeInt = 0
    """Further questions, on which gates decide; neither trained on nor reported."""
    split: Literal["heldout_seeds", "heldout_scenes"] = "heldout_seeds"
    """Held-out questions show new scenes of the families of training, or families that training never shows."""
    train_file: str | None = None
    """JSONL, Parquet or saved `datasets` table that replaces the generated questions of the pool."""
    cold_start_file: str | None = None
    """The same with worked solutions or conversations, instead of the generated ones."""
    held_out_file: str | None = None
    development_file: str | None = None
    skip_bad_rows: bool = False
    """Leave out rows of the files that cannot be used, and list them, instead of stopping."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        from envs.spatial_qa.questions import GENERATORS  # here, because it imports the simulator

        unknown = [task for task in tasks if task not in GENERATORS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(GENERATORS)}")
        return tasks

    def files(self) -> dict[str, Path]:
        """The files that replace generated sets, by set."""
        given = {"train": self.train_file, "cold_start": self.cold_start_file, "held_out": self.held_out_file}
        given |= {"development": self.development_file}
        return {name: Path(path) for name, path in given.items() if path is not None}


class EngineConfig(Section):
    """How each vLLM engine is set up; the names are vLLM's."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: as the checkpoint."""
    max_model_len: Tokens = 1024
    """Tokens of a prompt, images included, and its answer."""
    max_num_seqs: Rows = 64
    """Answers that are written at the same time; others wait."""
    images_per_prompt: Rows = 8
    kv_cache_gib: PositiveFloat = 1.0
    prompts_per_call: Rows = 4
    """Prompts that are answered together: part of the result, unlike the number of engines."""


class ColdStartConfig(OptimiserConfig):
    """Imitation of worked solutions by cross-entropy, everything of the vision-language model trainable."""

    steps: PositiveInt = 600
    batch_size: Rows = 32
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 50
    final_lr_fraction: Fraction = 0.1
    backend: Backend = "lab"

    @model_validator(mode="after")
    def _trl_has_it(self) -> Self:
        check_trl(self.backend, lora=self.lora, ema=self.ema)
        return self


class ExamineConfig(Section):
    """Held-out questions, answered and scored."""

    samples: Rows = 4
    """Answers to each question, for pass@1 and pass@k."""
    blank_samples: Rows = 1
    """Answers to each question over a grey image."""
    temperature: PositiveFloat = 1.0
    max_tokens: Tokens = 256
    pass_threshold: Fraction = 0.5
    """An answer with this reward or more passes."""


class RLConfig(ScheduleConfig):
    """Reinforcement learning: how long, from how old rollouts, and when it stops itself."""

    steps: PositiveInt = 100
    """Batches of groups; each gives `grpo.num_iterations` optimiser steps."""
    lr: PositiveFloat = 1e-4
    warmup: NonNegativeInt = 5
    final_lr_fraction: Fraction = 1.0
    weight_decay: NonNegativeFloat = 0.0
    train: AtLeastOne[Literal["vision", "vlm"]] = ("vision", "vlm")
    backend: Backend = "lab"
    rows_at_once: Rows | None = None
    """Answers that go through the model together; a larger batch is learned in parts. None: all of them."""
    staleness: NonNegativeInt = 0
    """Weight versions that rollouts may be behind: batches that are generated while earlier ones train. 0: in turns."""
    max_refills: NonNegativeInt = 3
    """Times that groups without signal are replaced in one step, for schemes that replace them."""
    examine_every: NonNegativeInt = 20
    """Steps between short examinations on the held-out questions, one answer each; 0 for none."""
    mismatch_limit: PositiveFloat = 0.1
    """Mean |log pi_trainer - log pi_engine| of the newest rollouts at which the run stops."""

    @model_validator(mode="after")
    def _trl_takes_turns(self) -> Self:
        if self.backend == "trl" and self.staleness:
            raise ValueError(
                f"staleness is {self.staleness}, but TRL's trainer samples and trains in turns; set it to 0"
            )
        return self
