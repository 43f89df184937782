"""What every section of the configuration shares: strictness, types of numbers, optimisation, the model of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from algos.chunks import FirstSlot
from envs.by_name import OwnName
from envs.options import (
    AtLeastOne,
    ControlSteps,
    Fraction,
    Named,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Processes,
    Rounds,
    Rows,
    in_words,
)

Backend = Literal["lab", "trl"]
"""Who trains: our Learner, or TRL's trainer, from checkpoint to checkpoint."""

OptimiserName = Literal["adamw", "adafactor"]
ScheduleName = Literal["cosine", "linear", "constant", "warmup_stable_decay"]
"""As transformers calls them."""


class Section(Options):
    """A part of the configuration."""


def in_own_words(kind: type[Options]) -> WrapValidator:
    """Options of a leaf library as a section: their errors are the library's."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as failure:
            raise ValueError(in_words(kind, failure)) from failure

    return WrapValidator(validate)


class LoRAConfig(Section):
    """Low-rank adapters on the trained parameter groups (arXiv:2106.09685); the weights under them stay as they are."""

    rank: Rows = 16
    """Inner size of each adapter."""
    alpha: PositiveFloat = 32.0
    """The adapters' product counts alpha / rank times."""
    targets: AtLeastOne[Literal["attention", "mlp"]] = ("attention", "mlp")
    """Which products of every layer are adapted."""


LACKING_IN_TRL = ("lora", "ema", "rows_at_once", "code_weight", "global_weight")
"""Settings of a training that its backend trl does not read."""


class ScheduleConfig(Section):
    """Optimiser, learning rate with linear warm-up and a fall to a fraction of `lr`, and what is trained how."""

    steps: PositiveInt
    """Optimiser steps."""
    lr: PositiveFloat = 3e-4
    """Learning rate after the warm-up, the largest of the schedule; chosen here for small models."""
    warmup: NonNegativeInt = 20
    """Optimiser steps in which the rate rises linearly from 0."""
    schedule: ScheduleName = "cosine"
    """How the rate falls after the warm-up, by transformers' names. warmup_stable_decay: not at all, and then by a
    cosine."""
    decay_fraction: Fraction = 0.2
    """Share of the steps, the last ones, in which warmup_stable_decay falls."""
    final_lr_fraction: Fraction = 0.1
    """Rate at the last step, as a part of `lr`; 1 keeps it."""
    optimiser: OptimiserName = "adamw"
    """torch's AdamW (betas 0.9, 0.95), or its Adafactor (arXiv:1804.04235): of a matrix it keeps a number a row and one
    a column, not two of each weight, and `lr` is relative to the size of the weights, so larger: 1e-3 to 1e-2."""
    weight_decay: NonNegativeFloat = 1e-4
    """The optimiser's, of all trained weights."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient of all trained weights together; 1 as in the released SFT code of Hy-VLA."""
    lora: LoRAConfig | None = None
    """Train adapters instead of the weights; the finished model has them merged. None: all weights of the groups."""
    gradient_checkpointing: bool = False
    """Compute every layer again in the backward pass instead of keeping its activations: less memory, more time."""
    rows_at_once: Rows | None = None
    """Rows that go through the model together; a larger batch is learned in parts, whose gradients add up to its own.
    None: all of them."""
    threads: Processes = 1
    """Threads of the learner on CPU; another number gives other rounding, so it is part of the result."""

    @model_validator(mode="after")
    def _schedule_has_them(self) -> Self:
        idle = [] if self.schedule == "warmup_stable_decay" else ["decay_fraction"]
        idle += ["final_lr_fraction"] if self.schedule == "constant" else []
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"schedule is {self.schedule}, which has no {name}; leave it out, or take another")
        return self

    @model_validator(mode="after")
    def _trl_has_it(self) -> Self:
        for name in LACKING_IN_TRL if getattr(self, "backend", "lab") == "trl" else ():
            if getattr(self, name, None):
                raise ValueError(
                    f"backend is trl, which runs here without {name}; leave {name} out, or use backend: lab"
                )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup} but steps is {self.steps}; warm up for fewer steps than there are"
            )
        return self


