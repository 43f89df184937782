"""Settings of a reward sweep: the same training under several rewards, judged by one truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from envs.options import Named, NonNegativeFloat, PositiveInt, Rounds, nearest
from rewards.config import RewardConfig
from rl_lab.config.actions import RankingConfig
from rl_lab.config.language import Rewards
from rl_lab.config.section import Section

VariantName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SpreadConfig(Section):
    """Measured standard deviations of a paired difference; see `rl_lab.stats.Spread`."""

    items: NonNegativeFloat
    """Between held-out items, or episodes."""
    seeds: NonNegativeFloat
    """Between training seeds, of the mean over all items."""
    rest: NonNegativeFloat
    """What is left: of one item and one training seed."""
    n: PositiveInt
    """Held-out items, or episodes, on which they were measured."""
    replicates: Rounds
    """Training seeds on which they were measured; few seeds give a rough value."""
    source: str
    """The run that they come from."""


def read_spread(value: Any, file: str = "sweep.json") -> Any:
    """A path to an earlier sweep.json (or study.json), or its run folder, as the spread that it measured; anything else
    as it is.

    Of several comparisons the root mean square of each part. ValueError where none was measured.
    """
    if not isinstance(value, str):
        return value
    path = Path(value) / file if Path(value).is_dir() else Path(value)
    try:
        summary = json.loads(path.read_text())
        if "rows" in summary:  # of a study
            made = [one for row in summary["rows"] for one in row["methods"]]
        else:
            made = [row["verdict"] for row in summary["variants"] if row.get("verdict")]
        found = [one for one in made if one.get("spread")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no {file} ({type(error).__name__}); name one, or give the numbers") from error
    if not found:
        raise ValueError(f"{path} measured no spread: that takes two training seeds or more; give the numbers instead")
    parts = {
        name: math.sqrt(sum(one["spread"][name] ** 2 for one in found) / len(found))
        for name in ("items", "seeds", "rest")
    }
    basis = {"n": min(one["n"] for one in found), "replicates": min(one["seeds"] for one in found)}
    return parts | basis | {"source": f"{summary['name']}, {len(found)} comparisons, {path}"}


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
