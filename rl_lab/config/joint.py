"""Settings of joint training: GRPO and RPRO on one learner, what is measured on the way, and the guard."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from envs.options import AtLeastOne, Fraction, Named, NonNegativeInt, PositiveFloat, PositiveInt, Rounds, nearest
from rl_lab.config.section import Section
from rl_lab.config.study import Key, MethodName

Action = Literal["lower", "freeze", "roll_back"]
Order = Literal["together", "sequence", "grpo_alone", "rpro_alone"]
ISOLATED: tuple[Order, ...] = ("grpo_alone", "rpro_alone")
TRAINS = ("grpo", "rl", "curriculum", "rewards", "collect", "optimise", "buffers", "objectives", "joint")
"""Sections that a variant may change: how an arm trains, not what it begins with or is measured by."""


class GuardConfig(Section):
    """When one objective costs the other's skill too much, and what is done about it."""

    allowed: Fraction = 0.1
    """Fall of a mean reward or success rate that is put up with."""
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.975
    """Of the one-sided bound: harm is found where the fall exceeds `allowed` with this confidence."""
    against: Literal["mean", "start"] = "mean"
    """What a skill is held against, item by item and episode by episode: the mean of its examinations without harm, or
    the first one. Both are unbiased; the best of several noisy examinations is not."""
    actions: AtLeastOne[Action] = ("lower", "roll_back")
    """What is done the first, second, ... time to an objective; the last is repeated. lower: its learning rate. freeze:
    it no longer trains what the other skill reads. roll_back: weights and optimizers of the last examination without
    harm, and a lower rate."""
    lower_by: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """What a rate is multiplied by."""


class VariantConfig(Section):
    """An arm of one's own, a control without the guard."""

    arm: Order
    """The arm whose turns it has."""
    changes: Named[Key, Any] = {}
    """What it has in place of this file's values, by key such as rl.train."""

    @field_validator("changes")
    @classmethod
    def _train_differently(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for key in changes:
            section, _, rest = key.partition(".")
            if section not in TRAINS or rest.partition(".")[0] in ("arms", "variants", "guard"):
                raise ValueError(f"{key} is not a variant's to change; it may change what is in {', '.join(TRAINS)}")
        return changes


class JointConfig(Section):
    """GRPO (sections grpo, rl, curriculum) and RPRO (collect, optimise, buffers, objectives.rpro) on one model."""

    arms: AtLeastOne[str] = ("together", "sequence", "isolated")
    """together, and the controls with the same steps: one part after the other (sequence), and each alone (grpo_alone,
    rpro_alone; isolated: both); and names of variants."""
    variants: Named[MethodName, VariantConfig] = {}
    """Further arms by name; those that `arms` names are run."""
    method: Literal["rpro", "continued_sft"] = "rpro"
    """What RPRO's turns learn by: preference pairs of the policy's failures, or imitation of the demonstrations alone,
    which collects nothing."""
    first: Literal["grpo", "rpro"] = "grpo"
    """The part that comes first in `sequence`."""
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    """synchronous: a fixed order of turns, the same bits whoever is fast. asynchronous: whichever batch is ready."""
    rounds: Rounds = 2
    """Rounds of pairs; each gives `optimise.steps` steps of RPRO."""
    block: PositiveInt = 10
    """Steps of RPRO in one turn; a turn of GRPO is one batch."""
    ratio: tuple[PositiveFloat, PositiveFloat] | None = None
    """Turns of GRPO : turns of RPRO. None: as their numbers, so that both end together."""
    lead: NonNegativeInt = 0
    """Batches of GRPO before the first turn of RPRO, while its first pairs are collected."""
    collect_ahead: NonNegativeInt = 0
    """Turns of RPRO before the end of a round at which the next one's pairs are collected."""
    priority: Literal["share", "grpo", "rpro"] = "share"
    """Asynchronous mode: which of two ready batches comes first; share: that of the part that is behind its share."""
    slack: PositiveInt = 2
    """Asynchronous mode: turns that a part may be ahead of its share."""
    exam_every: PositiveInt = 20
    """Turns between two examinations of both skills."""
    exam_episodes: PositiveInt = 50
    """Episodes of each task and variant in an examination, on development seeds; its questions are those of
    `questions.development`."""
    cosine_every: NonNegativeInt = 5
    """Batches of GRPO between two measurements of the cosine between both gradients; 0 for none."""
    guard: GuardConfig | None = GuardConfig()
    """None: both objectives do as they please."""

    @property
    def names(self) -> list[str]:
        """Names of the arms, in the order in which they run."""
        return [name for arm in self.arms for name in (ISOLATED if arm == "isolated" else (arm,))]

    def order(self, name: str) -> str:
        """The arm whose turns an arm has."""
        return self.variants[name].arm if name in self.variants else name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        known = [*get_args(Order), "isolated", *self.variants]
        for name in self.arms:
            if name not in known:
                raise ValueError(f"arms: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
        for name in self.variants:
            if known.count(name) > 1 or name == "base":
                raise ValueError(f"variants: {name} has another meaning; give it a name of its own")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"arms: {list(self.arms)} names one twice; name each once")
        if self.lead and "together" not in map(self.order, self.names):
            raise ValueError("lead is about the arm together, which arms leaves out; leave lead out too")
        return self


def check_settings(config: Any) -> None:
    """ValueError for settings of a joint run that cannot work together."""
    joint = config.joint
    if config.questions.development < 2 and config.questions.development_file is None:
        raise ValueError(
            f"questions.development is {config.questions.development}, but joint examines on questions of its own, so "
            "that held-out ones stay clean; set it to 60, or give questions.development_file"
        )
    for key in ("rl", "optimise", "sft", "cold_start"):
        if getattr(config, key).lora is not None:
            raise ValueError(f"{key}.lora: both objectives of a joint run train one set of weights; leave lora out")
    if config.optimise.ema:
        raise ValueError("optimise.ema: two objectives step on the weights in turn, so none is averaged; set it to 0")
    for key in ("rl", "cold_start"):
        if getattr(config, key).backend == "trl":
            raise ValueError(f"{key}.backend is trl, which trains by itself; joint needs backend: lab")
    if config.curriculum.mode == "stage":
        raise ValueError("curriculum.mode is stage, whose probes learn nothing; joint needs mode: online")
    if joint.collect_ahead >= -(-config.optimise.steps // joint.block):
        raise ValueError(
            f"joint.collect_ahead is {joint.collect_ahead}, but a round has {-(-config.optimise.steps // joint.block)} "
            "turns (optimise.steps / joint.block); give less"
        )
