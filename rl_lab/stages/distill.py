"""On-policy distillation: a teacher, the student that learns from its own answers towards it, and a control.

The control imitates the teacher: cross-entropy on the teacher's own answers, with the same examinations. Traces are
taken in passes over all of them; what counts as a token is a token that was trained on, again in each pass.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from algos.curriculum.options import CurriculumOptions
from algos.grpo import GRPOOptions
from rl_lab.config.language import DistillConfig
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion, ModelRef
from rl_lab.graph.nodes import StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.learner.distill import DistillPlan, ImitatePlan
from rl_lab.learner.language import epoch_order
from rl_lab.learner.rft import TraceFile, write_traces
from rl_lab.model.checkpoint import load_chat_processor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import expanded_tokens, item_prompt
from rl_lab.records.types import Completion, RolloutGroup, num_tokens
from rl_lab.rollouts.answering import RewardFailures, engines, make_rewards, policy_folder, training_sampling
from rl_lab.rollouts.teacher import TeacherEngines, check_same_patches, check_same_text, check_teacher, teacher_engines
from rl_lab.stages.base import BASE_MODEL, ENGINES, TrainingKind, run_online
from rl_lab.stages.gate import take_model
from rl_lab.training.loop import Feed, Turn
from rl_lab.training.online import OnlineMethod, OnlineRun, OnlineSteps, TeacherReads
from rl_lab.training.state import RunState
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import BAD_BATCH_FILE, LearnerHandle, Weights
from rl_lab.workers.pool import WorkerPool

INDEX_FILE = "traces.arrow"


def teacher_config(config: RunConfig) -> RunConfig:
    """The run with the teacher's model and cold start in place of the student's."""
    training = config.teacher.training
    own = {"model": config.teacher.model} | ({} if training is None else {"cold_start": training})
    return config.model_copy(update=own)


class TeacherKind(StageKind):
    """Another base, with sizes and settings of its own; a node of this kind only for a checkpoint as it is."""

    name = "teacher"
    after = ("questions",)
    reads = ("model",)
    learns = True
    folder = "checkpoints"
    makes_chain = True
    makes = "model"

    def expand(self, graph: Expansion, step: Step) -> None:
        """Beside the chain."""
        config = graph.config
        graph.teacher = graph.newest = ModelRef("teacher", "teacher")
        kind = "teacher" if config.teacher.training is None else "cold_start"
        inputs = {} if kind == "teacher" else {"questions": "questions"}
        labels = graph.labels(graph.teacher, None)
        graph.add("teacher", kind, inputs, config=teacher_config(config), **labels)

    def check(self, config: RunConfig) -> None:
        """It and the student can be compared; see `rl_lab.rollouts.teacher`."""
        check_teacher(config)

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """A teacher that was trained elsewhere, as it is."""
        take_model(Path(context.config.model.path), context.out)


class DistillKind(TrainingKind):
    """The student answers, the teacher reads, the student learns."""

    name = "distill"
    after = ("questions", "teacher")
    start = BASE_MODEL
    reads = ("model", "engine", "grpo", "distill", "rewards", "truth", "examine")
    workers = ENGINES
    folder = "grpo"
    is_live = examines = makes_chain = True
    seconds_per_row = 0.016

    def expand(self, graph: Expansion, step: Step) -> None:
        """From the newest model of the chain."""
        assert graph.teacher is not None
        graph.before_distill = graph.head
        graph.extend(step, graph.teacher.inputs("teacher"), graph.head)

    def answer_length(self, config: RunConfig) -> int:
        """As configured."""
        return config.distill.max_completion_length

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """The student answers, the teacher reads, the student learns."""
        config, settings = context.config, context.config.distill
        policy, teacher = policy_folder(context), context.inputs["teacher"]
        student, reader = load_chat_processor(policy), load_chat_processor(teacher)
        check_same_text(student, reader, "the teacher")
        beside = settings.scored_by == "learner"
        if beside:
            check_same_patches(student, reader)
        seed = context.own_seed("distill", settings.replicate)
        rewards = reward_options(config.grpo, settings)
        plan = DistillPlan(policy, teacher if beside else None, settings, rewards, seed)
        with ExitStack() as stack:
            pool = stack.enter_context(engines(cluster, context))
            reads: TeacherEngines | None = None
            if not beside:
                reads = stack.enter_context(teacher_engines(cluster, context, teacher, settings.top_k))
            run_online(cluster, context, plan, partial(DistillRun, context, policy, pool, teacher=reads), pool)


class ImitateKind(TrainingKind):
    """Cross-entropy on the teacher's answers, from where distill starts; not part of the chain."""

    name = "imitate"
    after = ("questions", "teacher")
    start = BASE_MODEL
    reads = ("model", "engine", "imitate", "rewards", "examine")
    workers = ENGINES
    examines = makes_chain = True
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces of the teacher, then the training."""
        assert graph.teacher is not None
        config, questions = graph.config, {"questions": "questions"}
        labels = graph.labels(ModelRef("imitate", None), None)
        traces = graph.add(
            "imitate.traces",
            "traces",
            questions | graph.teacher.inputs(),
            config=teacher_config(config),
            **labels,
        )
        student = graph.before_distill or graph.head
        inputs = questions | {"traces": traces.name} | student.inputs()
        graph.add("imitate", "imitate", inputs, **labels)
        graph.newest = ModelRef("imitate", "imitate")

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Cross-entropy on the teacher's answers."""
        policy, settings = policy_folder(context), context.config.imitate
        seed = context.own_seed("imitate", settings.replicate)
        plan = ImitatePlan(policy, settings, seed)

        with engines(cluster, context) as pool:
            run_online(cluster, context, plan, partial(ImitateRun, context, policy, pool), pool)


