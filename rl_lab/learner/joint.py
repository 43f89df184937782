"""One model with two objectives on one learner: GRPO on scored answers, RPRO on preference pairs, or imitation.

Everything that both are compared with is the policy that the run began with: RPRO's reference, that of GRPO's KL term,
and what drift is measured from. A saved state names it by its digest and holds no copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algos.grpo import GRPOOptions
from algos.methods import Method
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer
from rl_lab.config.actions import BuffersConfig, ObjectiveConfig, OptimiseConfig
from rl_lab.config.language import RLConfig
from rl_lab.learner.actions import method_objective
from rl_lab.learner.interference import Moves, cosines, drift
from rl_lab.learner.language import GRPOUpdate, OnlineTraining, frozen_model
from rl_lab.learner.plans import optimiser
from rl_lab.model.checkpoint import Snapshot, publish
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import num_ranks, share_like, whole
from rl_lab.records.action_batches import demonstrations
from rl_lab.records.action_datasets import Dataset, encode_rows, preference_data
from rl_lab.records.episodes import read_episodes, read_pairs
from rl_lab.records.types import RolloutGroup

SHARED = ("vision", "vlm")
"""Groups that both skills read. All that GRPO can train is among them."""


@dataclass(frozen=True)
class JointPlan:
    """What is trained by what; plain settings and folders, so that it travels to the learner's process."""

    policy: Path
    """Checkpoint folder of the start, which is the reference as well."""
    demos: Path
    stride: int
    """Recorded steps of the demonstrations between two commands."""
    parts: tuple[str, ...]
    """Objectives of this arm."""
    grpo: GRPOOptions
    rl: RLConfig
    method: Method
    """What RPRO's turns learn by."""
    rpro: ObjectiveConfig
    optimise: OptimiseConfig
    buffers: BuffersConfig
    rounds: int
    cosine_every: int
    """Batches of GRPO between two measurements of the gradients' cosine; 0: never."""
    seed: int
    questions: Path | None = None
    """File of the pool, see `GRPOUpdate`. Auxiliary losses alone read it; without any it may be left out."""

    @property
    def settings(self) -> RLConfig:
        """See `rl_lab.learner.plans.Plan`."""
        return self.rl

    def training(self, device: str) -> JointTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return JointTraining(self, device)


