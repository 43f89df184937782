"""Settings of the action side: demonstrations, imitation, preference pairs and rounds of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rl_lab.config.section import (
    AtLeastOne,
    ControlSteps,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OptimiserConfig,
    PositiveFloat,
    PositiveInt,
    Rounds,
    Rows,
    Section,
)


class FilesConfig(Section):
    """Demonstrations that others recorded. Numbers are read once; images stay where they are."""

    paths: AtLeastOne[str]
    """Files or folders of RoboTwin's HDF5 episodes (both layouts), or folders of a LeRobotDataset v3."""
    stride: ControlSteps = 1
    """Recorded steps between two commands of a chunk."""
    save_freq: ControlSteps = 15
    """Physics steps (1/250 s) a frame of RoboTwin's files; another number in a file is a problem of its episode."""
    instructions: Literal["seen", "unseen"] = "seen"
    """Which of RoboTwin's texts."""
    index: str | None = None
    """The authors' index of RoboTwin's episodes (dataset_index.csv): those that it calls dirty are left out."""
    skip_broken: bool = False
    """Leave broken episodes out, and list them, instead of stopping."""

    def reading(self) -> dict[str, Any]:
        """Arguments of `rl_lab.formats.recordings.find_recordings`."""
        return {
            "paths": [Path(path) for path in self.paths],
            "save_freq": self.save_freq,
            "split": self.instructions,
            "index": None if self.index is None else Path(self.index),
        }


class DemosConfig(Section):
    """Demonstrations: of the scripted expert, or from files."""

    episodes: PositiveInt = 25
    """Successful episodes of each task and variant."""
    action_noise_m: NonNegativeFloat = 0.0
    """Standard deviation of the noise on executed positions, metres; labels stay clean."""
    files: FilesConfig | None = None
    """Demonstrations that replace the expert's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.files is not None and (self.episodes, self.action_noise_m) != (25, 0.0):
            raise ValueError("episodes and action_noise_m are the expert's, but files replace it; leave them out")
        return self

    @property
    def stride(self) -> int:
        """Recorded steps between two commands of a chunk; an expert's every one."""
        return 1 if self.files is None else self.files.stride


class FlowConfig(OptimiserConfig):
    """Training of the flow-matching expert."""

    draws_per_sample: Rows = 4
    """(noise, time) draws for one observation: its prefix is computed once for all of them."""
    compile: bool = False
    """Make kernels of every layer with torch.compile, which takes a minute or more and saves time in every step.
    Other rounding, so it is part of the result; a run that is killed and resumed gives the same only up to rounding."""

    @model_validator(mode="after")
    def _compiled_sums_have_an_order(self) -> Self:
        if self.compile and self.threads > 1:
            raise ValueError(
                f"compile is true but threads is {self.threads}: compiled kernels add up what several threads found in "
                "any order, so no run could be repeated; set threads to 1, or leave compile out"
            )
        return self


class SFTConfig(FlowConfig):
    """Flow matching on the demonstrations, everything trainable."""

    steps: PositiveInt = 600
    batch_size: Rows = 32
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100
    final_lr_fraction: Fraction = 0.05
    ema: Fraction = 0.995
    probe_weight: NonNegativeFloat = 1.0
    """Weight of the auxiliary loss on simulator ground truth, a stand-in for spatial pre-training; 0 for none."""
    augment: bool = False
    """Change images at random as Hy-VLA does (`algos.augmentation`)."""
    statistics: Literal["checkpoint", "data"] = "checkpoint"
    """What states and chunks are normalised with: the checkpoint's statistics if there are any for such chunks, else
    those of the demonstrations; or always the latter."""


