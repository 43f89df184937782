"""The stages of on-policy distillation: learning from the student's own answers towards a teacher, and a control.

The control imitates the teacher: cross-entropy on the teacher's own answers, with the same examinations. Traces are
taken in passes over all of them; what counts as a token is a token that was trained on, again in each pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from algos.curriculum.options import CurriculumOptions
from algos.grpo import GRPOOptions
from rl_lab.config.language import DistillConfig
from rl_lab.drivers.gate import take_model
from rl_lab.files import read_json_lines, write_json_lines, write_whole
from rl_lab.graph.stage import StageContext
from rl_lab.learner.distill import DistillPlan, ImitatePlan
from rl_lab.learner.language import epoch_order
from rl_lab.learner.rft import TraceFile, write_traces
from rl_lab.learner.state import LEARNER_FILE, SavedStates
from rl_lab.model.checkpoint import load_chat_processor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import expanded_tokens, item_prompt
from rl_lab.records.types import Completion, RolloutGroup, Sampling, num_tokens
from rl_lab.rollouts.answering import RewardFailures, engines, make_rewards, policy_folder
from rl_lab.rollouts.teacher import TeacherEngines, check_same_patches, check_same_text, teacher_engines
from rl_lab.seeding import integer
from rl_lab.training.dataset import with_learner
from rl_lab.training.evaluation import HeldOutExam
from rl_lab.training.online import OnlineMethod, OnlineRun, OnlineSteps, TeacherReads
from rl_lab.training.state import HELD_OUT_FILE, PROGRESS_FILE, Progress, RunState
from rl_lab.training.watch import Watch, nothing_learned
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import BAD_BATCH_FILE, LearnerHandle
from rl_lab.workers.pool import WorkerPool


def distill_method(settings: DistillConfig, scale_rewards: str) -> OnlineMethod:
    """Questions in even draws, all answers learned from, whatever they are worth."""
    return OnlineMethod(
        section="distill",
        steps=settings.steps,
        sampling=Sampling(
            settings.max_completion_length,
            temperature=settings.temperature,
            num_generations=settings.num_generations,
        ),
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
        seed = integer(context.seed, "distill", *context.node.stream, settings.replicate)
        method = distill_method(settings, context.config.grpo.scale_rewards)
        steps = OnlineSteps(context, policy, engines, learner, state, method, seed=seed, teacher=teacher)
        super().__init__(context, steps, state, settings.examine_every, seed)


INDEX_FILE = "traces.arrow"


def index_traces(traces: Path, items: ItemFile, path: Path) -> None:
    """All stored traces of a stage, whatever its selection says of them, as a file to be read by number."""
    store = RolloutStore(traces)
    tables = (store.table(step, columns=["item", "tokens"]) for step in store.steps())
    write_traces(path, (batch for table in tables for batch in table.to_batches()), items, store.folder)


class ImitateState:
    """Where a run is: its learner and its counts, at its last saved state."""

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        self.out, self.states, self.progress = out, SavedStates(scratch), Progress()
        self.states.drop_damaged(warn)
        if self.states.newest is not None:
            self.progress = Progress(**json.loads((self.states.newest / PROGRESS_FILE).read_text()))

    @property
    def learner_state(self) -> Path | None:
        """The learner's state; None before the first."""
        return self.states.learner_state

    def save(self, save_learner: Callable[[Path], None]) -> None:
        """Make this the state to continue from."""

        def write(folder: Path) -> None:
            save_learner(folder / LEARNER_FILE)
            write_whole(folder / PROGRESS_FILE, json.dumps(asdict(self.progress)))

        self.states.save(self.progress.step, write)

    def forget_later(self) -> None:
        """Drop short examinations after this state; they come again."""
        path, step = self.out / HELD_OUT_FILE, self.progress.step
        lines = read_json_lines(path, missing_ok=True)
        write_json_lines(path, [line for line in lines if step and line["step"] <= step])


