"""What every section of the configuration shares: strictness, types of numbers, and how something is optimised.

Which model a run starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from algos.chunks import FirstSlot
from rewards.config import read_config
from rl_lab.reading import leaves

Settings = TypeVar("Settings")

Key = TypeVar("Key")

Value = TypeVar("Value")

# Every number of a run has bounds, so that a typed zero too many is named at once, not by a machine that is out of
# memory or a plan of a million stages. Each is about ten times what anybody has published or a machine can hold, so it
# stands in nobody's way.
MOST = 10_000_000
"""Steps, episodes, questions: the papers' largest set has a million traces."""

LARGEST = 1e6
"""Rates, weights and amounts: float32 resolves no more beside 1."""

MAX_ROWS = 65_536
"""What a device holds at the same time: rows of a batch, answers to a prompt, members of an ensemble."""

MAX_TOKENS = 2**20
"""Of a context: a million, as the longest of any model."""

MAX_PROCESSES = 1024
"""Of one kind, ranks and threads: a large node has some hundred cores."""

MAX_ROUNDS = 1000
"""What becomes stages of the graph, each with files of its own."""

MAX_PIXELS = 4096
"""Side of an image."""

LONGEST = 10_000
"""Entries of a list or a mapping that a person writes."""

Fraction = Annotated[float, Field(ge=0, le=1)]

PositiveInt = Annotated[int, Field(gt=0, le=MOST)]

NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]

PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]

NonNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST)]

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A signed integer of 64 bits, as JSON readers and simulators take."""

Processes = Annotated[int, Field(gt=0, le=MAX_PROCESSES)]

Rounds = Annotated[int, Field(gt=0, le=MAX_ROUNDS)]

Rows = Annotated[int, Field(gt=0, le=MAX_ROWS)]

Tokens = Annotated[int, Field(gt=0, le=MAX_TOKENS)]

ControlSteps = Annotated[int, Field(gt=0, le=10_000)]
"""Of an episode: 13 minutes at 12.5 Hz."""

Pixels = Annotated[int, Field(gt=0, le=MAX_PIXELS)]

Seconds = Annotated[float, Field(gt=0, le=LARGEST)]
"""Of waiting: twelve days."""

AnyNumber = Annotated[tuple[Value, ...], Field(max_length=LONGEST)]

AtLeastOne = Annotated[tuple[Value, ...], Field(min_length=1, max_length=LONGEST)]

Named = Annotated[dict[Key, Value], Field(max_length=LONGEST)]

Backend = Literal["lab", "trl"]
"""Who trains: our Learner, or TRL's trainer, from checkpoint to checkpoint."""


def reader(
    kind: type[Settings], prepare: Callable[[Any], Any] = lambda value: value, most: Mapping[str, int] | None = None
) -> PlainValidator:
    """Plain data to the settings of a leaf library, which checks them itself but for what no run can mean.

    `most` has the bounds of numbers by dotted name; of others they are MOST and LARGEST.
    """

    def read(value: Any) -> Settings:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("expected keys with values")
        settings = read_config(kind, prepare(value), "")
        for key, number in leaves(dataclasses.asdict(settings)):  # type: ignore[call-overload]
            bound = (most or {}).get(key, MOST if isinstance(number, int) else LARGEST)
            if isinstance(number, int | float) and not abs(number) <= bound:
                raise ValueError(f"{key} is {number}; it must be a number of at most {bound}")
        return settings

    return PlainValidator(read)


AS_DICT = PlainSerializer(dataclasses.asdict)
"""How such settings are written back."""


def check_trl(backend: Backend, **settings: Any) -> None:
    """ValueError for a setting that only our Learner has."""
    for name, value in settings.items():
        if backend == "trl" and value:
            raise ValueError(f"backend is trl, which runs here without {name}; leave {name} out, or use backend: lab")


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are not coerced, objects do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class LoRAConfig(Section):
    """Low-rank adapters on the trained parameter groups (arXiv:2106.09685); the weights under them stay as they are."""

    rank: Rows = 16
    alpha: PositiveFloat = 32.0
    """The adapters' product counts alpha / rank times."""
    targets: AtLeastOne[Literal["attention", "mlp"]] = ("attention", "mlp")
    """Which products of every layer are adapted."""


class ScheduleConfig(Section):
    """AdamW with linear warm-up and a cosine to a fraction of `lr`, and what of the model is trained how."""

    steps: PositiveInt
    lr: PositiveFloat
    warmup: NonNegativeInt
    final_lr_fraction: Fraction
    weight_decay: NonNegativeFloat = 1e-4
    grad_clip: PositiveFloat = 1.0
    lora: LoRAConfig | None = None
    """Train adapters instead of the weights; the finished model has them merged. None: all weights of the groups."""
    gradient_checkpointing: bool = False
    """Compute every layer again in the backward pass instead of keeping its activations: less memory, more time."""
    threads: Processes = 1
    """Threads of the learner on CPU; another number gives other rounding, so it is part of the result."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup} but steps is {self.steps}; warm up for fewer steps than there are"
            )
        return self


class OptimiserConfig(ScheduleConfig):
    """The same on batches of a data set."""

    batch_size: Rows
    ema: Fraction = 0.0
    """Decay of the weight average that is kept as the model; 0 keeps the last weights."""
    ema_start: NonNegativeInt = 200
    """Step at which averaging begins."""


Preset = Literal["nano", "small", "mini", "mot-2b"]


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
    """Random weights of these sizes; ignored when `path` is given."""
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
    absolute_half: bool | None = None
    """Predict every chunk twice, relative to its start and absolute, and command the mean; None: as the checkpoint."""
    first_slot: FirstSlot | None = None
    """Slot 0 of a chunk is the next command, or (as released) the pose at its start; None: as the checkpoint, next."""
    visual_segment_isolation: bool | None = None
    """An image's tokens see their own image only (as Hy-VLA's RoboTwin policy); None: as the preset or checkpoint."""
    memory: MemoryConfig | None = None
    """None: as the checkpoint, else the present frame alone."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and layers; None: as the checkpoint, float32 without one. Training keeps float32 master weights."""

    def options(self) -> dict[str, Any]:
        """The model options that are set here, but for those of chunks."""
        fields = {"prediction", "time_density", "loss_weight_clip", "visual_segment_isolation"}
        options = self.model_dump(include=fields, exclude_none=True)
        if self.loss_weight_clip == 0:
            options["loss_weight_clip"] = None
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
