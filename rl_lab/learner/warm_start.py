"""A policy with both skills to begin with: worked solutions and demonstrations, interleaved on one learner.

Cross-entropy trains vision and language, flow matching (with its probe) everything; each has its own optimizer and
schedule (sections `cold_start` and `sft`), and their numbers of steps are the ratio in which they take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from algos.cross_entropy import CrossEntropy
from rl_lab.config.language import ColdStartConfig
from rl_lab.config.section import OptimiserConfig
from rl_lab.learner.actions import SFTPlan, Start, sft_parts, starting_policy
from rl_lab.learner.language import CALIBRATION_ROWS, GROUPS, ConversationData, epoch_order
from rl_lab.learner.learner import Learner, WeightAverage
from rl_lab.learner.plans import optimiser
from rl_lab.model.checkpoint import LanguageModel, vlm_processor
from rl_lab.model.sharding import num_ranks, share_like, whole
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.item_files import SolutionFile
from rl_lab.seeding import integer

LANGUAGE, ACTIONS = "language", "actions"


@dataclass(frozen=True)
class WarmStartPlan:
    """Both imitations at once, from a preset's random weights or from a checkpoint of a policy."""

    actions: SFTPlan
    language: ColdStartConfig
    solutions: Path
    """File of `rl_lab.records.item_files`."""

    @property
    def settings(self) -> OptimiserConfig:
        """The actions' settings with the steps of both."""
        return self.actions.settings.model_copy(update={"steps": self.language.steps + self.actions.settings.steps})

    def training(self, device: str) -> WarmStart:
        """See `rl_lab.learner.plans.Plan`."""
        return WarmStart(self, device)

    def start(self) -> Start:
        """The policy that imitation begins with; random weights are fitted to pictures and numbers."""
        plan = self.actions
        start = starting_policy(plan.model, plan.seed, plan.stride)
        if plan.model.path is None:
            solutions = SolutionFile(self.solutions)
            rows = range(min(len(solutions), CALIBRATION_ROWS))
            processor = vlm_processor(start.policy.config, load_tokenizer())
            model = LanguageModel(start.policy, processor, start.info)
            model.calibrate([image for row in rows for image in solutions.images(row)])
        return start


class WarmStart:
    """The learner with both sets of data, as `rl_lab.learner.plans.Training`."""

    def __init__(self, plan: WarmStartPlan, device: str = "cpu") -> None:
        self.plan, self.device = plan, device
        start, self.settings = plan.start(), {LANGUAGE: plan.language, ACTIONS: plan.actions.settings}
        self.parts = sft_parts(plan.actions, start, device)
        policy: Any = self.parts.model
        solutions = SolutionFile(plan.solutions)
        seed = integer(plan.actions.seed, "cold_start")
        order = epoch_order(len(solutions), plan.language.steps, plan.language.batch_size, seed)
        processor = vlm_processor(policy.config, load_tokenizer())
        self.data: dict[str, Any] = {
            LANGUAGE: ConversationData(solutions, order, processor),
            ACTIONS: self.parts.data,
        }
        self.learner = Learner(policy, seed=plan.actions.seed)
        self.learner.add(LANGUAGE, CrossEntropy(groups=GROUPS), optimiser(plan.language))
        self.learner.add(ACTIONS, self.parts.objective, optimiser(plan.actions.settings))
        ema = plan.actions.settings.ema
        self.average = WeightAverage(policy, ema, plan.actions.settings.ema_start) if ema > 0 else None

    def _done(self, name: str) -> int:
        return self.learner.tracks[name].step

    @property
    def step(self) -> int:
        """Optimizer steps done, of both."""
        return sum(map(self._done, self.settings))

    @property
    def turn(self) -> str:
        """Whose step is next: the one that is behind, as a share of its steps; language where neither is."""
        return min(self.settings, key=lambda name: (self._done(name) + 0.5) / self.settings[name].steps)

    def run_step(self) -> dict[str, float]:
        """One optimizer step of the part whose turn it is; its metrics."""
        name = self.turn
        torch.set_num_threads(self.settings[name].threads)
        step = self._done(name)
        metrics = self.learner.step(name, self.data[name].batch(step).to(self.device))
        if self.average is not None and name == ACTIONS:  # then all weights are trained, so all are averaged
            self.average.update(step + 1)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides its plan."""
        average = {} if self.average is None else self.average.weights
        return {"learner": self.learner.state_dict(), "average": whole(average) if num_ranks() > 1 else average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.learner.load_state_dict(state["learner"])
        if self.average is not None:
            named = dict(self.average.policy.named_parameters())
            self.average.weights = {name: share_like(value, named[name]) for name, value in state["average"].items()}

    def finish(self, folder: Path) -> None:
        """Write the trained policy, or its weight average, into a checkpoint folder."""
        if self.average is not None:
            self.average.copy_into_policy()
        self.parts.save(folder)
