"""The language side's training: imitation of the rows of a set, and learning from groups of answers as they come: GRPO.

Plans are plain settings and folders, so that they travel to the learner's process, which builds the rest there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from algos.batch import RolloutBatch
from algos.cross_entropy import CrossEntropy
from algos.grpo import GRPO, GRPOOptions
from algos.objective import Objective
from rl_lab.common.seeding import integer, stream
from rl_lab.config.language import RLConfig
from rl_lab.config.section import ScheduleConfig
from rl_lab.learner.auxiliary import FIRST_ROWS, seeing
from rl_lab.learner.learner import Learner
from rl_lab.learner.plans import DataPlan, Measured, Parts, optimiser, trainable
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import LanguageModel, Snapshot, load_language_model, publish
from rl_lab.model.lora import Adapted
from rl_lab.records.item_files import RowFile
from rl_lab.records.token_batches import rollout_batch
from rl_lab.records.types import RolloutGroup

GROUPS = ("vision", "vlm")


def epoch_order(num_rows: int, steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """Rows of every step: passes over all rows in an order of their own; a step may run over the end of a pass.

    ValueError without rows.
    """
    if num_rows < 1:
        raise ValueError("there are no rows to learn from")
    rows: list[int] = []
    epoch = 0
    while len(rows) < steps * batch_size:
        rows += stream(seed, "rows", epoch).permutation(num_rows).tolist()
        epoch += 1
    return [rows[start : start + batch_size] for start in range(0, steps * batch_size, batch_size)]


@dataclass
class OrderedData:
    """Batches of a set's rows in a given order; see `rl_lab.records.action_datasets.Dataset`."""

    rows: Any
    order: list[list[int]]
    """Numbers of the rows of every step."""
    batch_of: Callable[[list[int]], Any]
    """The batch of these rows."""

    def batch(self, step: int) -> Any:
        """See `rl_lab.records.action_datasets.Dataset`."""
        return self.batch_of(self.order[step])


class LanguagePlan(DataPlan):
    """Cross-entropy on the rows of a set."""

    def start(self) -> LanguageModel:
        """The model that training begins with."""
        raise NotImplementedError

    def data(self, processor: HunYuanVLMoTProcessor) -> OrderedData:
        """The batches of every step."""
        raise NotImplementedError

    def validation(self, processor: HunYuanVLMoTProcessor) -> Measured | None:
        """What is measured on the way, on rows that are never learned."""
        return None

    def objective(self, start: LanguageModel, data: OrderedData) -> Objective:
        """Cross-entropy, and what a plan adds to it."""
        return CrossEntropy(groups=GROUPS)

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        start = self.start()
        start.model.to(device)  # type: ignore[arg-type]
        data, info = self.data(start.processor), start.info.after(self.settings.steps)
        objective = self.objective(start, data)
        trained = trainable(start.model, self.settings, GROUPS, integer(self.seed, "lora"))
        validation = self.validation(start.processor)
        return Parts(trained, objective, data, lambda folder: start.save(folder, info), validation)


