"""One training stage on a data set: a plan says what is trained on what, a `Training` does its steps.

Plans are plain settings and folders, so that they travel to the learner's process: `rl_lab.learner.actions`,
`rl_lab.learner.language`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from algos.objective import Objective
from rl_lab.common.seeding import integer
from rl_lab.config.section import ScheduleConfig
from rl_lab.learner.learner import Learner
from rl_lab.learner.optim import Optimiser
from rl_lab.model.lora import Adapted
from rl_lab.model.sharding import join, num_ranks
from rl_lab.records.action_datasets import Dataset


class Measured(Protocol):
    """What is measured of the weights while they are trained, and changes nothing."""

    def is_due(self, step: int) -> bool:
        """Whether it is after so many steps."""

    def measure(self, policy: Any) -> dict[str, float]:
        """Metrics of the weights of the moment."""


@dataclass
class Parts:
    """What a plan turns into."""

    model: Any
    """What is trained: the model itself, or adapters on it."""
    objective: Objective
    data: Dataset
    save: Callable[[Path], None]
    """Writes the model's checkpoint into a folder."""
    validation: Measured | None = None


@dataclass
class DataFeed:
    """A data set, and what is done with its batches."""

    objective: Objective
    data: Dataset
    settings: ScheduleConfig


class Plan(Protocol):
    """What is trained and how, ready to be built in the learner's process."""

    @property
    def settings(self) -> ScheduleConfig:
        """How it is optimised."""

    def training(self, device: str) -> Any:
        """Load and make everything; UserError for a checkpoint that does not fit."""


class DataPlan:
    """A plan with a data set: `build` makes the parts of its training."""

    settings: Any
    """`OptimiserConfig`: how it is optimised."""
    seed: int

    @property
    def name(self) -> str:
        """Of the objective in the learner."""
        raise NotImplementedError

    @property
    def learner_seed(self) -> int:
        """Seed of the randomness inside steps."""
        return self.seed

    def build(self, device: str) -> Parts:
        """Load and make everything; UserError for a checkpoint that does not fit."""
        raise NotImplementedError

    def feeds(self, parts: Parts) -> dict[str, DataFeed]:
        """Data by the objectives that learn from them; the first begins."""
        return {self.name: DataFeed(parts.objective, parts.data, self.settings)}

    def training(self, device: str) -> Training:
        """See `Plan`."""
        return Training(self, device)


class RoundPlan(DataPlan):
    """One round of a method."""

    method: str
    round: int

    @property
    def name(self) -> str:
        """See `DataPlan`."""
        return self.method

    @property
    def learner_seed(self) -> int:
        """See `DataPlan`; another in every round."""
        return integer(self.seed, "round", self.round)


def trainable(model: Any, settings: ScheduleConfig, groups: tuple[str, ...], seed: int) -> Any:
    """What is trained: the model, or adapters on these groups of it."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.lora is None:
        return model
    torch.manual_seed(seed)
    return Adapted(model, groups, **settings.lora.model_dump())


def optimiser(settings: ScheduleConfig, steps_per_batch: int = 1) -> Optimiser:
    """The learner's optimizer and schedule; both are stretched where each batch gives several steps."""
    names = ("lr", "schedule", "decay_fraction", "final_lr_fraction", "weight_decay", "grad_clip")
    steps, warmup = settings.steps * steps_per_batch, settings.warmup * steps_per_batch
    return Optimiser(steps=steps, warmup=warmup, name=settings.optimiser, **settings.model_dump(include=set(names)))


class Training:
    """A learner with its data; `run_step` until `step` reaches the plan's number of steps, then `finish`."""

    def __init__(self, plan: DataPlan, device: str = "cpu") -> None:
        self.device, self.parts = device, plan.build(device)
        self.feeds = plan.feeds(self.parts)
        self.learner = Learner(self.parts.model, seed=plan.learner_seed)
        for name, feed in self.feeds.items():
            self.learner.add(name, feed.objective, optimiser(feed.settings))
        if plan.settings.ema > 0:
            self.learner.average_weights(plan.settings.ema, plan.settings.ema_start, plan.name)

    def _done(self, name: str) -> int:
        return self.learner.tracks[name].step

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return sum(map(self._done, self.feeds))

    @property
    def turn(self) -> str:
        """Whose step is next: the objective that is behind, as a share of its steps; the first where none is."""
        return min(self.feeds, key=lambda name: (self._done(name) + 0.5) / self.feeds[name].settings.steps)

    def run_step(self) -> dict[str, float]:
        """One optimizer step; its metrics."""
        name = self.turn
        feed = self.feeds[name]
        torch.set_num_threads(feed.settings.threads)
        batch = feed.data.batch(self._done(name)).to(self.device)
        metrics = self.learner.step(name, batch, feed.settings.rows_at_once)
        validation = self.parts.validation
        return metrics | (self.validate() if validation is not None and validation.is_due(self.step) else {})

    def validate(self) -> dict[str, float]:
        """What is measured of the weights of the moment; {} where nothing is."""
        validation = self.parts.validation
        return {} if validation is None else validation.measure(self.learner.policy)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides its plan."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.learner.load_state_dict(state)

    def finish(self, folder: Path) -> None:
        """Write the trained model (its weight average, if one is kept) into a checkpoint folder."""
        if self.learner.average is not None:
            self.learner.average.copy_into_policy()
        if isinstance(self.parts.model, Adapted):
            if num_ranks() > 1:
                join(self.parts.model.model)
            self.parts.model.merge()
        self.parts.save(folder)
