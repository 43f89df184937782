"""Rewards of a configuration, with the learned models that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.spatial_qa.items import Item
from rewards.compose import Rewards
from rewards.config import RewardConfig


def make_rewards(config: RewardConfig | None) -> Rewards:
    """Rewards with their models, which are loaded at the first call.

    ValueError as `Rewards`; UserError for a folder that holds no reward model of answers.
    """
    if config is None or not config.models:
        return Rewards(config)
    from rl_lab.language.outcome_model import OutcomeReward  # here, because it imports the model

    return Rewards(config, models={name: OutcomeReward(Path(model.path)) for name, model in config.models.items()})


def reward_columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """What a reward is told of each answer's question, as columns: all of it, pictures included."""
    records = [item.record() | {"images": item.images} for item in items]
    return {name: [record[name] for record in records] for name in records[0] if name != "prompt"}
