"""One model with two objectives on one learner: GRPO on scored answers, RPRO on preference pairs.

Everything that both are compared with is the policy that the run began with: RPRO's reference, that of GRPO's KL term,
and what drift is measured from. A saved state names it by its digest and holds no copy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algos.grpo import GRPO
from algos.grpo_options import GRPOOptions
from algos.methods import find_method
from rl_lab.action.batching import demonstrations
from rl_lab.action.buffers import read_episodes, read_pairs
from rl_lab.action.datasets import Dataset, encode_rows, preference_data
from rl_lab.config.action import BuffersConfig, ObjectiveConfig, OptimiseConfig
from rl_lab.config.language import RLConfig
from rl_lab.errors import UserError
from rl_lab.joint.interference import Moves, cosines, drift
from rl_lab.language.model import load_language_model
from rl_lab.language.token_batching import rollout_batch
from rl_lab.language.training import Groups
from rl_lab.learning.checkpoint import load_policy
from rl_lab.learning.learner import Learner
from rl_lab.learning.ranks import num_ranks
from rl_lab.learning.training import optimiser
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import share_like, whole
from rl_lab.seeding import integer
from rl_lab.workers.weights import Snapshot, publish

METHOD = find_method("rpro")
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
    rpro: ObjectiveConfig
    optimise: OptimiseConfig
    buffers: BuffersConfig
    rounds: int
    cosine_every: int
    """Batches of GRPO between two measurements of the gradients' cosine; 0: never."""
    seed: int

    @property
    def settings(self) -> RLConfig:
        """See `rl_lab.learning.training.Plan`."""
        return self.rl

    def training(self, device: str) -> JointTraining:
        """See `rl_lab.learning.training.Plan`."""
        return JointTraining(self, device)


class JointTraining:
    """The learner of both; any call that changes weights makes a new version of them."""

    def __init__(self, plan: JointPlan, device: str = "cpu") -> None:
        """UserError for a checkpoint without an action expert."""
        self.plan, self.device = plan, device
        self.start = load_language_model(plan.policy)
        if self.start.actions is None:
            raise UserError(f"{plan.policy} holds a vision-language model, but RPRO needs a policy: train it first")
        self.policy: Any = self.start.model.to(device)  # type: ignore[arg-type]
        if plan.rl.gradient_checkpointing or plan.optimise.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable()
        self.reference: HyVLAPolicy = load_policy(plan.policy)[0].eval().requires_grad_(False)
        self.reference.to(device)
        self.digest = publish(plan.policy, 0).digest
        self.learner = Learner(self.policy, seed=plan.seed)
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
            grpo = GRPO(plan.grpo, groups=plan.rl.train, reference=reference)
            self.learner.add("grpo", grpo, optimiser(plan.rl, plan.grpo.num_iterations))
        if "rpro" in plan.parts:
            weights = plan.rpro.model_dump(include={"beta", "lambda_pro", "lambda_sft"})
            rpro = METHOD.objective(
                groups=plan.optimise.train,
                draws_per_sample=plan.optimise.draws_per_sample,
                reference=self.reference,
                **weights,
            )
            whole = plan.optimise.model_copy(update={"steps": plan.rounds * plan.optimise.steps})
            self.learner.add("rpro", rpro, optimiser(whole))

    @property
    def version(self) -> int:
        """Of the weights of the moment: one counter for everything that reads them."""
        return self.start.info.weight_version + self.changes

    def learn(self, groups: Groups) -> dict[str, float]:
        """A batch of GRPO, as `GRPOTraining.learn`; with the cosine of both gradients before it where that is due."""
        plan, options = self.plan, self.plan.grpo
        torch.set_num_threads(plan.rl.threads)
        processor = self.start.processor.image_processor
        batch = rollout_batch(
            groups.prompts, groups.completions, groups.advantages, processor, scored=groups.scored
        ).to(self.device)
        track = self.learner.tracks["grpo"]
        if options.num_iterations > 1:
            assert isinstance(track.objective, GRPO)
            batch = track.objective.prepare(self.policy, batch)
        measured = self._cosines(batch)
        with self._moving("grpo"):
            lines = [self.learner.step("grpo", batch, plan.rl.rows_at_once) for _ in range(options.num_iterations)]
        first = {name: value for name, value in lines[0].items() if name.startswith("mismatch/")}
        return lines[-1] | first | measured | self.drift()

    def _cosines(self, batch: Any) -> dict[str, float]:
        """Cosines of GRPO's gradient on its newest batch and RPRO's on its own, where due and where there are both."""
        every, batches = self.plan.cosine_every, self.learner.tracks["grpo"].step // self.plan.grpo.num_iterations
        rpro = self.learner.tracks.get("rpro")
        if not every or batches % every or rpro is None or not rpro.step or self._data is None:
            return {}
        first = self.learner.gradients("grpo", batch, self.plan.rl.rows_at_once)
        torch.set_num_threads(self.plan.optimise.threads)
        second = self.learner.gradients("rpro", self._pairs(rpro.step - 1))
        torch.set_num_threads(self.plan.rl.threads)
        return cosines(first, second)

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        """Learn from now on from the pairs of these rounds, the newest last, and from demonstrations.

        The rows of a round follow from the seed and the round alone.
        """
        if self._data is not None and self._data[0] == len(rounds):
            return
        plan, processor, number = self.plan, self.start.actions, len(rounds)
        assert processor is not None
        timing = self.start.info.timing(processor.num_commands, plan.stride)
        pairs = [found for folder in rounds if (found := read_pairs(folder))]
        data: Dataset = preference_data(
            METHOD,
            pairs,
            demonstrations(read_episodes(plan.demos), timing),
            processor,
            timing,
            mix=plan.buffers.mix_first if len(pairs) == 1 else plan.buffers.mix_later,
            batch_size=plan.optimise.batch_size,
            seed=integer(plan.seed, "rows", number),
        )
        data.rows.reference_prefix = encode_rows(self.reference, data.rows.observation, plan.optimise.stored_prefix_gib)
        self._data = number, data

    def _pairs(self, step: int) -> Any:
        """The batch of a step of RPRO."""
        assert self._data is not None, "use_pairs comes first"
        return self._data[1].batch(step).to(self.device)

    def learn_pairs(self, steps: int) -> dict[str, float]:
        """Steps of RPRO; the means of their metrics."""
        torch.set_num_threads(self.plan.optimise.threads)
        track = self.learner.tracks["rpro"]
        with self._moving("rpro"):
            lines = [self.learner.step("rpro", self._pairs(track.step)) for _ in range(steps)]
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
            "learner": self.learner.state_dict(),
            "moves": whole(self.moves.sums) if num_ranks() > 1 else self.moves.sums,
            "changes": self.changes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; RuntimeError if it was made with another reference."""
        self._check(state)
        self.learner.load_state_dict(state["learner"])
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

    def finish(self, folder: Path) -> None:
        """Write the model of the moment into a checkpoint folder."""
        start, steps = self.start.info, sum(track.step for track in self.learner.tracks.values())
        self.start.save(folder, replace(start, weight_version=self.version, steps=start.steps + steps))

    def publish(self) -> Snapshot:
        """The same as a snapshot for engines and simulators."""
        with tempfile.TemporaryDirectory() as folder:
            self.finish(Path(folder))
            return publish(Path(folder), self.version)

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
