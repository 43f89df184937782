"""Settings of a study: one experiment in several worlds, by several methods, with several training seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from envs.options import AnyNumber, AtLeastOne, Named, NonNegativeFloat, PositiveFloat, PositiveInt, Rounds, nearest
from rl_lab.config.section import Section

FIXED = (
    *("name", "seed", "study", "method", "controls", "truth"),
    *("workers", "placement", "wandb"),
)
"""What no factor can be: of the whole run, or said by the study itself."""
BASED = ("method", "joint.arms")
"""What is compared where all begin with one evaluated model."""
AS_GIVEN = "given"
"""Name of the world of a study without factors."""
STUDY_FILE = "study.json"
MethodName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SpreadConfig(Section):
    """Measured standard deviations of a paired difference; see `rl_lab.common.stats.Spread`."""

    items: NonNegativeFloat
    """Between evaluation episodes, or held-out questions."""
    seeds: NonNegativeFloat
    """Between training seeds, of the mean over all of them."""
    rest: NonNegativeFloat
    """What is left: of one episode or question and one training seed."""
    n: PositiveInt
    """Episodes or questions on which they were measured."""
    replicates: Rounds
    """Training seeds on which they were measured; few seeds give a rough value."""
    source: str
    """The run that they come from."""


def read_spread(value: Any) -> Any:
    """A path to an earlier study.json, or its run folder, as the spread that it measured; anything else as it is.

    Of several comparisons the root mean square of each part. ValueError where none was measured.
    """
    if not isinstance(value, str):
        return value
    path = Path(value) / STUDY_FILE if Path(value).is_dir() else Path(value)
    try:
        summary = json.loads(path.read_text())
        found = [one for row in summary["rows"] for one in row["methods"] if one.get("spread")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no {STUDY_FILE} ({type(error).__name__}); name one, or give the numbers"
        ) from error
    if not found:
        raise ValueError(f"{path} measured no spread: that takes two training seeds or more; give the numbers instead")
    parts = {
        name: math.sqrt(sum(one["spread"][name] ** 2 for one in found) / len(found))
        for name in ("items", "seeds", "rest")
    }
    basis = {"n": min(one["n"] for one in found), "replicates": min(one["seeds"] for one in found)}
    return parts | basis | {"source": f"{summary['name']}, {len(found)} comparisons, {path}"}


@dataclass(frozen=True)
class World:
    """One setting of all factors."""

    name: str
    """Of its nodes."""
    levels: dict[str, Any] = field(default_factory=dict)
    """By factor its value here; factors that are left out are as the file has them."""


@dataclass(frozen=True)
class Place:
    """Where methods are compared: at a value of a factor, or in the one world."""

    factor: str | None
    value: Any
    worlds: tuple[str, ...]
    """Those that have the value."""
    first: tuple[str, ...]
    """The first worlds that are the same. Where one factor is varied at a time, each value that the file has gives the
    file's own world, whose comparisons count once."""


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class Study(Section):
    """The experiment in other worlds, whose stages are shared wherever they are the same."""

    factors: Named[Key, AtLeastOne[Any]] = {}
    """By key of this file, such as collect.pairs, the values that it takes."""
    design: Literal["each", "all"] = "each"
    """each: one factor at a time, the others as the file has them. all: every combination."""
    compare: Literal["method", "eval.join", "curriculum.scheme", "joint.arms"] = "method"
    """What the methods are: ways to train, each with rounds of its own, ways to execute the chunks of one policy, ways
    to choose questions, or arms of joint training."""
    methods: AnyNumber[str] = ()
    """What is compared: values of the key that `compare` names."""
    rewards: Named[MethodName, Any] = {}
    """By name, in place of `methods`: a whole section `rewards` to train on; {} is the default one. What examinations
    score by stays: `truth`, or the file's own `rewards`."""
    rankings: Named[MethodName, Any] = {}
    """By name, in place of `methods`: a whole section `ranking`; {} for pairs of interventions alone."""
    variants: Named[MethodName, Named[Key, Any]] = {}
    """By name, in place of `methods`: what a model without rounds has in place of this file's values, by key such as
    sft.code_weight."""
    measure: Literal["success", "reward"] = "success"
    """What variants are judged by: success in episodes, or the reward of answers to held-out questions."""
    control: str
    """The method that the others are held against; of methods and of arms also base, the policy or model that they all
    start from."""
    seeds: Rounds = 5
    """Training seeds: the file's and those that follow it. All of a run depends on one but scenes of evaluation and
    questions. One alone makes no interval."""
    spread: Annotated[SpreadConfig | PositiveFloat | None, BeforeValidator(read_spread)] = None
    """Standard deviation over training seeds of the difference in success (or reward) to the control, or an earlier
    study.json, whose parts it has; says before the start what the study can show."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if sum(map(bool, (self.methods, self.rewards, self.rankings, self.variants))) != 1:
            raise ValueError("give one of methods, rewards, rankings and variants: a study compares one kind of thing")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"methods: {list(self.methods)} repeat one; name each once")
        if self.measure == "reward" and not self.variants:
            raise ValueError("measure is for variants; what else is compared says by itself what it is judged by")
        if self.control not in self.names and not (self.compared in BASED and self.control == "base"):
            hint = nearest(self.control, self.names)
            raise ValueError(f"control is {self.control!r}, which is not one of {', '.join(self.names)}{hint}")
        if not self.others:
            raise ValueError(f"there is only the control, {self.control}; name what is held against it")
        for key, values in self.factors.items():
            if key.partition(".")[0] in FIXED or f"{key}.".startswith(f"{self.compared}."):
                raise ValueError(f"factors: {key} is the whole run's, or said by the study; vary something else")
            if len(set(map(_slug, values))) < len(values):
                raise ValueError(f"factors: {key} has a value twice: {list(values)}; name each once")
        return self

    @model_validator(mode="after")
    def _varies(self) -> Self:
        for name, changes in self.variants.items():
            for key in changes:
                if key.partition(".")[0] in FIXED:
                    raise ValueError(f"variants: {key} of {name} is the whole run's; vary something else")
                if key in self.factors:
                    raise ValueError(f"variants: {key} of {name} is a factor too; leave one of both out")
        return self

    @property
    def compared(self) -> str:
        """The key that differs between the methods, or `variants`."""
        own = {"rewards": self.rewards, "ranking": self.rankings, "variants": self.variants}
        return next((key for key, given in own.items() if given), self.compare)

    @property
    def executes(self) -> bool:
        """Whether ways to execute the chunks of one policy are compared."""
        return self.compared == "eval.join"

    @property
    def on_arms(self) -> bool:
        """Whether arms of joint training are compared, by both skills."""
        return self.compared == "joint.arms"

    @property
    def on_questions(self) -> bool:
        """Whether the methods are judged by answers to held-out questions, not by episodes."""
        return self.compared in ("rewards", "curriculum.scheme") or self.measure == "reward"

    @property
    def names(self) -> tuple[str, ...]:
        """All methods."""
        return (*self.methods, *self.rewards, *self.rankings, *self.variants)

    @property
    def others(self) -> tuple[str, ...]:
        """The methods that are held against the control."""
        return tuple(name for name in self.names if name != self.control)

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

    def places(self, config: Mapping[str, Any]) -> list[Place]:
        """Where methods are compared in the order in which it is reported, by what the file holds."""
        every = self.worlds()
        if not self.factors:
            alone = tuple(world.name for world in every)
            return [Place(None, None, alone, alone)]
        found: list[Place] = []
        own: tuple[str, ...] | None = None
        for key, values in self.factors.items():
            for value in values:
                worlds = first = tuple(one.name for one in every if key in one.levels and one.levels[key] == value)
                if self.design == "each" and _setting(config, key) == value:
                    first = own = own or worlds
                found.append(Place(key, value, worlds, first))
        return found


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """What a file has at a dotted key; None where it has nothing."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _named(key: str, value: Any) -> str:
    """Such as pairs-10, of which nodes begin their names."""
    return f"{key.rpartition('.')[2]}-{_slug(value)}"


def _slug(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", json.dumps(value)).strip("-") or "none"
