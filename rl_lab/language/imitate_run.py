"""The control of on-policy distillation: cross-entropy on the teacher's own answers, with the same examinations.

Traces are taken in passes over all of them; what counts as a token is a token that was trained on, again in each pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from rl_lab.files import write_file, write_whole
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.language.grpo_exam import HeldOutExam
from rl_lab.language.grpo_state import HELD_OUT_FILE, PROGRESS_FILE, Progress
from rl_lab.language.item_files import ItemFile
from rl_lab.language.model import item_prompt, load_chat_processor
from rl_lab.language.reward_failures import RewardFailures
from rl_lab.language.reward_models import make_rewards
from rl_lab.language.rft_training import INDEX_SCHEMA, TraceFile
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.language.token_batching import expanded_tokens
from rl_lab.language.training import epoch_order
from rl_lab.learning.saved_states import LEARNER_FILE, SavedStates
from rl_lab.learning.watch import Watch, nothing_learned
from rl_lab.records.types import Completion, RolloutGroup, num_tokens
from rl_lab.runner.stage_context import StageContext
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import BAD_BATCH_FILE, LearnerHandle

INDEX_FILE = "traces.arrow"


def index_traces(traces: Path, items: ItemFile, path: Path) -> None:
    """All stored traces of a stage, whatever its selection says of them, as a file to be read by number."""
    rows, store = items.rows_by_id(), RolloutStore(traces)

    def write(file: Any) -> None:
        with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
            for step in store.steps():
                found = store.read(steps=[step], columns=["item", "tokens"])
                numbers = pa.array([rows[row["item"]] for row in found], pa.int64())
                tokens = pa.array([row["tokens"] for row in found], pa.list_(pa.int32()))
                writer.write_batch(pa.record_batch([numbers, tokens], schema=INDEX_SCHEMA))

    write_file(path, write)


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
