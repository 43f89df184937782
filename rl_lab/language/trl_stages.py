"""Cold start, fine-tuning and reinforcement learning by TRL, from checkpoint to checkpoint, in the stage's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch

from algos.curriculum import Curriculum
from algos.curriculum_options import CurriculumOptions
from algos.hacking_alarms import signal_alarm
from algos.token_batch import TokenBatch
from envs.spatial_qa.items import CATEGORIES
from rl_lab.config.section import OptimiserConfig
from rl_lab.language.answering import ask, collect, reward_means, with_advantages, with_rewards
from rl_lab.language.grpo_line import group_spread
from rl_lab.language.item_files import ItemFile, SolutionFile
from rl_lab.language.model import LanguageModel, load_chat_processor, load_language_model, with_token_texts
from rl_lab.language.outcome_labels import OutcomeLabels
from rl_lab.language.outcome_training import OutcomePlan, save_member, training_rows
from rl_lab.language.reward_failures import RewardFailures
from rl_lab.language.reward_models import make_rewards
from rl_lab.language.rft_training import RFTPlan
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.language.text_classifier import TextClassifier
from rl_lab.language.token_batching import chat_batch
from rl_lab.language.training import GROUPS, ColdStartPlan
from rl_lab.learning.training import optimiser
from rl_lab.learning.watch import Watch, nothing_learned
from rl_lab.records.types import Completion, Prompt, Sampling, group_rewards, num_tokens
from rl_lab.runner.stage_context import StageContext
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.weights import Snapshot


def trl_cold_start(context: StageContext, plan: ColdStartPlan) -> None:
    """Imitation by TRL's `SFTTrainer`, which reads the rows in the order in which the Learner would."""
    torch.set_num_threads(plan.settings.threads)
    solutions, start = SolutionFile(plan.solutions), plan.start()

    def batches(rows: list[int]) -> TokenBatch:
        return chat_batch([solutions[row].chat() for row in rows], start.processor)

    _trl_sft(context, plan.settings, start, batches, plan.order(len(solutions)))


def trl_rft(context: StageContext, plan: RFTPlan) -> None:
    """Fine-tuning on kept traces by TRL's `SFTTrainer`, which reads the tokens that the Learner would."""
    torch.set_num_threads(plan.settings.threads)
    start = load_language_model(plan.policy)
    data = plan.data(start.processor)
    _trl_sft(context, plan.settings, start, data.batch_of, data.order)


def _trl_sft(
    context: StageContext,
    settings: OptimiserConfig,
    start: LanguageModel,
    batches: Callable[[list[int]], TokenBatch],
    order: Sequence[Sequence[int]],
) -> None:
    from rl_lab.trl_backend.sft import train_sft  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    trl_settings = Settings(optimiser(settings), gradient_checkpointing=settings.gradient_checkpointing)
    train_sft(start, batches, order, trl_settings, context.out, _logger(context, settings))


def trl_outcome(context: StageContext, plan: OutcomePlan) -> None:
    """A member of an outcome reward model by TRL's `RewardTrainer`, which reads the pairs that the Learner would."""
    from rl_lab.trl_backend.outcome import train_outcome  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    torch.set_num_threads(plan.settings.threads)
    start, head = plan.start()
    data, settings = plan.data(start.processor), plan.settings
    trl_settings = Settings(
        optimiser(settings), (*GROUPS, "head"), gradient_checkpointing=settings.gradient_checkpointing
    )
    train_outcome(start, head, data.both_sides, data.order, trl_settings, _logger(context, settings))
    save_member(context.out, start, head, settings.steps)


def trl_classifier(context: StageContext, labels: Path, items: Path, seed: int) -> None:
    """A member that is a sequence classifier, by TRL's `RewardTrainer` on pairs of texts."""
    from rl_lab.trl_backend.outcome import CLASSIFIER, train_classifier  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    settings = context.config.outcome
    torch.set_num_threads(settings.threads)
    answers, questions = OutcomeLabels.load(labels).of("train"), ItemFile(items)
    units, order = training_rows(answers, settings, seed)
    classifier = TextClassifier.load(Path(settings.classifier), seed)

    def tokens(place: int) -> list[int]:
        return classifier.encode(questions.record(int(answers.row[place]))["prompt"], answers.completion[place])

    pairs = [(tokens(better), tokens(worse)) for better, worse in units]
    checkpointing = settings.gradient_checkpointing
    trl_settings = Settings(optimiser(settings), (CLASSIFIER,), gradient_checkpointing=checkpointing)
    train_classifier(classifier, pairs, order, trl_settings, _logger(context, settings))
    classifier.save(context.out)


