"""Every setting of a run, typed; the defaults are the vetted setting.

A field that a stage reads must be listed for it in `rl_lab.graph.READS`, so that the stage's content hash covers it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from algos.methods import find_method
from envs.tabletop import TASK_NAMES, VARIANTS

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are not coerced, objects do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class EnvConfig(Section):
    """Where episodes happen."""

    backend: Literal["auto", "tabletop", "robotwin"] = "auto"
    """auto: robotwin if the environment variable ROBOTWIN_ROOT is set, else tabletop."""
    tasks: tuple[str, ...] = ("handover_block",)
    variants: tuple[str, ...] = ("clean",)
    """Each task runs in each of these: clean, randomized (lights, colours, table height, cameras, distractors)."""
    image_size: PositiveInt = 64
    """Side of the square camera images, pixels; must be the model's."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for key, known in (("tasks", TASK_NAMES), ("variants", VARIANTS)):
            names = getattr(self, key)
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"{key} has {unknown[0]!r}, which is not one of {', '.join(known)}")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{key} must name at least one, each once, but is {list(names)}")
        return self


class ModelConfig(Section):
    """The policy that SFT starts from."""

    preset: Literal["nano", "small", "mini", "mot-2b"] = "nano"
    """Random weights of these sizes; ignored when `path` is given."""
    path: str | None = None
    """A checkpoint folder to start from instead."""
    prediction: Literal["velocity", "action"] | None = None
    """What the expert outputs; None: as the preset or the checkpoint says. Small models learn faster with action."""
    time_density: Literal["beta", "uniform"] | None = None
    """Density of the flow time in training; None: as the preset or the checkpoint says."""
    loss_weight_clip: Fraction | None = None
    """t_min of the weight (t / max(t, t_min))^2 on the velocity error, 0 for none; None: as the preset says."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and layers; None: as the checkpoint, float32 without one. Training keeps float32 master weights."""

    def options(self) -> dict[str, Any]:
        """The model options that are set here."""
        return self.model_dump(include={"prediction", "time_density", "loss_weight_clip"}, exclude_none=True)


class DemosConfig(Section):
    """Demonstrations of the scripted expert."""

    episodes: PositiveInt = 25
    """Successful episodes of each task and variant."""
    action_noise_m: NonNegativeFloat = 0.0
    """Standard deviation of the noise on executed positions, metres; labels stay clean."""


class LoRAConfig(Section):
    """Low-rank adapters on the trained parameter groups (arXiv:2106.09685); the weights under them stay as they are."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The adapters' product counts alpha / rank times."""
    targets: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = ("attention", "mlp")
    """Which products of every layer are adapted."""


class OptimiserConfig(Section):
    """AdamW with linear warm-up and a cosine to a fraction of `lr`."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    warmup: NonNegativeInt
    final_lr_fraction: Fraction
    weight_decay: NonNegativeFloat = 1e-4
    grad_clip: PositiveFloat = 1.0
    ema: Fraction = 0.0
    """Decay of the weight average that is kept as the policy; 0 keeps the last weights."""
    ema_start: NonNegativeInt = 200
    """Step at which averaging begins."""
    draws_per_sample: PositiveInt = 4
    """(noise, time) draws for one observation: its prefix is computed once for all of them."""
    lora: LoRAConfig | None = None
    """Train adapters instead of the weights; the finished policy has them merged. None: all weights of the groups."""
    gradient_checkpointing: bool = False
    """Compute every layer again in the backward pass instead of keeping its activations: less memory, more time."""
    threads: PositiveInt = 1
    """Threads of the learner on CPU; another number gives other rounding, so it is part of the result."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup} but steps is {self.steps}; warm up for fewer steps than there are"
            )
        return self


class SFTConfig(OptimiserConfig):
    """Flow matching on the demonstrations, everything trainable."""

    steps: PositiveInt = 600
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100
    final_lr_fraction: Fraction = 0.05
    ema: Fraction = 0.995
    probe_weight: NonNegativeFloat = 1.0
    """Weight of the auxiliary loss on simulator ground truth, a stand-in for spatial pre-training; 0 for none."""


class CollectConfig(Section):
    """Preference pairs: the policy fails, the simulator is rolled back, the corrector shows how; in control steps."""

    pairs: PositiveInt = 60
    """Pairs of each round, over all tasks."""
    max_episodes: PositiveInt = 400
    """Episodes after which a round stops short of `pairs`."""
    corrector: Literal["scripted_expert"] = "scripted_expert"
    """Who shows the better continuation."""
    execute: PositiveInt = 4
    """Commands of each predicted chunk that are run before the next prediction."""
    rollback_steps: tuple[PositiveInt, PositiveInt] = (12, 32)
    """Range of the random distance from the shared start to the failure."""
    further_rollback: PositiveInt = 12
    """Roll back this much more after each correction that fails."""
    max_corrections: PositiveInt = 4
    """Corrections tried for one failure before it is dropped and counted."""
    kept_after_event: PositiveInt = 8
    """Steps of the loser kept after the last progress, for failures that are no irreversible event; about a chunk."""
    patience: PositiveInt = 16
    """Steps without progress after which the policy counts as stuck."""
    regress: Fraction = 0.15
    """Loss of progress after which the policy counts as deviating."""
    correction_limit: PositiveInt = 170
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


class OptimiseConfig(OptimiserConfig):
    """One round of preference optimisation."""

    steps: PositiveInt = 1500
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 50
    final_lr_fraction: Fraction = 0.1
    train: tuple[Literal["vision", "vlm", "expert"], ...] = ("expert",)
    """Parameter groups; with `expert` alone the prefix is computed once for the whole round."""