NUM_CODES = 64


class VisionLossesConfig(Section):
    """Auxiliary losses of vision tokens, which `algos.auxiliary` has; part of a training's settings."""

    code_weight: NonNegativeFloat = 0.0
    """Weight of HY-Embodied's loss of the next visual code, from every vision token; 0 for none. A k-means over patches
    of the first pictures stands for the teacher's codebook."""
    num_codes: Annotated[int, Field(ge=2, le=65536)] = NUM_CODES
    """Codes of that codebook."""
    global_weight: NonNegativeFloat = 0.0
    """Weight of HY-Embodied's global loss; 0 for none. The mean of an image's tokens stands for its latent token, the
    principal components of the first pictures' thumbnails for the teacher's global feature."""

    @model_validator(mode="after")
    def _codes_are_told(self) -> Self:
        if self.num_codes != NUM_CODES and not self.code_weight:
            raise ValueError(
                f"num_codes is {self.num_codes}, but code_weight is 0, so no code is learned; set it, or leave "
                "num_codes out"
            )
        return self

    @property
    def auxiliary(self) -> dict[str, float]:
        """The weights of auxiliary losses of vision tokens that are above 0, by key."""
        weights = {name: getattr(self, name, 0.0) for name in ("probe_weight", "code_weight", "global_weight")}
        return {name: weight for name, weight in weights.items() if weight > 0}


class OptimiserConfig(ScheduleConfig):
    """The same on batches of a data set."""

    batch_size: Rows = 32
    """Rows of an optimiser step."""
    ema: Fraction = 0.0
    """Decay of the weight average that is kept as the model; 0 keeps the last weights."""
    ema_start: NonNegativeInt = 200
    """Step at which averaging begins."""


class TextTrainingConfig(OptimiserConfig):
    """The same for the vision-language model, by our Learner or by TRL."""

    backend: Backend = "lab"
    """Who trains: our Learner, or TRL's trainer, which keeps no state to resume from."""


class OnlineConfig(ScheduleConfig):
    """The same on texts that are sampled on the way, as they are needed or once before."""

    warmup: NonNegativeInt = 5
    weight_decay: NonNegativeFloat = 0.0
    train: AtLeastOne[Literal["vision", "vlm"]] = ("vision", "vlm")
    """Parameter groups."""
    examine_every: NonNegativeInt = 20
    """Steps between short examinations on the held-out questions, one answer each; 0 for none."""


Preset = Literal["nano", "small", "mini", "mot-2b", "state"]

STATE_POLICY = "rl_lab.model.policies.state:StatePolicy"
"""Code of the preset `state`."""
STATE_CHUNK = 8
"""Its commands of a chunk, as nano's."""


class MemoryConfig(Section):
    """Past frames that the policy sees (memory encoder of Hy-VLA, no weights of its own)."""

    frames: Annotated[int, Field(ge=2, le=64)] = 6
    """K, with the present one."""
    interval: ControlSteps = 5
    """Commands between two of them."""
    layer_stride: Rounds | None = None
    """Every so many blocks of the vision tower frames meet; None: as the preset or the checkpoint says (4)."""


