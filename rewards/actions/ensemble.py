"""Ensembles of learned action rewards: trained together, saved, and asked what episodes and chunks are worth.

Members differ in their starting weights and in the order of their rows (deep ensembles, arXiv:1612.01474); where they
disagree, nobody knows. The reward of whole episodes is a `def reward(episodes) -> list[float | None]`, None meaning not
applicable. Letters: M members, n episodes, N chunks, V views, S image side, D latent size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.types import Candidates, Episode
from rewards.actions.networks import VIEWS, FrameBatch, FrameScore, TransitionBatch, WorldModel, conditions

WEIGHTS_FILE, INFO_FILE = "reward_model.safetensors", "reward_model.json"

KINDS = ("success", "progress", "world_model")

GROUP = "reward"
"""The one parameter group of an ensemble."""

ROWS = 128
"""Pictures encoded at once when something is scored."""


@dataclass(frozen=True)
class ModelInfo:
    """What an ensemble is, beside its weights."""

    kind: str
    """One of `KINDS`."""
    members: int
    latent: int
    horizon: int
    """Commands H of a chunk."""
    tasks: tuple[str, ...] = ()
    """Tasks that a world model has a goal for, in the order of `Ensemble.goals`."""
    views: int = VIEWS
    """Cameras V; a world model knows two arms as poses and their three only."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        for name, most in (("members", 1000), ("latent", 65536), ("horizon", 10_000), ("views", 1000)):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= most:
                raise ValueError(f"{name} is {value!r}; use a whole number from 1 to {most}")
        if not all(isinstance(task, str) for task in self.tasks):
            raise ValueError(f"tasks are {self.tasks!r}; give names")

    @classmethod
    def read(cls, path: Path) -> ModelInfo:
        """Of a folder's file. ValueError, naming the file, for one that holds something else."""
        try:
            values = json.loads(path.read_bytes())
            return cls(**values | {"tasks": tuple(values["tasks"])})
        except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
            raise ValueError(f"{path} does not describe a reward model: {error}; train it again") from error


class Ensemble(nn.Module):
    """Members of one kind."""

    def __init__(self, info: ModelInfo, seeds: Iterable[int] | None = None) -> None:
        """Random weights of a seed for each member; None where weights follow."""
        super().__init__()
        self.info = info
        members: list[nn.Module] = []
        for _, seed in zip(range(info.members), seeds or range(info.members), strict=True):
            torch.manual_seed(seed)
            world = info.kind == "world_model"
            members.append(WorldModel(info.latent, info.horizon) if world else FrameScore(info.latent, info.views))
        self.members = nn.ModuleList(members)
        self.register_buffer("goals", torch.zeros(info.members, len(info.tasks), info.latent))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """As the learner asks: everything is one group."""
        return {GROUP: list(self.parameters())}

    @torch.no_grad()
    def set_goals(self, episodes: Sequence[Episode]) -> None:
        """Goals of a world model: by task the mean latent at the ends of successful episodes, [M, tasks, D].

        ValueError for a task without any.
        """
        tasks = tuple(sorted({episode.task for episode in episodes}))
        goals = []
        for task in tasks:
            ends = [episode.images[-1] for episode in episodes if episode.task == task and episode.success]
            if not ends:
                raise ValueError(f"no episode of {task} succeeded, so a world model has no goal; record more episodes")
            goals.append(self._latents(np.stack(ends)).mean(1))
        self.info = replace(self.info, tasks=tasks)
        self.goals = torch.stack(goals, dim=1)

    @torch.no_grad()
    def score_episodes(self, episodes: Sequence[Episode]) -> np.ndarray:
        """What the ends of episodes are worth, by member: float64 [M, n]; logits, or minus a distance to the goal."""
        ends = np.stack([np.asarray(episode.images[-1]) for episode in episodes])
        if self.info.kind != "world_model":
            return _numbers(self._logits(ends))
        goals = torch.stack([self._goal(episode.task) for episode in episodes], dim=1)
        return _numbers(-(self._latents(ends) - goals).abs().mean(-1))

    @torch.no_grad()
    def score_chunks(self, candidates: Candidates) -> np.ndarray:
        """What the chunks sampled in one state are worth, by member: float64 [M, N].

        A world model predicts where each leads; the others look at where each led.
        """
        if self.info.kind != "world_model":
            return _numbers(self._logits(candidates.after))
        condition = torch.from_numpy(conditions(candidates.poses[:, 0], candidates.actions))
        start = torch.from_numpy(candidates.images[:1, 0])
        latents = [
            member.predict(member.encoder(start).expand(len(condition), -1), condition) for member in self._worlds()
        ]
        return _numbers(-(torch.stack(latents) - self._goal(candidates.task)[:, None]).abs().mean(-1))

    def _worlds(self) -> list[WorldModel]:
        return cast(list[WorldModel], list(self.members))

    def _goal(self, task: str) -> Tensor:
        """[M, D]."""
        if task not in self.info.tasks:
            known = ", ".join(self.info.tasks) or "no task"
            raise ValueError(f"this world model has goals of {known}, not of {task}; train it on episodes of {task}")
        return self.goals[:, self.info.tasks.index(task)]

    def _latents(self, images: np.ndarray) -> Tensor:
        """[M, N, D] of pictures uint8 [N, V, S, S, 3]."""
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(ROWS)
        return torch.stack([torch.cat([member.encoder(part) for part in parts]) for member in self._worlds()])

    def _logits(self, images: np.ndarray) -> Tensor:
        """[M, N] of pictures uint8 [N, V, S, S, 3]."""
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(ROWS)
        return torch.stack([torch.cat([member(part) for part in parts]) for member in self.members])

    def save(self, folder: Path) -> None:
        """Write weights and info into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()},
            folder / WEIGHTS_FILE,
        )
        (folder / INFO_FILE).write_text(json.dumps(asdict(self.info), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Ensemble:
        """Read what `save` wrote. ValueError, naming the file, for a folder that holds none or is damaged."""
        ensemble = cls(ModelInfo.read(folder / INFO_FILE))
        path = folder / WEIGHTS_FILE
        try:
            weights = load_file(path)
            ensemble.load_state_dict(weights)
        except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: other tensors than those of the model
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} does not fit its description: {said}; train it again") from error
        bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise ValueError(f"{path} is not finite: {bad[0]} has numbers that are NaN or infinite; train it again")
        return ensemble.eval()


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().numpy()


class RewardObjective:
    """The loss of an ensemble: the mean of its members' losses, each on rows of its own."""

    groups: tuple[str, ...] = (GROUP,)

    def parameters(self) -> Iterable[nn.Parameter]:
        """None: the objective has no weights of its own."""
        return ()

    def loss(
        self,
        policy: Any,
        batch: FrameBatch | TransitionBatch,
        generator: torch.Generator,
        denominator: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar of an `Ensemble`, and metrics as means over members; see `algos.objective.Objective`.

        ValueError for a part of a batch: the spread of latents is that of a whole one.
        """
        if denominator is not None:
            raise ValueError("reward models of actions learn from whole batches; train them in one process")
        members = cast(list[Any], list(policy.members))
        found = [member.loss(batch, number, generator) for number, member in enumerate(members)]
        names = found[0][1]
        metrics = {name: torch.stack([metrics[name].detach() for _, metrics in found]).mean() for name in names}
        return torch.stack([loss for loss, _ in found]).mean(), metrics


def success(episodes: Sequence[Episode]) -> list[float | None]:
    """1 for an episode that reached the task's goal within its step limit, else 0."""
    return [float(episode.success) for episode in episodes]
