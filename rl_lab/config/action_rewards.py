"""Settings of learned rewards of actions: what they learn from, how, and how sampled chunks are ranked by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from algos.methods import find_method
from rl_lab.config.section import (
    AtLeastOne,
    ControlSteps,
    Fraction,
    Named,
    NonNegativeFloat,
    NonNegativeInt,
    OptimiserConfig,
    PositiveFloat,
    PositiveInt,
    Rows,
    Section,
)

Learned = Literal["success", "progress", "world_model"]
"""Kinds of reward models that are trained; see `rewards.actions`."""
LEARNED: tuple[Learned, ...] = ("success", "progress", "world_model")
Ranker = Literal["success", "progress", "world_model", "deviation", "random"]
"""What chunks can be ranked by: a trained model, the distance to the expert, or chance (a control)."""


class RecordConfig(Section):
    """Episodes of the base policy, successes and failures with their pictures, that reward models learn from."""

    episodes: PositiveInt = 120
    """Over all tasks and variants."""
    execute: ControlSteps = 4
    """Commands of each predicted chunk that are run before the next prediction; a picture is kept at each."""


class RewardModelsConfig(OptimiserConfig):
    """Training of each reward model."""

    kinds: AtLeastOne[Learned] = LEARNED
    members: Annotated[Rows, Field(ge=2)] = 2
    """Of each ensemble; where they disagree about two chunks, no preference is made."""
    latent: Rows = 64
    """Numbers that a picture is encoded in."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the recorded episodes that the card is measured on; as many others calibrate its probabilities."""
    demonstrations: bool = False
    """Learn from the demonstrations as well, which a policy that never succeeds needs."""
    steps: PositiveInt = 400
    batch_size: Rows = 32
    """Rows of each member."""
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 20
    final_lr_fraction: Fraction = 0.1


class CandidatesConfig(Section):
    """Chunks that the policy samples in states of its own episodes, each run in the simulator."""

    states: PositiveInt = 160
    """Over all tasks and variants."""
    states_per_episode: Rows = 4
    samples: Annotated[Rows, Field(ge=2)] = 5
    """Chunks of each state."""
    execute: ControlSteps = 4
    """Commands of each chunk that are run before the next prediction, except for the sampled one, which runs whole."""
    decisions: NonNegativeInt = 2
    """Predictions that follow the sampled chunk before models of pictures look at where it led."""


class RankingConfig(Section):
    """Preference pairs from the best and the worst chunk of a state, beside those of interventions."""

    weights: Named[Ranker, PositiveFloat] = {}
    """Rewards by which chunks are ranked, each in standard deviations within states; {} for no such pairs."""
    margin: NonNegativeFloat = 1.0
    """Smallest difference between the best and the worst, in the same unit, that makes a pair."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Part of the share of this round's pairs in a batch that ranked pairs get."""

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Reward models that it needs."""
        return tuple(kind for kind in LEARNED if kind in self.weights)

    def mix(self, shares: tuple[float, ...]) -> tuple[float, ...]:
        """Shares of a batch with those of ranked pairs behind them; as they are without any."""
        if not self.weights:
            return shares
        return (shares[0] * (1 - self.share), *shares[1:], shares[0] * self.share)


def check_rankings(config: Any) -> None:
    """ValueError unless every ranking of a run finds the reward models and the rounds that it needs."""
    if "reward_models" in config.stage_names and config.placement.ranks > 1:
        raise ValueError("reward_models: an ensemble learns in one process; set placement.learner.ranks to 1")
    sweep = config.sweep.rankings if config.sweep is not None else {}
    rankings: Mapping[str, RankingConfig] = {f"sweep.rankings.{name}": one for name, one in sweep.items()}
    if "rank" not in config.stage_names:
        if config.ranking.weights:
            raise ValueError("ranking: nothing is ranked; add rank before optimise to the repeated stages")
        return
    if sweep:
        _check_sweep(config)
    elif not config.ranking.weights:
        raise ValueError("ranking.weights is empty; name a reward, or leave rank out of the repeated stages")
    for where, ranking in (rankings or {"ranking": config.ranking}).items():
        missing = [kind for kind in ranking.learned if kind not in config.reward_models.kinds]
        if ranking.learned and "reward_models" not in config.stage_names:
            raise ValueError(
                f"{where}: {ranking.learned[0]} is a trained model; add reward_models to stages, after sft"
            )
        if missing:
            raise ValueError(f"{where}: {missing[0]} is not among reward_models.kinds; add it there")
    if find_method(config.method).rows != "tuples":
        raise ValueError(f"ranking: {config.method} does not learn from single states; use a method such as rpro")


def _check_sweep(config: Any) -> None:
    if config.num_rounds != 1:
        raise ValueError(f"sweep: rankings are compared after one round, but repeat is {config.num_rounds}")
    if config.controls:
        raise ValueError(
            "sweep: every variant runs the same method, so there is nothing for controls; set controls: []"
        )
