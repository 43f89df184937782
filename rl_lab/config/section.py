"""What every section of the configuration shares: strictness, types of numbers, and how something is optimised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

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
