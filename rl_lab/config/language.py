"""Settings of the language side, in the order in which a run uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from algos.curriculum.options import CurriculumOptions
from algos.distillation import DistillationOptions
from algos.grpo import GRPOOptions
from algos.rft import RFTOptions
from envs.options import (
    AnyNumber,
    AtLeastOne,
    Fraction,
    Named,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Rounds,
    Rows,
    Seconds,
    Tokens,
    nearest,
)
from rewards.config import RewardConfig
from rl_lab.config.section import (
    Backend,
    ModelConfig,
    OnlineConfig,
    Section,
    TextTrainingConfig,
    VisionLossesConfig,
    in_own_words,
)

Rewards = Annotated[RewardConfig, in_own_words(RewardConfig)]

Curriculum = Annotated[CurriculumOptions, in_own_words(CurriculumOptions)]

GRPOSection = Annotated[GRPOOptions, in_own_words(GRPOOptions)]


SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class SourceConfig(Section):
    """Rows to imitate: a file of one's own, or generated questions with worked solutions."""

    file: str | None = None
    """JSONL, Parquet or saved `datasets` table of conversations, or of questions with a `solution`."""
    tasks: AnyNumber[str] = ()
    """Without a file only: generators of `envs.spatial_qa`; () for those of `questions.tasks`."""
    rows: PositiveInt = 500
    """Without a file only: questions."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        check_tasks(tasks)
        return tasks


def check_tasks(tasks: Sequence[str]) -> None:
    """ValueError for a generator that is not there."""
    from envs.spatial_qa.questions import GENERATORS  # here, because it imports the simulator

    unknown = [task for task in tasks if task not in GENERATORS]
    if unknown:
        hint = nearest(unknown[0], GENERATORS)
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(GENERATORS)}{hint}")


def file_key(name: str) -> str:
    """Dotted key of the file of a set, or of a source of one (`SET.SOURCE`)."""
    kind, _, source = name.partition(".")
    return f"questions.{kind}_sources.{source}.file" if source else f"questions.{kind}_file"


def is_imitated(name: str) -> bool:
    """Whether the rows of a set or source are shown as they are, so that they need solutions."""
    return name.partition(".")[0] in ("cold_start", "validation")


class QuestionsConfig(Section):
    """Questions over images: generated ones, or files of one's own (`rl_lab.records.questions`)."""

    tasks: AnyNumber[str] = ()
    """Generators of `envs.spatial_qa`; () for all of them."""
    levels: AtLeastOne[Fraction] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Difficulties, mixed evenly; see `envs.spatial_qa.items.knobs_at`."""
    image_size: Pixels = 64
    """Side of the square pictures, pixels; must be what the model takes."""
    thinking: bool = True
    """Ask for reasoning before the answer, and show it in worked solutions."""
    per_scene: Annotated[int, Field(ge=1, le=64)] = 8
    """Successive questions that may ask about one rollout of a task; fewer show more scenes and take longer to make."""
    train: NonNegativeInt = 3000
    """Questions of the curriculum pool; 0 in a run that only imitates."""
    cold_start: PositiveInt = 2000
    """Further questions, whose worked solutions the cold start imitates."""
    held_out: NonNegativeInt = 200
    """Questions that examinations ask; never trained on. 0 in a run that only imitates."""
    development: NonNegativeInt = 0
    """Further questions, on which gates decide; neither trained on nor reported."""
    split: Literal["heldout_seeds", "heldout_scenes"] = "heldout_seeds"
    """Held-out questions show new scenes of the families of training, or families that training never shows."""
    train_file: str | None = None
    """JSONL, Parquet or saved `datasets` table that replaces the generated questions of the pool."""
    cold_start_file: str | None = None
    """The same with worked solutions or conversations, instead of the generated ones."""
    cold_start_sources: Named[SourceName, SourceConfig] = {}
    """Several sets for the cold start instead of that one, by names of your own; it tells them apart, and mixes them as
    `cold_start.ratios` says."""
    validation_sources: Named[SourceName, SourceConfig] = {}
    """Sets that are never learned from, on which the cold start measures loss and accuracy."""
    held_out_file: str | None = None
    """A file that replaces the generated held-out questions."""
    development_file: str | None = None
    """The same for the questions on which gates decide."""
    skip_bad_rows: bool = False
    """Leave out rows of the files that cannot be used, and list them, instead of stopping."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        check_tasks(tasks)
        return tasks

    @model_validator(mode="after")
    def _one_cold_start(self) -> Self:
        if self.cold_start_sources and self.cold_start_file is not None:
            raise ValueError("cold_start_file and cold_start_sources are both given; make the file one of the sources")
        return self

    def sources(self) -> dict[str, SourceConfig]:
        """The sources of the cold start and of its validation, by the name of their set."""
        sets = {"cold_start": self.cold_start_sources, "validation": self.validation_sources}
        return {f"{name}.{source}": found for name, sources in sets.items() for source, found in sources.items()}

    def files(self) -> dict[str, Path]:
        """The files that replace generated sets, by set."""
        given = {"train": self.train_file, "cold_start": self.cold_start_file, "held_out": self.held_out_file}
        given |= {"development": self.development_file}
        given |= {name: source.file for name, source in self.sources().items()}
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
    """Pictures of a prompt at most."""
    kv_cache_gib: PositiveFloat = 1.0
    """Memory for keys and values, GiB."""
    prompts_per_call: Rows = 4
    """Prompts that are answered together: part of the result, unlike the number of engines."""