class JointTraining(OnlineTraining):
    """The learner of both; any call that changes weights makes a new version of them."""

    def __init__(self, plan: JointPlan, device: str = "cpu") -> None:
        """UserError for a checkpoint without an action expert."""
        saves_memory = plan.rl.gradient_checkpointing or plan.optimise.gradient_checkpointing
        settings = plan.rl.model_copy(update={"gradient_checkpointing": saves_memory})
        super().__init__(plan.policy, settings, SHARED, plan.seed, device)
        if self.start.actions is None:
            raise UserError(f"{plan.policy} holds a vision-language model, but RPRO needs a policy: train it first")
        self.plan, self.policy = plan, self.trained
        self.reference: HyVLAPolicy = frozen_model(plan.policy, device)
        self.digest = publish(plan.policy, 0).digest
        self._add_objectives()
        groups = self.policy.parameter_groups()
        self.moves = Moves([parameter for group in SHARED for parameter in groups[group]])
        self.changes = 0
        """Calls that changed weights: the version counts on by them."""
        self._data: tuple[int, Dataset] | None = None
        """Round of the newest pairs, and its rows."""

    def _add_objectives(self) -> None:
        plan = self.plan
        if "grpo" in plan.parts:
            reference = self.reference if plan.grpo.beta > 0 else None
            self.grpo = GRPOUpdate(self, plan.grpo, plan.rl, reference, plan.questions)
        if "rpro" in plan.parts:
            rpro = method_objective(plan.method, plan.optimise, plan.rpro, self.reference)
            whole = plan.optimise.model_copy(update={"steps": plan.rounds * plan.optimise.steps})
            self.learner.add("rpro", rpro, optimiser(whole))

    @property
    def version(self) -> int:
        """Of the weights of the moment: one counter for everything that reads them."""
        return self.start.info.weight_version + self.changes

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """A batch of GRPO, as `GRPOTraining.learn`; with the cosine of both gradients before it where that is due."""
        torch.set_num_threads(self.plan.rl.threads)
        batch = self.grpo.prepare(self.batch(groups))
        measured = self._cosines(batch)
        with self._moving("grpo"):
            line = self.grpo.take(batch)
        return line | measured | self.drift()

    def _cosines(self, batch: Any) -> dict[str, float]:
        """Cosines of GRPO's gradient on its newest batch and RPRO's on its own, where due and where there are both."""
        every, rpro = self.plan.cosine_every, self.learner.tracks.get("rpro")
        if not every or self.grpo.batches % every or rpro is None or not rpro.step or self._data is None:
            return {}
        first = self.learner.gradients("grpo", batch, self.plan.rl.rows_at_once)
        torch.set_num_threads(self.plan.optimise.threads)
        second = self.learner.gradients("rpro", self._pairs(rpro.step - 1), self.plan.optimise.rows_at_once)
        torch.set_num_threads(self.plan.rl.threads)
        return cosines(first, second)

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        """Learn from now on from the pairs of these rounds, the newest last, if there are any, and from demonstrations.

        The rows of a round follow from the seed and the round alone.
        """
        if self._data is not None and self._data[0] == len(rounds):
            return
        plan, processor, number = self.plan, self.start.actions, len(rounds)
        assert processor is not None
        timing = self.start.info.timing(processor.num_commands, plan.stride)
        pairs = [found for folder in rounds if (found := read_pairs(folder))]
        data: Dataset = preference_data(
            plan.method,
            pairs,
            demonstrations(read_episodes(plan.demos), timing),
            processor,
            timing,
            mix=[plan.buffers.mix_first, plan.buffers.mix_later][len(pairs) > 1] if pairs else [1.0],
            batch_size=plan.optimise.batch_size,
            seed=integer(plan.seed, "rows", number),
        )
        if plan.method.needs_reference:
            limit = plan.optimise.stored_prefix_gib
            data.rows.reference_prefix = encode_rows(self.reference, data.rows.observation, limit)
        self._data = number, data

    def _pairs(self, step: int) -> Any:
        """The batch of a step of RPRO."""
        assert self._data is not None, "use_pairs comes first"
        return self._data[1].batch(step).to(self.device)

    def learn_pairs(self, steps: int) -> dict[str, float]:
        """Steps of RPRO; the means of their metrics."""
        torch.set_num_threads(self.plan.optimise.threads)
        track, at_once = self.learner.tracks["rpro"], self.plan.optimise.rows_at_once
        with self._moving("rpro"):
            lines = [self.learner.step("rpro", self._pairs(track.step), at_once) for _ in range(steps)]
        names = {name for line in lines for name in line}
        found = {name: [line[name] for line in lines if name in line] for name in sorted(names)}
        return {name: sum(values) / len(values) for name, values in found.items()} | self.drift()

    @contextmanager
    def _moving(self, objective: str) -> Iterator[None]:
        self.moves.begin()
        yield
        self.moves.end(objective)
        self.changes += 1

    def drift(self) -> dict[str, float]:
        """How far each group has come from the start."""
        return drift(self.policy.parameter_groups(), self.reference.parameter_groups())

    def lower(self, objective: str, factor: float) -> None:
        """Multiply an objective's learning rate from now on."""
        self.learner.scale_lr(objective, factor)

    def freeze(self, objective: str) -> None:
        """Train by this objective no longer what the other skill reads; ValueError if that leaves it nothing."""
        self.learner.freeze(objective, SHARED)

    def roll_back(self, state: dict[str, Any], objective: str, factor: float) -> None:
        """Weights and optimizers of a saved state, and a lower rate for an objective; counts go on."""
        self._check(state)
        self.learner.roll_back(state["learner"])
        self.learner.scale_lr(objective, factor)
        self.moves.sums = self._shares(state["moves"])
        self.changes += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides its plan."""
        return {
            "reference": self.digest,
            "learner": super().state_dict(),
            "moves": whole(self.moves.sums) if num_ranks() > 1 else self.moves.sums,
            "changes": self.changes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; RuntimeError if it was made with another reference."""
        self._check(state)
        super().load_state_dict(state["learner"])
        self.moves.sums, self.changes = self._shares(state["moves"]), state["changes"]

    def _shares(self, moves: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """This rank's parts of saved moves."""
        return {
            name: [share_like(total, parameter) for total, parameter in zip(sums, self.moves.parameters, strict=True)]
            for name, sums in moves.items()
        }

    def _check(self, state: dict[str, Any]) -> None:
        if state["reference"] != self.digest:
            raise RuntimeError(f"the saved state belongs to another start than {self.plan.policy}; run the stage anew")

    @torch.no_grad()
    def publish_without(self, objective: str) -> Snapshot:
        """The weights of the moment without what an objective did to those that both skills read."""
        kept: list[Tensor] = [parameter.detach().clone() for parameter in self.moves.parameters]
        self.moves.add(objective, -1.0)
        try:
            return self.publish()
        finally:
            for parameter, value in zip(self.moves.parameters, kept, strict=True):
                parameter.copy_(value)