class ObjectiveConfig(Section):
    """Settings of a preference method; those that imitate have none, and ablations leave out a term."""

    beta: PositiveFloat = 1.0
    lambda_pro: NonNegativeFloat = 1.0
    lambda_sft: NonNegativeFloat = 1.0
    reference: Literal["previous", "sft"] = "previous"
    """Frozen policy of the implicit rewards: the previous round's or the one after SFT."""


class Repeat(Section):
    """Rounds of the same stages."""

    repeat: PositiveInt
    of: tuple[Literal["collect", "optimise", "evaluate"], ...]

    @field_validator("of")
    @classmethod
    def _in_order(cls, of: tuple[str, ...]) -> tuple[str, ...]:
        if of not in (("collect", "optimise"), ("collect", "optimise", "evaluate")):
            raise ValueError(f"must be [collect, optimise, evaluate] or [collect, optimise], not {list(of)}")
        return of


StageName = Literal["demos", "sft", "evaluate"]
Stage = Annotated[
    Annotated[StageName, Tag("a stage")] | Annotated[Repeat, Tag("a block")],
    Discriminator(lambda value: "a stage" if isinstance(value, str) else "a block"),
]


class WorkersConfig(Section):
    """Ray workers; their number changes the speed, never the result."""

    simulation: PositiveInt = 2
    rollout: Literal[0] = 0
    """vLLM engines; no stage uses them yet."""
    policy: Literal["local", "shared"] = "local"
    """local: every simulation worker acts with a copy of the policy in its own process, on CPU. shared: all ask one
    process, which is on the GPU if the learner is."""
    stages: PositiveInt = 3
    """Stages of the graph that may run at the same time."""


class BuffersConfig(Section):
    """Shares of a batch. From the paper: 80/20, then 70/15/15 (arXiv:2606.14409, section 4.2)."""

    mix_first: tuple[Fraction, Fraction] = (0.8, 0.2)
    """Round 1: this round's pairs, demonstrations."""
    mix_later: tuple[Fraction, Fraction, Fraction] = (0.7, 0.15, 0.15)
    """Later rounds: this round's pairs, older pairs, demonstrations."""

    @field_validator("mix_first", "mix_later")
    @classmethod
    def _sums_to_one(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares {list(shares)} sum to {sum(shares):g}; they must sum to 1")
        return shares


class EvalConfig(Section):
    """Evaluation episodes; the same environment seeds for every policy, so that results can be paired."""

    episodes: PositiveInt = 100
    """Episodes of each task and variant."""
    seeds: Literal["held_out", "development"] = "held_out"
    """held_out is for reported numbers only; tune on development."""
    instructions: Literal["seen", "unseen"] = "unseen"
    """Which half of the instruction templates; demonstrations and pairs use the seen ones."""
    execute: PositiveInt = 4
    """Commands of each predicted chunk that are run before the next prediction."""


class RunConfig(Section):
    """A run. `tabletop:` and `robotwin:` in a file are overrides for that backend and are merged while loading."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: NonNegativeInt = 0
    env: EnvConfig = EnvConfig()
    model: ModelConfig = ModelConfig()
    demos: DemosConfig = DemosConfig()
    sft: SFTConfig = SFTConfig()
    method: str = "rpro"
    """What the rounds optimise with; a name of `algos.methods.METHODS`."""
    controls: tuple[str, ...] = ("continued_sft",)
    """Methods that run beside it from the same SFT policy, with the same rounds and optimiser steps."""
    collect: CollectConfig = CollectConfig()
    optimise: OptimiseConfig = OptimiseConfig()
    objectives: dict[str, ObjectiveConfig] = {}
    """Settings by method name; preference methods without an entry take that of `rpro`."""
    stages: tuple[Stage, ...]
    workers: WorkersConfig = WorkersConfig()
    buffers: BuffersConfig = BuffersConfig()
    eval: EvalConfig = EvalConfig()
    placement: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the learner runs; auto: the GPU if torch sees one."""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    checkpoint_every: PositiveInt = 200
    """Optimiser steps between checkpoints from which a killed run continues."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The method and its controls, in the order in which they are reported."""
        return (self.method, *self.controls)

    def objective(self, method: str) -> ObjectiveConfig:
        """Settings of a method: its own entry, else that of `rpro`, of which most are variants, else the defaults."""
        return self.objectives.get(method, self.objectives.get("rpro", ObjectiveConfig()))

    @property
    def num_rounds(self) -> int:
        """Rounds of the repeated stages, 0 without any."""
        return next((stage.repeat for stage in self.stages if isinstance(stage, Repeat)), 0)

    @model_validator(mode="after")
    def _stages_follow(self) -> Self:
        """Each stage finds what it needs before it; a repeated block comes once, at the end."""
        names = ["repeat" if isinstance(stage, Repeat) else stage for stage in self.stages]
        needs = {"sft": "demos", "evaluate": "sft", "repeat": "sft"}
        if not names:
            raise ValueError("stages is empty; write for example [demos, sft, evaluate]")
        for position, name in enumerate(names):
            if name in names[:position]:
                raise ValueError(f"stages: {name} is there twice")
            if name in needs and needs[name] not in names[:position]:
                raise ValueError(f"stages: {name} needs {needs[name]} before it")
        if "repeat" in names[:-1]:
            raise ValueError("stages: the repeated stages must come last")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.sft.lora is not None and self.model.path is None:
            raise ValueError(
                "sft.lora adapts trained weights, but the preset's are random; give model.path or leave sft.lora out"
            )
        return self

    @model_validator(mode="after")
    def _methods_exist(self) -> Self:
        for key, names in (("method", (self.method,)), ("controls", self.controls), ("objectives", self.objectives)):
            for name in names:
                try:
                    find_method(name)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"controls: {list(self.controls)} repeat a method of the run; name each once")
        return self