class ColdStartConfig(VisionLossesConfig, TextTrainingConfig):
    """Imitation of worked solutions by cross-entropy, everything of the vision-language model trainable."""

    steps: PositiveInt = 600
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 50
    ratios: Named[SourceName, PositiveFloat] = {}
    """Shares of every batch by source of `questions.cold_start_sources`, as parts: {a: 2, b: 1}; each source is then
    read in passes of its own. {}: all rows in common passes, each equally often."""
    max_length: Tokens | None = None
    """Tokens of a row, pictures included; longer rows are left out and counted. None: there is no limit."""
    validate_every: NonNegativeInt = 100
    """Steps between two measurements on `questions.validation_sources`; 0: before the first and after the last only."""


class ExamineConfig(Section):
    """Held-out questions, answered and scored."""

    samples: Rows = 4
    """Answers to each question, for pass@1 and pass@k."""
    blank_samples: Rows = 1
    """Answers to each question over a grey image."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    low_temperature: PositiveFloat | None = 0.3
    """At which every question is answered once more: what a model gained at `temperature` alone may be that it has
    grown sharper, which its base does at a lower temperature without training. None: not asked."""
    max_tokens: Tokens = 256
    """Of an answer at most."""
    pass_threshold: Fraction = 0.5
    """An answer with this reward or more passes."""


class RLConfig(VisionLossesConfig, OnlineConfig):
    """Reinforcement learning: how long, from how old rollouts, and when it stops itself."""

    steps: PositiveInt = 100
    """Batches of groups; each gives `grpo.num_iterations` optimiser steps."""
    lr: PositiveFloat = 1e-4
    final_lr_fraction: Fraction = 1.0
    backend: Backend = "lab"
    """Who samples and trains: our Learner and engines, or TRL's `GRPOTrainer`."""
    staleness: NonNegativeInt = 0
    """Weight versions that rollouts may be behind: batches that are generated while earlier ones train. 0: in turns."""
    max_refills: NonNegativeInt = 3
    """Times that groups without signal are replaced in one step, for schemes that replace them."""
    mismatch_limit: PositiveFloat = 0.1
    """Mean |log pi_trainer - log pi_engine| of the newest rollouts at which the run stops."""

    @model_validator(mode="after")
    def _trl_takes_turns(self) -> Self:
        if self.backend == "trl" and self.staleness:
            raise ValueError(
                f"staleness is {self.staleness}, but TRL's trainer samples and trains in turns; set it to 0"
            )
        return self


class StudentConfig(OnlineConfig):
    """How a student is trained."""

    replicate: Rounds = 1
    """1, 2, ...: another one has other random streams, with the same student, teacher and traces."""
    batch_size: Rows = 16
    """Rows of an optimiser step: prompts of distillation, answers of imitation."""