class OnlineTraining:
    """A learner that takes groups as they come and publishes its weights; what it learns is for the kinds of it."""

    needs_rewards = True
    """Completions whose reward call failed are not learned from."""

    def __init__(self, policy: Path, settings: ScheduleConfig, groups: tuple[str, ...], seed: int, device: str) -> None:
        """Load the checkpoint folder `policy`; objectives are to be added to the learner."""
        self.device, self.steps_per_batch = device, 1
        self.start: LanguageModel = load_language_model(policy)
        self.start.model.to(device)  # type: ignore[arg-type]
        self.trained = trainable(self.start.model, settings, groups, integer(seed, "lora"))
        self.learner = Learner(self.trained, seed=seed)

    @property
    def steps(self) -> int:
        """Optimizer steps so far, of all objectives."""
        return sum(track.step for track in self.learner.tracks.values())

    @property
    def version(self) -> int:
        """Of the weights of the moment, which counts on by the batches learned."""
        return self.start.info.weight_version + self.steps // self.steps_per_batch

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Learn from a batch; its metrics. ValueError if no answer of it can be learned from."""
        raise NotImplementedError

    def batch(self, groups: Sequence[RolloutGroup]) -> RolloutBatch:
        """Groups as the objective reads them. ValueError if no answer is learned from."""
        processor = self.start.processor.image_processor
        return rollout_batch(groups, processor, rewarded_only=self.needs_rewards).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides its plan."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.learner.load_state_dict(state)

    def finish(self, folder: Path) -> None:
        """Write the model of the moment into a checkpoint folder."""
        info = replace(self.start.info, weight_version=self.version, steps=self.start.info.steps + self.steps)
        self.start.save(folder, info, self.trained.merged_state_dict() if isinstance(self.trained, Adapted) else None)

    def publish(self) -> Snapshot:
        """The same as a snapshot for engines."""
        with tempfile.TemporaryDirectory() as folder:
            self.finish(Path(folder))
            return publish(Path(folder), self.version)


class GRPOUpdate:
    """GRPO on the learner of a training: its objective, and the steps on each batch."""

    def __init__(
        self,
        training: OnlineTraining,
        options: GRPOOptions,
        settings: RLConfig,
        reference: Any,
        questions: Path | None,
    ) -> None:
        """`reference` is the model that the KL term holds to, None without one; `questions` the file of the pool, to
        whose first pictures auxiliary losses are fitted. UserError where these have too little to tell."""
        self.learner, self.iterations = training.learner, options.num_iterations
        self.rows_at_once = settings.rows_at_once
        self.objective = GRPO(options, groups=settings.train, reference=reference)
        model, processor = training.start.model, training.start.processor.image_processor
        seed = integer(self.learner.seed, "grpo")
        whole = seeing(self.objective, settings, "rl", model, lambda: first_images(questions), processor, seed)
        self.learner.add("grpo", whole, optimiser(settings, options.num_iterations))

    @property
    def batches(self) -> int:
        """Batches learned so far."""
        return self.learner.tracks["grpo"].step // self.iterations

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with the log-probabilities before its first step, which later ones are held to."""
        return self.objective.prepare(self.learner.policy, batch) if self.iterations > 1 else batch

    def take(self, batch: RolloutBatch) -> dict[str, float]:
        """The optimizer steps on a prepared batch; the metrics of the last, mismatch being that of the first."""
        lines = [self.learner.step("grpo", batch, self.rows_at_once) for _ in range(self.iterations)]
        return lines[-1] | {name: value for name, value in lines[0].items() if name.startswith("mismatch/")}


@dataclass(frozen=True)
class GRPOPlan:
    """Reinforcement learning of a trained model."""

    policy: Path
    options: GRPOOptions
    settings: RLConfig
    seed: int
    questions: Path | None = None
    """File of the pool, see `GRPOUpdate`. Auxiliary losses alone read it; without any it may be left out."""

    def training(self, device: str) -> GRPOTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return GRPOTraining(self, device)


class GRPOTraining(OnlineTraining):
    """GRPO on scored groups."""

    def __init__(self, plan: GRPOPlan, device: str = "cpu") -> None:
        settings, options = plan.settings, plan.options
        super().__init__(plan.policy, settings, settings.train, plan.seed, device)
        self.plan, self.steps_per_batch = plan, options.num_iterations
        self.grpo = GRPOUpdate(self, options, settings, self._reference(), plan.questions)

    def _reference(self) -> Any:
        """The start, without a copy where adapters leave it as it was; None without a KL term."""
        if self.plan.options.beta == 0:
            return None
        if isinstance(self.trained, Adapted):
            return self.trained.reference
        return frozen_model(self.plan.policy, self.device)

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """`num_iterations` optimizer steps on one batch. ValueError if no answer of the batch has a reward."""
        return self.grpo.take(self.grpo.prepare(self.batch(groups)))


def first_images(questions: Path | None) -> list[np.ndarray]:
    """Those of the first rows of a file of `rl_lab.records.item_files`."""
    assert questions is not None, "auxiliary losses are fitted to the pictures of questions"
    file = RowFile(questions)
    return [image for row in range(min(FIRST_ROWS, len(file))) for image in file.images(row)]


def frozen_model(folder: Path, device: str) -> Any:
    """The model of a checkpoint folder, not to be trained."""
    return load_language_model(folder).model.eval().requires_grad_(False).to(device)
