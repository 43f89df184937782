"""Joint training: two feeds, one learner, turn after turn; examinations of both skills, and what the guard does.

prepare (engines and simulators are at it) -> whose turn? -> learn -> publish -> prepare -> (examine, guard, save)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl_lab.graph.stage import StageContext
from rl_lab.learner.joint import SHARED
from rl_lab.records.item_files import ItemFile
from rl_lab.rollouts.clock import Times
from rl_lab.seeding import integer
from rl_lab.training.evaluation import SkillExams
from rl_lab.training.feeds import ActionFeed, Feed, LanguageFeed
from rl_lab.training.guard import Exam, Guard, Harm, mean
from rl_lab.training.online import GRPOSteps
from rl_lab.training.state import EXAMS_FILE, GUARD_FILE, JointState, Schedule
from rl_lab.training.watch import Alarm, Watch, nothing_learned
from rl_lab.workers.learner import LearnerHandle
from rl_lab.workers.pool import WorkerPool

POLL_S = 0.02
LEFT_OUT = ("idle/", "seconds/", "weight_version")
"""Of a turn's metrics: what is measured here for both parts alike."""


def make_schedule(context: StageContext) -> Schedule:
    """The turns of the node's arm."""
    config, arm = context.config, context.node.params["arm"]
    joint, blocks = config.joint, -(-config.optimise.steps // config.joint.block)
    turns = {"grpo": config.rl.steps, "rpro": joint.rounds * blocks}
    if arm.endswith("_alone"):
        part = arm.removesuffix("_alone")
        return Schedule({part: turns[part]}, first=part)
    if arm == "sequence":
        return Schedule(turns, first=joint.first)
    return Schedule(turns, ratio=joint.ratio, lead=joint.lead)


class JointRun:
    """One arm: `run()` brings it from its last checkpoint to its end."""

    def __init__(
        self,
        context: StageContext,
        policy: Path,
        engines: WorkerPool,
        simulations: WorkerPool,
        learner: LearnerHandle,
        state: JointState,
    ) -> None:
        """`learner` stands at the state's checkpoint; `policy` is the checkpoint folder that the run began with."""
        config, seed = context.config, integer(context.seed, "joint")
        self.context, self.learner, self.state = context, learner, state
        self.settings, self.counts = config.joint, state.counts
        self.schedule = make_schedule(context)
        self.schedule.stopped |= set(state.counts.stopped)
        scheme = config.curriculum.scheme
        self.steps = GRPOSteps(context, policy, engines, learner, state, scheme=scheme, seed=seed)
        self.weights = self.steps.weights
        self.language, self.actions = LanguageFeed(self.steps), ActionFeed(context, simulations, learner, state)
        self.feeds: dict[str, Feed] = {"grpo": self.language, "rpro": self.actions}
        self.exams = SkillExams(
            ItemFile(context.inputs["development"] / "development.arrow"),
            self.steps.rollouts.questioner.processor,
            self.steps.rewards,
            engines,
            simulations,
            config,
            seed=seed,
            check_stop=context.check_stop,
            tell=lambda scored: self.steps.failures.tell(self.counts.turn, scored),
        )
        self.times, self.watch = Times(engines, simulations), Watch(context)
        self.alarms = [_nothing_learned(part, turns) for part, turns in self.schedule.turns.items() if turns]
        guarded = context.node.params["arm"] == "together" and config.joint.guard is not None
        self.guard = Guard(config.joint.guard) if guarded else None
        if self.guard is not None and state.guard is not None:
            self.guard.load_state_dict(state.guard)

    def run(self) -> None:
        """Turn after turn. RuntimeError when a loss is not a number, when trainer and engines disagree by more than
        the limit about answers by the newest weights, and when there is no pair to begin with."""
        self.watch.add(*self.context.resume_from(self.counts.turn if self.counts.turn else -1))
        self.state.forget_later()
        try:
            if self.counts.turn == 0:
                self.context.log(0, weight_version=self.weights.version, **self._examine())
            self._prepare()
            while (part := self._next()) is not None:
                self._turn(part)
            self.learner.finish(self.context.out)
            self.steps.pool.seal()
        finally:
            self.actions.close()
            self.steps.close()

    def _next(self) -> str | None:
        """Whose turn it is: by the fixed order, or who is ready; None after the last turn."""
        done = self.counts.done
        if self.settings.mode == "synchronous":
            return self.schedule.next(done)
        while self.schedule.next(done) is not None:
            ready = [part for part, feed in self.feeds.items() if feed.is_ready]
            part = self.schedule.choose(done, ready, priority=self.settings.priority, slack=self.settings.slack)
            if part is not None:
                return part
            self.context.check_stop()
            time.sleep(POLL_S)
        return None

    def _prepare(self) -> None:
        """Give engines and simulators what the next turns need."""
        for part in self.schedule.open_parts(self.counts.done):
            self.feeds[part].prepare(self.weights)

    def _turn(self, part: str) -> None:
        """One turn, and what is due after it."""
        with self.times.turn():
            metrics, self.weights = self.feeds[part].turn(self.weights)
            self.counts.done[part] += 1
            self.counts.turn += 1
            self._prepare()
        turn = self.counts.turn
        line = {_name(part, name): value for name, value in metrics.items() if not name.startswith(LEFT_OUT)}
        learn_s = metrics["seconds/learn"] + metrics.get("seconds/publish", 0.0)
        line |= self.times.line(learn_s) | {f"turns/{name}": float(count) for name, count in self.counts.done.items()}
        version = float(self.weights.version)
        is_last = self.schedule.next(self.counts.done) is None
        examined = turn % self.settings.exam_every == 0 or is_last
        if examined:
            line |= self._examine()
        self.context.log(turn, part=part, weight_version=version, **line)
        self.watch.add(line | {"part": part})
        self.watch.look(turn, *self.alarms)
        if metrics.get("rollouts/staleness") == 0:  # else RPRO has moved the weights since the engines answered
            self.steps.check_mismatch(metrics)
        if examined or turn % self.context.checkpoint_every(self.schedule.total) == 0:
            self._save()
        self.context.progress(turn, self.schedule.total, f"version {self.weights.version}")

    def _examine(self) -> dict[str, float]:
        """Examine both skills and let the guard judge; means, and seconds that it took."""
        with self.times.examining():
            exam = Exam(self.counts.turn, self.exams.examine(self.weights))
            self.state.append(
                EXAMS_FILE,
                {
                    "turn": exam.turn,
                    "version": self.weights.version,
                    "batches": self.state.progress.batches,
                    "steps": self.counts.steps,
                    "tokens": self.state.progress.tokens,
                    "scores": exam.scores,
                },
            )
            found = {f"skill/{skill}": mean(scores) for skill, scores in exam.scores.items()}
            if self.guard is not None:
                self._guard(self.guard, exam)
        return found | {"seconds/examine": self.times.examine_s}

    def _guard(self, guard: Guard, exam: Exam) -> None:
        """Look for harm, find out who did it, and do what is configured."""
        found = guard.examine(exam)
        for harm in found:
            if not guard.is_recovering(harm, exam) and harm.suspect not in self.schedule.stopped:
                self._answer(guard, harm, exam)
        if not found:
            self.state.save_good(self.learner.save)
        self.state.guard = guard.state_dict()

    def _answer(self, guard: Guard, harm: Harm, exam: Exam) -> None:
        without = self.learner.publish_without(harm.suspect)
        scores = self.exams.examine(without, [harm.skill])[harm.skill]
        trained = {"grpo": self.context.config.rl.train, "rpro": self.context.config.optimise.train}[harm.suspect]
        event = guard.decide(harm, exam, scores, can_freeze=bool(set(trained) - set(SHARED)))
        self._act(event.action, event.objective)
        self.state.append(GUARD_FILE, asdict(event))
        self.context.log(exam.turn, alarm=event.text)
        self.context.say(event.text)

    def _act(self, action: str, objective: str) -> None:
        factor = self.settings.guard.lower_by
        if action == "lower":
            self.learner.lower(objective, factor)
        elif action == "freeze":
            self.learner.freeze(objective)
        elif action == "stop":
            self.schedule.stopped.add(objective)
            self.counts.stopped.append(objective)
        elif action == "roll_back":
            self.learner.roll_back(self.state.good_state, objective, factor)
            self.weights = self.learner.publish()
            self._prepare()

    def _save(self) -> None:
        """Make this the state to continue from, with the older weights that work under way was given."""
        self.steps.weights = self.weights
        older = {one.version: one for one in self.language.older_weights()}
        older |= {one.version: one for one in self.actions.older_weights(self.weights)}
        self.state.save(self.steps.pool, self.learner.save, [*older.values()])


def _nothing_learned(part: str, turns: int) -> Alarm:
    """The alarm about the turns of one objective, by their lines among those of both."""
    alarm = nothing_learned(turns)

    def look(lines: Sequence[dict[str, Any]]) -> str | None:
        own = [
            {name.removeprefix(f"{part}/"): value for name, value in line.items()}
            for line in lines
            if line.get("part") == part
        ]
        text = alarm(own)
        return text and f"{part}: {text}"

    return look


def _name(part: str, name: str) -> str:
    """Metrics of an objective carry its name; what the two share does not."""
    return name if name.startswith(("drift/", "cosine/")) else f"{part}/{name}"
