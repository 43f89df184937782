"""Settings of a reward sweep: the same training under several rewards, judged by one truth."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from envs.options import Named, nearest
from rewards.config import RewardConfig
from rl_lab.config.actions import RankingConfig
from rl_lab.config.language import Rewards
from rl_lab.config.section import Section
from rl_lab.config.spread import SpreadConfig, read_spread

VariantName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SweepConfig(Section):
    """Variants of `rewards`, or of `ranking` in a run on actions. Each replaces that section for training; the truth is
    `rewards` itself in examinations, and success in evaluations."""

    baseline: VariantName
    """The variant that the others are held against."""
    variants: Named[VariantName, Rewards] = {}
    """By name: a whole section `rewards`; {} is the default one."""
    rankings: Named[VariantName, RankingConfig] = {}
    """By name, in place of `variants`: a whole section `ranking`; {} for pairs of interventions alone."""
    spread: Annotated[SpreadConfig | None, BeforeValidator(read_spread)] = None
    """How much training seeds differ, as numbers or as the path of an earlier sweep.json; says before the start what
    the sweep can show."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if self.variants and self.rankings:
            raise ValueError("variants are rewards of answers, rankings those of actions; a sweep compares one kind")
        named = self._named
        if not named:
            raise ValueError("variants and rankings are empty; name at least two of one kind")
        if self.baseline not in named:
            known = ", ".join(named) or "none"
            raise ValueError(
                f"baseline is {self.baseline!r}, which is not one of {known}{nearest(self.baseline, named)}"
            )
        if len(named) < 2:
            key = "rankings" if self.rankings else "variants"
            raise ValueError(f"{key} has only the baseline; name at least one reward to hold against it")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The baseline and the others, in the order in which they are reported."""
        return (self.baseline, *(name for name in self._named if name != self.baseline))

    def sections(self, name: str, scoring: RewardConfig) -> dict[str, Any]:
        """What a variant replaces of the run; what examinations score by stays."""
        if self.rankings:
            return {"ranking": self.rankings[name]}
        return {"rewards": self.variants[name], "truth": scoring}

    @property
    def _named(self) -> tuple[str, ...]:
        return (*self.variants, *self.rankings)