def distill_method(settings: DistillConfig, scale_rewards: str) -> OnlineMethod:
    """Questions in even draws, all answers learned from, whatever they are worth."""
    return OnlineMethod(
        section="distill",
        steps=settings.steps,
        sampling=training_sampling(settings),
        curriculum=CurriculumOptions(batch_size=settings.batch_size, scheme="uniform"),
        scale_rewards=scale_rewards,
        max_refills=0,
        staleness=settings.staleness,
        mismatch_limit=settings.mismatch_limit,
        needs_rewards=False,
    )


class DistillRun(OnlineRun):
    """One run of on-policy distillation."""

    def __init__(
        self,
        context: StageContext,
        policy: Path,
        engines: WorkerPool,
        learner: LearnerHandle,
        state: RunState,
        teacher: TeacherReads | None = None,
    ) -> None:
        """`learner` stands at the state's checkpoint. `teacher` None: it lies beside the student in the learner."""
        settings = context.config.distill
        seed = context.own_seed("distill", settings.replicate)
        method = distill_method(settings, context.config.grpo.scale_rewards)
        steps = OnlineSteps(context, policy, engines, learner, state, method, seed=seed, teacher=teacher)
        truth = context.config.truth
        super().__init__(context, "distill", steps, learner, state, settings, seed=seed, truth=truth)


def index_traces(traces: Path, items: ItemFile, path: Path) -> None:
    """All stored traces of a stage, whatever its selection says of them, as a file to be read by number."""
    store = RolloutStore(traces)
    tables = (store.table(step, columns=["item", "tokens"]) for step in store.steps())
    write_traces(path, (batch for table in tables for batch in table.to_batches()), items, store.folder)


class TraceFeed(Feed):
    """The feed of stored traces, in passes over all of them."""

    def __init__(
        self, context: StageContext, policy: Path, engines: WorkerPool, learner: LearnerHandle, state: RunState
    ) -> None:
        """`learner` stands at the state; `policy` is the checkpoint folder that the run began with."""
        self.context, self.engines, self.learner, self.progress = context, engines, learner, state.progress
        self.processor, self.rewards = load_chat_processor(policy), make_rewards(context.config.rewards)
        self.failures = RewardFailures(context)
        self.items, index = ItemFile(context.inputs["questions"] / "train.arrow"), context.scratch / INDEX_FILE
        if not index.exists():
            index_traces(context.inputs["traces"], self.items, index)
        self.traces, settings = TraceFile(index), context.config.imitate
        seed = context.own_seed("imitate", settings.replicate)
        self.order = epoch_order(len(self.traces), settings.steps, settings.batch_size, seed)

    def turn(self, weights: Weights) -> Turn:
        """Learn from the next batch. RuntimeError when the loss is not a number."""
        progress = self.progress
        groups = list(map(self._group, self.order[progress.step]))
        learned, weights = self.learner.learn(groups, self.context.scratch / BAD_BATCH_FILE)
        progress.step += 1
        progress.batches += 1
        progress.tokens += num_tokens(groups)
        counted = {"text/tokens_total": float(progress.tokens), "weight_version": weights.version}
        return Turn(learned.metrics | counted, weights)

    def _group(self, number: int) -> RolloutGroup:
        """A trace as a group of one; cross-entropy does not ask how likely it was."""
        row, tokens = self.traces[number]
        item = self.items[row]
        prompt = item_prompt(item, self.processor)
        read = tuple(expanded_tokens(prompt, self.processor))
        return RolloutGroup(item, prompt, [Completion(read, tuple(tokens), (0.0,) * len(tokens), 0, finished=True)])

    def close(self) -> None:
        """Let go of the rewards."""
        self.rewards.close()


class ImitateRun(OnlineRun):
    """One run of the control."""

    def __init__(
        self, context: StageContext, policy: Path, engines: WorkerPool, learner: LearnerHandle, state: RunState
    ) -> None:
        """`learner` stands at the state; `policy` is the checkpoint folder that the run began with."""
        settings = context.config.imitate
        feed = TraceFeed(context, policy, engines, learner, state)
        # The draws are those of distillation's examinations.
        seed = context.own_seed("distill", settings.replicate)
        super().__init__(context, "imitate", feed, learner, state, settings, seed=seed)

    def words(self) -> str:
        """What a control is compared by."""
        return f"{self.progress.tokens} tokens"


def reward_options(options: GRPOOptions, settings: DistillConfig) -> GRPOOptions | None:
    """Of the GRPO loss beside a divergence, None for none: the run's, on answers as distillation samples them."""
    if not settings.reward_weight:
        return None
    return options.replace(
        num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        num_iterations=1,
    )