class ImitateRun:
    """One run: `run()` brings it from its last state to its end."""

    def __init__(
        self, context: StageContext, policy: Path, engines: WorkerPool, learner: LearnerHandle, state: ImitateState
    ) -> None:
        """`learner` stands at the state; `policy` is the checkpoint folder that the run began with."""
        config = context.config
        self.context, self.engines, self.learner, self.state = context, engines, learner, state
        self.settings, self.processor, self.weights = config.imitate, load_chat_processor(policy), learner.publish()
        self.items, index = ItemFile(context.inputs["questions"] / "train.arrow"), context.scratch / INDEX_FILE
        if not index.exists():
            index_traces(context.inputs["traces"], self.items, index)
        self.traces = TraceFile(index)
        names = (*context.node.stream, self.settings.replicate)
        seed = integer(context.seed, "imitate", *names)
        self.order = epoch_order(len(self.traces), self.settings.steps, self.settings.batch_size, seed)
        self.rewards, self.watch = make_rewards(config.rewards), Watch(context)
        self.exam = HeldOutExam(
            ItemFile(context.inputs["questions"] / "held_out.arrow"),
            self.processor,
            self.rewards,
            config.examine,
            seed=integer(context.seed, "distill", *names),  # the draws of distillation's examinations
            prompts_per_call=4 * config.engine.prompts_per_call,
            out=context.out,
            failures=RewardFailures(context),
        )

    def run(self) -> None:
        """Learn from batch after batch. RuntimeError when the loss is not a number."""
        progress, steps = self.state.progress, self.settings.steps
        every = self.context.checkpoint_every(steps)
        self.watch.add(*self.context.resume_from(progress.step if progress.step else -1))
        self.state.forget_later()
        try:
            if progress.step == 0:
                self.context.log(0, **self._examine(), weight_version=self.weights.version)
            while progress.step < steps:
                self._step()
                self.context.progress(progress.step, steps, f"{progress.tokens} tokens")
                if progress.step % every == 0:
                    self.state.save(self.learner.save)
            self.learner.finish(self.context.out)
        finally:
            self.rewards.close()

    def _step(self) -> None:
        progress, every = self.state.progress, self.settings.examine_every
        groups = list(map(self._group, self.order[progress.step]))
        learned, self.weights = self.learner.learn(groups, self.context.scratch / BAD_BATCH_FILE)
        if learned.error is not None:
            raise RuntimeError(learned.error)
        progress.step += 1
        progress.batches += 1
        progress.tokens += num_tokens(groups)
        line = learned.metrics | {"text/tokens_total": float(progress.tokens), "weight_version": self.weights.version}
        if every and progress.step % every == 0:
            line |= self._examine()
        self.context.log(progress.step, **line)
        self.watch.add(line)
        self.watch.look(progress.step, nothing_learned(self.settings.steps))

    def _group(self, number: int) -> RolloutGroup:
        """A trace as a group of one; cross-entropy does not ask how likely it was."""
        row, tokens = self.traces[number]
        item = self.items[row]
        prompt = item_prompt(item, self.processor)
        read = tuple(expanded_tokens(prompt, self.processor))
        return RolloutGroup(item, prompt, [Completion(read, tuple(tokens), (0.0,) * len(tokens), 0, finished=True)])

    def _examine(self) -> dict[str, float]:
        return self.exam.examine(self.engines, self.weights, self.state.progress, self.context.check_stop)


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


def distill(cluster: Cluster, context: StageContext) -> None:
    """The student answers, the teacher reads, the student learns."""
    config, settings = context.config, context.config.distill
    policy, teacher = policy_folder(context), context.inputs["teacher"]
    student, reader = load_chat_processor(policy), load_chat_processor(teacher)
    check_same_text(student, reader, "the teacher")
    beside = settings.scored_by == "learner"
    if beside:
        check_same_patches(student, reader)
    seed = integer(context.seed, "distill", *context.node.stream, settings.replicate)
    rewards = reward_options(config.grpo, settings)
    plan = DistillPlan(policy, teacher if beside else None, settings, rewards, seed)
    with ExitStack() as stack:
        pool = stack.enter_context(engines(cluster, context))
        reads: TeacherEngines | None = None
        if not beside:
            reads = stack.enter_context(teacher_engines(cluster, context, teacher, settings.top_k))
        with_learner(
            cluster,
            context,
            plan,
            lambda: RunState(context.out, context.scratch, context.say),
            lambda learner, state: DistillRun(context, policy, pool, learner, state, reads).run(),
            (pool,),
        )


def imitate(cluster: Cluster, context: StageContext) -> None:
    """Cross-entropy on the teacher's answers."""
    policy, settings = policy_folder(context), context.config.imitate
    seed = integer(context.seed, "imitate", *context.node.stream, settings.replicate)
    plan = ImitatePlan(policy, settings, seed)

    with engines(cluster, context) as pool:
        with_learner(
            cluster,
            context,
            plan,
            lambda: ImitateState(context.out, context.scratch, context.say),
            lambda learner, state: ImitateRun(context, policy, pool, learner, state).run(),
            (pool,),
        )


def teacher(cluster: Cluster, context: StageContext) -> None:
    """A teacher that was trained elsewhere, as it is."""
    take_model(Path(context.config.model.path), context.out)
