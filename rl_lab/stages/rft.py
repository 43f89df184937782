"""Rejection-sampling fine-tuning: sample traces and choose from them, and train on what was kept.

Every question of a pool is asked in fixed steps, its traces scored, stored, and chosen from; a judge of the run gets
rows of the rollout store and gives scores. A step is a fixed number of questions, whose answers follow from the run's
seed, the question and the weights. It is written whole into the rollout store and never asked again; so a run that is
killed asks for the missing steps only. In memory at a time: the step that is waited for, and as many behind it as keep
the engines at work.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import ray

from algos.curriculum.items import Array
from algos.rft import RFTOptions, band_reason, num_correct
from rewards.judge import JudgedTrace, MalformedVerdictError, ReasoningJudge, reference_text
from rl_lab.common.errors import RunError, UserError
from rl_lab.common.seeding import integer, stream
from rl_lab.config.language import TracesConfig
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.learner.rft import RFTPlan, write_index
from rl_lab.model.checkpoint import load_chat_processor, published
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutRow, RolloutStore, stored_groups
from rl_lab.records.token_batches import with_token_texts
from rl_lab.records.types import RolloutGroup, Sampling, group_rewards
from rl_lab.rollouts.answering import RewardFailures, engines, make_rewards, policy_folder
from rl_lab.rollouts.clock import Clock
from rl_lab.rollouts.rollouter import Issued, Questioner
from rl_lab.stages.base import BASE_MODEL, ENGINES, SECONDS_PER_ANSWER, TrainingKind
from rl_lab.stages.rft_selection import RFT_FILE, RFTSelection, RFTSummary, TraceScorer
from rl_lab.stages.trl import trl_sft
from rl_lab.training.dataset import train
from rl_lab.training.online import length_line, reward_line
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import Weights
from rl_lab.workers.pool import WorkerPool

SILENT = 8
"""If it scores none of at least so many traces, the judge is taken to be out of order and not the traces; of fewer, if
it has not scored any yet and no reply of it was there to be read."""

CALLS_PER_STEP = 16
"""Calls of the engines, `engine.prompts_per_call` questions each, whose answers are stored together."""

TIMES = ("seconds/generate", "seconds/score", "seconds/step", "idle/rollout")

POOL_FILE = "train.arrow"

INDEX_FILE = "kept.arrow"


class TracesKind(StageKind):
    """Traces of a policy for the questions of the pool, and which of them are kept."""

    name = "traces"
    named_in = ()
    reads = ("model", "engine", "traces", "rewards")
    workers = ENGINES
    folder = "rft"
    is_live = True
    seconds_per_unit = SECONDS_PER_ANSWER

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Answers."""
        return (config.traces.items or config.questions.train) * config.traces.samples, "answers"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Traces of the policy for the questions of the pool, and which of them are kept."""
        with engines(cluster, context) as pool:
            num_steps = sample(context, pool)
        settings, config = context.config.traces, context.config.rewards.judge
        judge = None
        if settings.select.min_judge_score is not None:
            judge = TraceJudge(ReasoningJudge(config), ItemFile(context.inputs["questions"] / POOL_FILE))
        summary = select_traces(context, settings.select, judge, num_steps + 1)
        if not summary.kept:
            context.say(f"none of {summary.candidates} traces was kept: {summary.dropped}")


class RFTKind(TrainingKind):
    """Cross-entropy on the kept traces."""

    name = "rft"
    named_in = ("stages", "repeat", "branch")
    after = ("questions",)
    start = BASE_MODEL
    reads = ("model", "rft")
    makes_chain = True
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces of the newest model, on which it or the base is trained."""
        graph.extend(step, {}, graph.base if graph.config.rft.start == "base" else graph.head, sampled=True)

    def samples(self, config: RunConfig) -> bool:
        """The traces."""
        return True

    def check(self, config: RunConfig) -> None:
        """Traces can be sampled."""
        check_traces(config)

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Cross-entropy on the kept traces, in the Learner or with TRL."""
        settings = context.config.rft
        pool_file, index = context.inputs["questions"] / POOL_FILE, context.scratch / INDEX_FILE
        if not index.exists():
            write_index(context.inputs["traces"], ItemFile(pool_file), index)
        plan = RFTPlan(policy_folder(context), settings, index, pool_file, context.own_seed("rft"))
        (trl_sft if settings.backend == "trl" else partial(train, cluster))(context, plan)


def check_traces(config: RunConfig) -> None:
    """The engine, the judge and the questions that traces need are there."""
    traces, judge = config.traces, config.rewards.judge
    if traces.max_tokens >= config.engine.max_model_len:
        raise UserError(
            f"engine.max_model_len is {config.engine.max_model_len}, but traces may be {traces.max_tokens} tokens long "
            "and come behind a prompt; raise it, or lower traces.max_tokens"
        )
    if traces.select.min_judge_score is not None and judge is None:
        raise UserError(
            f"traces.select.min_judge_score is {traces.select.min_judge_score:g}, but there is no judge to ask; give "
            "rewards.judge, or leave min_judge_score out"
        )
    num_train = config.questions.train
    if config.questions.train_file is None and (traces.items or 0) > num_train:
        raise UserError(
            f"traces.items is {traces.items}, but questions.train is {num_train}; ask no more than there are"
        )


class TraceJudge:
    """A `rft_selection.TraceScorer`, over the judge's endpoint."""

    def __init__(self, judge: ReasoningJudge, items: ItemFile) -> None:
        self.judge, self.items = judge, items
        self._rows = items.rows_by_id()
        self._works = False

    def __call__(self, rows: Sequence[RolloutRow]) -> list[float | None]:
        """A score in 0..1 for each trace, None where a call failed.

        RunError where the judge is out of order: dropping every trace as unjudged would look like a result.
        """
        scores, failures = self.judge([self._trace(row) for row in rows])
        silent = all(score is None for score in scores)
        replied = any(failure.detail.startswith(MalformedVerdictError.__name__) for failure in failures)
        if silent and (len(rows) >= SILENT or not self._works and not replied):
            raise RunError(
                f"the judge scored none of {len(rows)} traces, the first for: {failures[0].detail}; mend rewards.judge "
                "or its server, and resume"
            )
        self._works |= not silent
        return scores

    def _trace(self, row: RolloutRow) -> JudgedTrace:
        record = self.items.record(self._rows[row["item"]])
        return JudgedTrace(record["prompt"], reference_text(record["answer"], record["solution"]), row["completion"])