def _logger(context: StageContext, settings: OptimiserConfig) -> Callable[[int, dict[str, float]], None]:
    watch = Watch(context)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.log(step, **metrics)
        watch.add(metrics)
        watch.look(step, nothing_learned(settings.steps))
        context.progress(step, settings.steps, f"loss {metrics['loss']:.4g}")

    return log


def fixed_order(options: CurriculumOptions, seed: int, categories: np.ndarray, steps: int) -> list[np.ndarray]:
    """Items of every step, as the curriculum selects them if it never hears of a result."""
    curriculum = Curriculum(options, seed, len(CATEGORIES))
    curriculum.add(categories)
    order = []
    for step in range(1, steps + 1):
        order.append(curriculum.select(step, 0).numbers)
        curriculum.release(order[-1])
    return order


class TRLRun:
    """GRPO by TRL's `GRPOTrainer` on a fixed order of items, with answers from the run's engines."""

    def __init__(self, context: StageContext, policy: Path, engines: WorkerPool) -> None:
        config, node = context.config, context.node
        self.context, self.policy, self.engines = context, policy, engines
        self.options, self.settings = config.grpo, config.rl
        self.seed = integer(context.seed, "grpo", *node.stream)
        self.items = ItemFile(context.inputs["questions"] / "train.arrow")
        codes = [CATEGORIES.index(self.items.record(row)["category"]) for row in range(len(self.items))]
        curriculum = replace(config.curriculum, scheme=node.params["curriculum"]["scheme"])
        self.order = fixed_order(curriculum, self.seed, np.array(codes, np.uint8), self.settings.steps)
        self.processor = load_chat_processor(policy)
        self.store = RolloutStore(context.out)
        self.step = 0

    def roll_out(self, prompts: Sequence[Prompt], snapshot: Snapshot) -> list[list[Completion]]:
        """Answers to the items of the next step, drawn with the seeds that the Learner's run would use."""
        self.step += 1
        numbers = self.order[self.step - 1].tolist()
        seeds = [integer(self.seed, "draw", self.step, 0, number) for number in numbers]
        seeded = [replace(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        sampling = Sampling(
            self.options.max_completion_length,
            temperature=self.options.temperature,
            num_generations=self.options.num_generations,
        )
        per_call = self.context.config.engine.prompts_per_call
        asked = ask(self.engines, seeded, sampling, ray.put(snapshot), per_call)
        return collect(self.engines, asked, self.context.check_stop)[0]

    def run(self) -> None:
        """Train to the end."""
        from rl_lab.trl_backend.grpo import Step, notice, train_grpo  # here, because it imports TRL
        from rl_lab.trl_backend.trainer import Settings

        self.context.say(notice(self.context.node.params["curriculum"]["scheme"]))
        torch.set_num_threads(self.settings.threads)
        means: dict[str, float] = {}
        failures, watch = RewardFailures(self.context), Watch(self.context)

        def record(step: Step) -> None:
            groups, first_failures = with_rewards(step.groups, step.breakdown)
            failures.check(step.number, groups, first_failures)
            groups = with_advantages(groups, self.options.scale_rewards)
            self.store.write(step.number, with_token_texts(groups, self.processor))
            means.clear()
            means.update(reward_means(groups) | {"rollouts/tokens": float(num_tokens(groups))})
            means["rollouts/spread"] = group_spread(group_rewards(groups))

        def log(step: int, metrics: dict[str, float]) -> None:
            self.context.log(step, **(metrics | means))
            watch.add(metrics | means)
            watch.look(step, nothing_learned(self.settings.steps))
            self.context.progress(step, self.settings.steps)

        rewards = make_rewards(self.context.config.rewards)
        try:
            train_grpo(
                self.policy,
                [[self.items[number] for number in numbers.tolist()] for numbers in self.order],
                self.options,
                Settings(
                    optimiser(self.settings, self.options.num_iterations),
                    self.settings.train,
                    self.settings.gradient_checkpointing,
                ),
                self.roll_out,
                rewards,
                self.context.out,
                log,
                record,
            )
            watch.look(self.settings.steps, signal_alarm)
        finally:
            rewards.close()


def trl_grpo(context: StageContext, policy: Path, engines: WorkerPool) -> None:
    """Reinforcement learning by TRL; see `TRLRun`."""
    TRLRun(context, policy, engines).run()