class ModelConfig(Section):
    """The policy that SFT starts from."""

    preset: Preset = "nano"
    """Random weights of these sizes; ignored when `path` is given. state is the policy of studies: small, of one task,
    it reads the simulator's truth and sees nothing; see docs/studies.md."""
    path: str | None = None
    """A checkpoint folder to start from instead."""
    prediction: Literal["velocity", "action"] | None = None
    """What the expert outputs; None: as the preset or the checkpoint says. Small models learn faster with action."""
    time_density: Literal["beta", "uniform"] | None = None
    """Density of the flow time in training; None: as the preset or the checkpoint says."""
    loss_weight_clip: Fraction | None = None
    """t_min of the weight (t / max(t, t_min))^2 on the velocity error, 0 for none; None: as the preset says."""
    chunk_size: ControlSteps | None = None
    """Commands of a chunk; None: as the preset or the checkpoint says."""
    image_size: Pixels | None = None
    """Side of the pictures that it takes; as env.image_size then. None: as the preset or the checkpoint says."""
    absolute_half: bool | None = None
    """Predict every chunk twice, relative to its start and absolute, and command the mean; None: as the checkpoint."""
    first_slot: FirstSlot | None = None
    """Slot 0 of a chunk is the next command, or (as released) the pose at its start; None: as the checkpoint, next."""
    visual_segment_isolation: bool | None = None
    """An image's tokens see their own image only (as Hy-VLA's RoboTwin policy); None: as the preset or checkpoint."""
    memory: MemoryConfig | None = None
    """None: as the checkpoint, else the present frame alone."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Of weights and layers; None: as the checkpoint, float32 without one. auto: of the two the one in which a step of
    the first training takes less time here; as None where none is trained. Training keeps float32 master weights."""
    code: OwnName | None = None
    """A policy of one's own in place of this architecture, FILE.py:CLASS or MODULE:CLASS; see docs/policies.md. With
    it hold chunk_size (8 where nothing is given), first_slot, memory, and path, a checkpoint of that class."""
    settings: Named[str, bool | int | float | str] = {}
    """Arguments of own code, by name."""

    @model_validator(mode="before")
    @classmethod
    def _state_is_code(cls, value: Any) -> Any:
        """The preset `state` is a class as one of one's own."""
        if isinstance(value, dict) and value.get("preset") == "state":
            return {"chunk_size": STATE_CHUNK, "code": STATE_POLICY} | {k: v for k, v in value.items() if v is not None}
        return value

    @property
    def named_dtype(self) -> Literal["float32", "bfloat16"] | None:
        """`dtype`, None where it is to be chosen by measurement."""
        return None if self.dtype == "auto" else self.dtype

    @property
    def reads_truth(self) -> bool:
        """Whether it is the policy of studies."""
        return self.code == STATE_POLICY

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if self.code is None:
            if self.settings:
                raise ValueError("settings is for code of one's own; give code, or leave it out")
            return self
        fields, both = type(self).model_fields, {"path", "chunk_size", "first_slot", "memory", "code", "settings"}
        ours = [name for name, field in fields.items() if name not in both and getattr(self, name) != field.default]
        if self.memory is not None and self.memory.layer_stride is not None:
            ours.append("memory.layer_stride")
        if self.reads_truth:
            ours = [name for name in ours if name != "preset"]
        if ours:
            raise ValueError(f"{ours[0]} is for our own architecture, but code names another; leave it out")
        return self

    def options(self) -> dict[str, Any]:
        """The model options that are set here, but for those of chunks."""
        fields = {"prediction", "time_density", "loss_weight_clip", "visual_segment_isolation"}
        options = self.model_dump(include=fields, exclude_none=True)
        if self.loss_weight_clip == 0:
            options["loss_weight_clip"] = None
        if self.image_size is not None:
            options["resize_imgs_with_padding"] = [self.image_size, self.image_size]
        if self.memory is not None:
            options["use_video_encoder"] = True
            if self.memory.layer_stride is not None:
                options["spacetime_layer_stride"] = self.memory.layer_stride
        return options

    def chunk_options(self, num_tokens: int, has_absolute: bool) -> dict[str, Any]:
        """The same of chunks, for a model of `num_tokens` action tokens, of which half may be absolute poses."""
        commands = self.chunk_size or num_tokens // (2 if has_absolute else 1)
        tokens = commands * (2 if self.predicts_absolute(has_absolute) else 1)
        return {"chunk_size": tokens, "n_action_steps": tokens}

    def predicts_absolute(self, has_absolute: bool) -> bool:
        """Whether half of the action tokens are absolute poses, where the checkpoint has them or has not."""
        return has_absolute if self.absolute_half is None else self.absolute_half