@dataclass(frozen=True)
class TracePlan:
    """Which questions are asked in which step; follows from the settings alone."""

    numbers: Array
    """Rows of the pool's file, int64, in the order in which they are asked."""
    per_step: int

    @property
    def num_steps(self) -> int:
        """Steps of the store, counted from 1."""
        return math.ceil(len(self.numbers) / self.per_step)

    def step(self, number: int) -> Array:
        """The rows that a step asks."""
        return self.numbers[(number - 1) * self.per_step : number * self.per_step]


def trace_plan(pool_size: int, settings: TracesConfig, prompts_per_call: int, seed: int) -> TracePlan:
    """All of the pool or as many as wanted, in an order drawn by the seed."""
    order = stream(seed, "traces", "order").permutation(pool_size)
    return TracePlan(order[: settings.items], CALLS_PER_STEP * prompts_per_call)


class TraceSampler:
    """Asks the steps that the store does not have, and stores them."""

    def __init__(
        self, context: StageContext, settings: TracesConfig, questioner: Questioner, weights: Weights, seed: int
    ) -> None:
        """`weights` write all traces; `seed` decides on the questions and their answers."""
        self.context, self.settings, self.questioner, self.weights = context, settings, questioner, weights
        self.seed, self.store = seed, RolloutStore(context.out)
        per_call = questioner.prompts_per_call
        self.plan = trace_plan(len(questioner.items), settings, per_call, seed)
        self.failures = RewardFailures(context)
        self.ahead = math.ceil(questioner.engines.num_workers / CALLS_PER_STEP)

    def run(self) -> None:
        """Bring the store to its last step; a line of metrics for each."""
        self._drop_damaged()
        stored, num_steps = set(self.store.steps()), self.plan.num_steps
        done = next((step for step in range(1, num_steps + 1) if step not in stored), num_steps + 1) - 1
        first = max(done, 1)  # a kill may have come between a step's file and its line
        self.context.resume_from(first - 1)
        for issued in self._in_flight(range(first, num_steps + 1), stored):
            self.questioner.clock.begin()
            groups, first_failures = self.questioner.groups(issued)
            if issued.step not in stored:
                self.failures.check(issued.step, groups, first_failures)
                self.store.write(issued.step, with_token_texts(groups, self.questioner.processor))
            self.context.log(issued.step, **self._line(groups))
            self.context.progress(issued.step, num_steps, f"{issued.step * self.plan.per_step} questions")

    def _drop_damaged(self) -> None:
        """Ask steps again whose file is damaged. UserError if the selection from them has begun."""
        for step, words in self.store.damaged():
            if (self.context.out / RFT_FILE).exists():
                raise UserError(f"{words}, and traces were chosen from it; remove {self.context.out} and resume")
            self.context.say(f"{words}; its questions are asked again")
            self.store.path(step).unlink()

    def _in_flight(self, steps: range, stored: set[int]) -> Iterator[Issued]:
        """The steps in order, with the next ones asked before one is waited for."""
        waiting: deque[Issued] = deque()
        for step in steps:
            waiting.append(self._issue(step, step in stored))
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        yield from waiting

    def _issue(self, step: int, is_stored: bool) -> Issued:
        """Give a step's questions to the engines, or take its answers from the store."""
        numbers = self.plan.step(step)
        seeds = [integer(self.seed, "traces", number) for number in numbers.tolist()]
        prompts = self.questioner.prompts(numbers, seeds)
        completions = stored_groups(self.store.read(steps=[step])) if is_stored else []
        asked = [] if is_stored else self.questioner.ask(prompts, self.weights)
        return Issued(step, numbers, True, self.weights, prompts, asked, completions)

    def _line(self, groups: list[RolloutGroup]) -> dict[str, float]:
        """Rewards, lengths and seconds of a step."""
        clock = self.questioner.clock.line(self.questioner.engines.num_workers)
        return {
            **reward_line(groups),
            **length_line(groups),
            "traces/partial": partial_share(group_rewards(groups), self.settings.select),
            "weight_version": float(self.weights.version),
            **{name: clock[name] for name in TIMES},
        }


