"""Settings of a reward sweep: the same training under several rewards, judged by one truth."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from rl_lab.config.language import Rewards
from rl_lab.config.section import NonNegativeFloat, Section

VariantName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SpreadConfig(Section):
    """Measured standard deviations of a paired difference; see `rl_lab.reports.spread.Spread`."""

    items: NonNegativeFloat
    seeds: NonNegativeFloat
    rest: NonNegativeFloat
    n: PositiveInt
    """Held-out items on which they were measured."""
    replicates: PositiveInt
    """Training seeds on which they were measured; few seeds give a rough value."""
    source: str
    """The run that they come from."""


class SweepConfig(Section):
    """Variants of `rewards`. Each replaces that section for training; examinations score by `rewards` itself."""

    baseline: VariantName
    """The variant that the others are held against."""
    variants: dict[VariantName, Rewards]
    """By name: a whole section `rewards`; {} is the default one."""
    spread: SpreadConfig | None = None
    """How much training seeds differ, known from an earlier run; says before the start what the sweep can show."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, which is not one of {', '.join(self.variants) or 'none'}")
        if len(self.variants) < 2:
            raise ValueError("variants has only the baseline; name at least one reward to hold against it")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The baseline and the others, in the order in which they are reported."""
        return (self.baseline, *(name for name in self.variants if name != self.baseline))
