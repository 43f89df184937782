"""What every section of the configuration shares: strictness, types of numbers, and how something is optimised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, PositiveInt, model_validator

from rewards.config import read_config

Settings = TypeVar("Settings")
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Backend = Literal["lab", "trl"]
"""Who trains: our Learner, or TRL's trainer, from checkpoint to checkpoint."""


def reader(kind: type[Settings], prepare: Callable[[Any], Any] = lambda value: value) -> PlainValidator:
    """Plain data to the settings of a leaf library, which checks them itself."""

    def read(value: Any) -> Settings:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("expected keys with values")
        return read_config(kind, prepare(value), "")

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

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The adapters' product counts alpha / rank times."""
    targets: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = ("attention", "mlp")
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
    threads: PositiveInt = 1
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

    batch_size: PositiveInt
    ema: Fraction = 0.0
    """Decay of the weight average that is kept as the model; 0 keeps the last weights."""
    ema_start: NonNegativeInt = 200
    """Step at which averaging begins."""
