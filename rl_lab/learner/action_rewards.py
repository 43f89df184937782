"""The training of a reward model of actions as a plan, and its card: how good it is on episodes it has not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.mixing import MixedSampler
from envs.types import Episode
from rewards.actions.ensemble import Ensemble, ModelInfo, RewardObjective
from rewards.actions.networks import FrameBatch, TransitionBatch, progress_targets, success_targets, transitions
from rewards.calibration import examine, fit_platt
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer, stream
from rl_lab.config.actions import RewardModelsConfig
from rl_lab.learner.plans import DataPlan, Parts
from rl_lab.records.episodes import read_episodes

SPLITS = ("train", "calibration", "test")

TARGETS = {"success": success_targets, "progress": progress_targets}


@dataclass
class RewardData:
    """Rows of the training episodes; each member reads them in an order of its own."""

    columns: tuple[torch.Tensor, ...]
    """Of `FrameBatch` or `TransitionBatch`, the members' axis left out, [N, ...] each."""
    batch_type: type[FrameBatch] | type[TransitionBatch]
    samplers: list[MixedSampler]
    rows: Any = None

    def batch(self, step: int) -> FrameBatch | TransitionBatch:
        """See `rl_lab.records.action_datasets.Dataset`."""
        rows = torch.from_numpy(np.stack([sampler.numbers(step) for sampler in self.samplers]))
        return self.batch_type(*(column[rows] for column in self.columns))


@dataclass(frozen=True)
class RewardPlan(DataPlan):
    """The members of one kind of reward model, trained together."""

    kind: str
    settings: RewardModelsConfig
    episodes: Path
    demos: Path | None
    """Demonstrations to learn from as well."""
    horizon: int
    """Commands of a chunk."""
    seed: int

    @property
    def name(self) -> str:
        """See `DataPlan`."""
        return self.kind

    @property
    def learner_seed(self) -> int:
        """See `DataPlan`."""
        return integer(self.seed, "reward", self.kind)

    def _info(self, episodes: Sequence[Episode]) -> ModelInfo:
        views = len(episodes[0].layout.cameras)
        return ModelInfo(self.kind, self.settings.members, self.settings.latent, self.horizon, views=views)

    def build(self, device: str) -> Parts:
        """See `DataPlan`; UserError where the episodes cannot teach this kind."""
        settings, seeds = self.settings, [integer(self.learner_seed, member) for member in range(self.settings.members)]
        episodes = split_episodes(read_episodes(self.episodes), settings.held_out, self.seed)["train"]
        episodes += [] if self.demos is None else read_episodes(self.demos)
        _check_outcomes(self.kind, episodes)
        model = Ensemble(self._info(episodes), seeds).to(device)
        columns: tuple[np.ndarray, ...]
        batch_type: type[FrameBatch] | type[TransitionBatch]
        if self.kind == "world_model":
            columns, batch_type = _transitions(episodes, self.horizon), TransitionBatch
        else:
            columns, batch_type = TARGETS[self.kind](episodes), FrameBatch
        samplers = [MixedSampler([len(columns[0])], [1.0], settings.batch_size, seed) for seed in seeds]
        data = RewardData(tuple(map(torch.from_numpy, columns)), batch_type, samplers)

        def save(folder: Path) -> None:
            trained = model.cpu().eval()
            if self.kind == "world_model":
                trained.set_goals(episodes)
            trained.save(folder)

        return Parts(model, RewardObjective(), data, save)


def _transitions(episodes: Sequence[Episode], horizon: int) -> tuple[np.ndarray, ...]:
    try:
        return transitions(episodes, horizon)
    except ValueError as error:
        raise UserError(f"{error}: set record.execute to a divisor of the chunk's {horizon} commands") from error


def _check_outcomes(kind: str, episodes: Sequence[Episode]) -> None:
    successes = sum(episode.success for episode in episodes)
    if not successes:
        raise UserError(
            f"none of {len(episodes)} episodes succeeded, so {kind} has nothing to aim at; record more of a better "
            "policy, or set reward_models.demonstrations=true"
        )
    if successes == len(episodes) and kind != "world_model":
        raise UserError(
            f"all {successes} episodes succeeded, so {kind} has no failure to tell from; record more episodes"
        )


def split_episodes(episodes: Sequence[Episode], held_out: float, seed: int) -> dict[str, list[Episode]]:
    """Training, calibration and test episodes, successes and failures in the same shares, drawn by the seed."""
    found: dict[str, list[Episode]] = {name: [] for name in SPLITS}
    for outcome in (True, False):
        mine = [episode for episode in episodes if episode.success == outcome]
        order = stream(seed, "reward_split", int(outcome)).permutation(len(mine)).tolist()
        count = round(held_out * len(mine))
        places = {"test": order[:count], "calibration": order[count : 2 * count], "train": order[2 * count :]}
        for name, chosen in places.items():
            found[name] += [mine[place] for place in sorted(chosen)]
    return found


def make_card(model: Path, plan: RewardPlan) -> dict[str, Any]:
    """What a trained model says about the episodes it was not trained on.

    Its scores become probabilities of success by Platt's method on the calibration episodes; everything else is
    measured on the test episodes. `test` is None where one of these has only successes or only failures.
    """
    ensemble = load_ensemble(model)
    splits = split_episodes(read_episodes(plan.episodes), plan.settings.held_out, plan.seed)
    counts = {
        name: {"episodes": len(part), "successes": sum(one.success for one in part)} for name, part in splits.items()
    }
    card = {"kind": plan.kind, "steps": plan.settings.steps, "members": plan.settings.members, "splits": counts}
    card |= {"demonstrations": plan.demos is not None, "test": None, "episodes_per_second": None}
    if not all(0 < counts[name]["successes"] < counts[name]["episodes"] for name in ("calibration", "test")):
        return card
    labels = {name: np.array([float(one.success) for one in part]) for name, part in splits.items()}
    platts = [fit_platt(row, labels["calibration"]) for row in ensemble.score_episodes(splits["calibration"])]
    began = time.perf_counter()
    scores = ensemble.score_episodes(splits["test"])
    card["episodes_per_second"] = len(splits["test"]) / (time.perf_counter() - began)
    probabilities = np.stack([platt(row) for platt, row in zip(platts, scores, strict=True)])
    alone = np.arange(len(splits["test"]), dtype=np.float64)
    return card | {"test": examine(probabilities, labels["test"], 0.5, alone, alone.tolist())}


def load_ensemble(folder: Path) -> Ensemble:
    """A trained reward model of actions. UserError for a folder that holds none or is damaged."""
    try:
        return Ensemble.load(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