class CorrectorConfig(Section):
    """Who shows the better continuation of a failure. In a file the name of a kind may stand alone."""

    kind: Literal["scripted_expert", "policy", "recorded"] = "scripted_expert"
    """scripted_expert: the simulator's; RoboTwin's is planned anew for the restored state. policy: a teacher.
    recorded: corrections from a file or from another run's pairs."""
    path: str | None = None
    """Of a policy its checkpoint folder; of recorded corrections a file of JSON lines or a folder of pairs."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_its_path(self) -> Self:
        if (self.path is not None) != (self.kind != "scripted_expert"):
            state = "needs a path" if self.path is None else "takes no path"
            raise ValueError(f"corrector {self.kind} {state}; write for example {{kind: policy, path: FOLDER}}")
        return self


class CollectConfig(Section):
    """Preference pairs: the policy fails, the simulator is rolled back, the corrector shows how; in control steps."""

    pairs: PositiveInt = 60
    """Pairs of each round, over all tasks."""
    max_episodes: PositiveInt = 400
    """Episodes after which a round stops short of `pairs`."""
    corrector: CorrectorConfig = CorrectorConfig()
    """Who shows the better continuation."""
    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction."""
    rollback_steps: tuple[ControlSteps, ControlSteps] = (12, 32)
    """Range of the random distance from the shared start to the failure."""
    further_rollback: ControlSteps = 12
    """Roll back this much more after each correction that fails."""
    max_corrections: Rounds = 4
    """Corrections tried for one failure before it is dropped and counted."""
    kept_after_event: ControlSteps = 8
    """Steps of the loser kept after the last progress, for failures that are no irreversible event; about a chunk."""
    patience: ControlSteps = 16
    """Steps without progress after which the policy counts as stuck."""
    regress: Fraction = 0.15
    """Loss of progress after which the policy counts as deviating."""
    correction_limit: ControlSteps = 170
    """Steps within which the corrector must succeed."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.rollback_steps
        if low > high:
            raise ValueError(f"rollback_steps is [{low}, {high}]; write the smaller number first")
        if self.pairs > self.max_episodes:
            raise ValueError(
                f"pairs is {self.pairs} but max_episodes is {self.max_episodes} and an episode gives at most one; "
                "raise max_episodes"
            )
        return self

    def rollback(self) -> dict[str, Any]:
        """The fields of `envs.rollback.RollbackConfig`."""
        shared = self.model_dump(exclude={"pairs", "max_episodes", "corrector", "rollback_steps"})
        return shared | {"min_rollback": self.rollback_steps[0], "max_rollback": self.rollback_steps[1]}


class OptimiseConfig(FlowConfig):
    """One round of preference optimisation."""

    steps: PositiveInt = 1500
    batch_size: Rows = 64
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 50
    final_lr_fraction: Fraction = 0.1
    train: AtLeastOne[Literal["vision", "vlm", "expert"]] = ("expert",)
    """Parameter groups; with `expert` alone the prefix is computed once for the whole round."""
    stored_prefix_gib: NonNegativeFloat = 8.0
    """Prefixes that stay the same in a round, of the policy or of the reference, are kept in CPU memory if all of them
    take at most so much, else each step computes its own: equal up to rounding, and slower."""


class ObjectiveConfig(Section):
    """Settings of a preference method; those that imitate have none, and ablations leave out a term."""

    beta: PositiveFloat = 1.0
    lambda_pro: NonNegativeFloat = 1.0
    lambda_sft: NonNegativeFloat = 1.0
    reference: Literal["previous", "sft"] = "previous"
    """Frozen policy of the implicit rewards: the previous round's or the one after SFT."""


class BuffersConfig(Section):
    """Shares of a batch. From the paper: 80/20, then 70/15/15 (arXiv:2606.14409, section 4.2)."""

    mix_first: tuple[Fraction, Fraction] = (0.8, 0.2)
    """Round 1: this round's pairs, demonstrations."""
    mix_later: tuple[Fraction, Fraction, Fraction] = (0.7, 0.15, 0.15)
    """Later rounds: this round's pairs, older pairs, demonstrations."""

    @field_validator("mix_first", "mix_later")
    @classmethod
    def _sums_to_one(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not abs(sum(shares) - 1) <= 1e-6:
            raise ValueError(f"shares {list(shares)} sum to {sum(shares):g}; they must sum to 1")
        return shares


class EvalConfig(Section):
    """Evaluation episodes; the same environment seeds for every policy, so that results can be paired."""

    episodes: PositiveInt = 100
    """Episodes of each task and variant."""
    seeds: Literal["held_out", "development"] = "held_out"
    """held_out is for reported numbers only; tune on development."""
    robotwin_seed: Annotated[int, Field(ge=0, le=20_000)] = 0
    """In RoboTwin, the `seed` of its own evaluation: episodes begin at environment seed 100000 (1 + this)."""
    instructions: Literal["seen", "unseen"] = "unseen"
    """Which half of the instruction templates; demonstrations and pairs use the seen ones."""
    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction."""