def partial_share(rewards: Array, options: RFTOptions) -> float:
    """Share of questions whose answers, rewards [P, G], are a partial success."""
    known = [row[~np.isnan(row)].tolist() for row in rewards]
    return float(np.mean([band_reason(num_correct(row, options), len(row), options) is None for row in known]))


def select_traces(context: StageContext, options: RFTOptions, judge: TraceScorer | None, step: int) -> RFTSummary:
    """Choose from all stored traces of the stage; logs what became of them as the line of `step`.

    Says so, and raises an alarm, where all traces of the items of one reward type were dropped.
    """

    def tell(name: str, done: int, total: int) -> None:
        context.progress(done, total, name)

    selection = RFTSelection(context.out, options, judge)
    summary = selection.finish(tell)
    types = ItemFile(context.inputs["questions"] / "train.arrow").reward_types()
    sampled, kept = Counter[str](), Counter[str]()
    for item, num_sampled, num_kept in selection.kept_by_item():
        sampled[types[item]] += num_sampled
        kept[types[item]] += num_kept
    context.log(
        step,
        **{
            "traces/candidates": summary.candidates,
            "traces/kept": summary.kept,
            "traces/items": summary.items,
            "traces/items_kept": summary.items_kept,
        },
        **{f"why_dropped/{reason}": count for reason, count in summary.dropped.items()},
        **{f"kept_type/{name}": kept[name] / count for name, count in sampled.items()},
    )
    for name in sorted(name for name in sampled if not kept[name]):
        text = f"nothing kept: none of {sampled[name]} traces of questions with reward type {name}; see traces.select"
        context.say(text)
        context.log(step, alarm=text)
    return summary


def sample(context: StageContext, pool: WorkerPool) -> int:
    """All traces of a stage into its rollout store; the number of its last step there."""
    settings, policy = context.config.traces, policy_folder(context)
    rewards, snapshot = make_rewards(context.config.rewards), published(policy)
    questioner = Questioner(
        ItemFile(context.inputs["questions"] / POOL_FILE),
        pool,
        load_chat_processor(policy),
        rewards,
        Sampling(settings.max_tokens, temperature=settings.temperature, num_generations=settings.samples),
        context.config.engine.prompts_per_call,
        Clock(),
        context.check_stop,
    )
    weights = Weights(snapshot.version, ray.put(snapshot))
    sampler = TraceSampler(context, settings, questioner, weights, context.own_seed("traces"))
    try:
        sampler.run()
    finally:
        rewards.close()
    return sampler.plan.num_steps