class DistillConfig(StudentConfig, DistillationOptions):
    """On-policy distillation: how answers are sampled and compared, for how long, and what stops it.

    A step has `batch_size` prompts, drawn evenly from the pool. The student's answers are drawn at `temperature`, too.
    """

    steps: PositiveInt = 150
    """Batches of answers, one optimiser step each."""
    num_generations: Rows = 1
    """Answers of the student to each prompt."""
    max_completion_length: Tokens = 256
    """Tokens of an answer at most."""
    scored_by: Literal["learner", "engine"] = "learner"
    """learner: the teacher's model lies beside the student's. engine: vLLM engines of its own hold the teacher and say
    its `top_k` most likely tokens."""
    reward_weight: NonNegativeFloat = 0.0
    """Weight of the GRPO loss (section `grpo`) on the same answers that is added to the divergence; 0 for none."""
    staleness: NonNegativeInt = 0
    """Weight versions that answers may be behind: batches that are answered while earlier ones train. 0: in turns."""
    mismatch_limit: PositiveFloat = 0.1
    """With a reward weight: mean |log pi_trainer - log pi_engine| of the newest answers at which the run stops."""

    @model_validator(mode="after")
    def _works(self) -> Self:
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


class ImitateConfig(StudentConfig):
    """The control: cross-entropy on the teacher's own answers, from the same student."""

    steps: PositiveInt = 300
    """Optimiser steps, on `batch_size` answers each."""


Select = Annotated[RFTOptions, in_own_words(RFTOptions)]


class TracesConfig(Section):
    """Traces of the newest model on the questions of the pool. A section of its own, so that they are not sampled again
    for other settings of the training behind them."""

    samples: Rows = 8
    """Traces of each question."""
    items: PositiveInt | None = None
    """Questions that are asked, drawn from the pool by the run's seed; None: all of the pool."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    max_tokens: Tokens = 256
    """Of a trace at most."""
    select: Select = RFTOptions()
    """Which traces are kept; `select.min_judge_score` asks the judge of `rewards.judge` about their reasoning."""


class RFTConfig(TextTrainingConfig):
    """Cross-entropy on the kept traces, everything of the vision-language model trainable."""

    start: Literal["current", "base"] = "current"
    """The weights that are fine-tuned: those of the newest model, which wrote the traces, or those of the cold start
    (without one, the checkpoint of `model.path`)."""
    steps: PositiveInt = 200


class OutcomeConfig(TextTrainingConfig):
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.classifier is not None and self.backend != "trl":
            raise ValueError("classifier is trained by TRL's RewardTrainer; set backend: trl and learns: preference")
        if self.backend == "trl" and self.learns == "correctness":
            raise ValueError("backend is trl, whose RewardTrainer learns from pairs only; set learns: preference")
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            shares = f"calibration is {self.calibration:g} and test {self.test:g}"
            raise ValueError(f"{shares}; give each a share, and leave some to train on")
        return self


JUDGE_URL = "RL_LAB_JUDGE_URL"
"""Environment variable with the address of the run's own judge, its key in it as a password."""

JUDGE_KEY = "RL_LAB_JUDGE_KEY"
"""Environment variable of the judge's server: the header `Authorization` that it asks for."""

JUDGE_MODEL = "judge"
"""The name under which it is served."""


class JudgeServerConfig(Section):
    """A model that vLLM serves for this run, to score open answers and traces; it is placed as `placement.judges` says.

    rewards.judge asks it with `{base_url: $RL_LAB_JUDGE_URL, model: judge}`.
    """

    path: str
    """Folder of any chat model that vLLM serves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and layers; auto: as the checkpoint."""
    max_model_len: Tokens = 4096
    """Tokens of a question, with the answer to be judged, and of the verdict."""
    max_num_seqs: Rows = 16
    """Verdicts that are written at the same time; others wait."""
    kv_cache_gib: PositiveFloat = 1.0
    """Memory for keys and values, GiB."""
    start_timeout_s: Seconds = 900.0
    """Until it answers for the first time."""
