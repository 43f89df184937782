"""Settings of a study: one experiment in several worlds, by several methods, with several training seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from envs.options import AnyNumber, AtLeastOne, Named, PositiveFloat, nearest
from rl_lab.config.section import Section
from rl_lab.config.spread import SpreadConfig, read_spread

FIXED = ("name", "seed", "study", "sweep", "method", "controls", "replicates", "workers", "placement", "wandb")
"""What no factor can be: of the whole run, or said by the study itself."""
AS_GIVEN = "given"
"""Name of the world of a study without factors."""
read_study = partial(read_spread, file="study.json")


@dataclass(frozen=True)
class World:
    """One setting of all factors."""

    name: str
    """Of its nodes."""
    levels: dict[str, Any] = field(default_factory=dict)
    """By factor its value here; factors that are left out are as the file has them."""


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class StudyConfig(Section):
    """The experiment in other worlds, whose stages are shared wherever they are the same."""

    factors: Named[Key, AtLeastOne[Any]] = {}
    """By key of this file, such as collect.pairs, the values that it takes."""
    design: Literal["each", "all"] = "each"
    """each: one factor at a time, the others as the file has them. all: every combination."""
    compare: Literal["method", "eval.join", "variants"] = "method"
    """What the methods are: ways to train, each with rounds of its own, ways to execute the chunks of one policy, or
    variants of this file without rounds."""
    methods: Annotated[AnyNumber[str], Field(min_length=2)]
    """What is compared, in place of method and controls, or of eval.join; or names of variants."""
    variants: Named[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Named[Key, Any]] = {}
    """By name, what the policy of a method has in place of this file's values, by key such as sft.code_weight."""
    control: str
    """The method that the others are held against."""
    seeds: Annotated[int, Field(ge=2, le=1000)] = 5
    """Training seeds: the file's and those that follow it. All of a run depends on one but the scenes of evaluation."""
    spread: Annotated[SpreadConfig | PositiveFloat | None, BeforeValidator(read_study)] = None
    """Standard deviation over training seeds of the difference in success to the control, or an earlier study.json,
    whose parts it has; says before the start what the study can show."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if self.control not in self.methods:
            hint = nearest(self.control, self.methods)
            raise ValueError(f"control is {self.control!r}, which is not one of {', '.join(self.methods)}{hint}")
        for key, values in self.factors.items():
            if key.partition(".")[0] in FIXED or key == self.compare:
                raise ValueError(f"factors: {key} is the whole run's, or said by the study; vary something else")
            if len(set(map(_slug, values))) < len(values):
                raise ValueError(f"factors: {key} has a value twice: {list(values)}; name each once")
        return self

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if self.compare != "variants":
            if self.variants:
                raise ValueError(f"variants are given, but compare is {self.compare}; set compare to variants")
            return self
        for name in self.methods:
            if name not in self.variants:
                raise ValueError(f"methods: {name!r} is not one of variants{nearest(name, self.variants)}")
        for name, changes in self.variants.items():
            if name not in self.methods:
                raise ValueError(f"variants: {name} is not one of methods; name it there, or leave it out")
            for key in changes:
                if key.partition(".")[0] in FIXED:
                    raise ValueError(f"variants: {key} of {name} is the whole run's; vary something else")
                if key in self.factors:
                    raise ValueError(f"variants: {key} of {name} is a factor too; leave one of both out")
        return self

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """By method the values that it has in place of the file's; {} where methods have rounds of their own."""
        if self.compare == "method":
            return {}
        return {name: self.variants.get(name, {self.compare: name}) for name in self.methods}

    @property
    def executes(self) -> bool:
        """Whether ways to execute the chunks of one policy are compared."""
        return self.compare == "eval.join"

    @property
    def others(self) -> tuple[str, ...]:
        """The methods that are held against the control."""
        return tuple(name for name in self.methods if name != self.control)

    def worlds(self) -> list[World]:
        """All of them, in the order in which they are reported."""
        named = {key: [(_named(key, value), value) for value in values] for key, values in self.factors.items()}
        if not named:
            return [World(AS_GIVEN)]
        if self.design == "each":
            return [World(name, {key: value}) for key, values in named.items() for name, value in values]
        return [
            World("_".join(name for name, _ in chosen), dict(zip(named, (value for _, value in chosen), strict=True)))
            for chosen in product(*named.values())
        ]

    def at(self, key: str) -> Iterator[tuple[Any, list[str]]]:
        """Each value of a factor with the names of the worlds that have it."""
        worlds = self.worlds()
        for value in self.factors[key]:
            yield value, [world.name for world in worlds if key in world.levels and world.levels[key] == value]


def _named(key: str, value: Any) -> str:
    """Such as pairs-10, of which nodes begin their names."""
    return f"{key.rpartition('.')[2]}-{_slug(value)}"


def _slug(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", json.dumps(value)).strip("-") or "none"
