"""Joint training: two feeds in the training loop; examinations of both skills, and what the guard does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl_lab.common.files import append_json_line
from rl_lab.common.seeding import integer
from rl_lab.graph.stage import StageContext
from rl_lab.learner.joint import SHARED
from rl_lab.records.types import EXAMS_FILE, GUARD_FILE, Exam, known_mean
from rl_lab.rollouts.clock import Clock
from rl_lab.training.evaluation import SkillExams
from rl_lab.training.feeds import ActionFeed, LanguageFeed
from rl_lab.training.guard import Guard, Harm
from rl_lab.training.loop import Line, TrainingLoop, Turn
from rl_lab.training.online import grpo_method
from rl_lab.training.schedule import Schedule
from rl_lab.training.state import JointState
from rl_lab.training.watch import Alarm, nothing_learned
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


class JointRun(TrainingLoop):
    """One arm: `run()` brings it from its last checkpoint to its end.

    RuntimeError also when there is no pair to begin with.
    """

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
        method = grpo_method(config)
        language = LanguageFeed(context, policy, engines, learner, state, method, seed=seed)
        actions = ActionFeed(context, simulations, learner, state)
        super().__init__(context, learner, state, {"grpo": language, "rpro": actions}, make_schedule(context))
        self.state: JointState = state
        self.settings = config.joint
        self.exams = SkillExams(
            context,
            seed,
            engines,
            simulations,
            language.processor,
            language.rewards,
            lambda failures: language.failures.tell(self.progress.turn, failures),
        )
        self.clock = Clock(engines=engines, simulators=simulations)
        self.alarms = [_nothing_learned(part, turns) for part, turns in self.schedule.turns.items() if turns]
        guarded = context.node.params["arm"] == "together" and config.joint.guard is not None
        self.guard = Guard(config.joint.guard) if guarded else None
        if self.guard is not None and state.progress.guard is not None:
            self.guard.load_state_dict(state.progress.guard)

    def next(self) -> str | None:
        """Whose turn it is: by the fixed order, or who is ready; None after the last turn."""
        done = self.progress.done
        if self.settings.mode == "synchronous":
            return super().next()
        while self.schedule.next(done) is not None:
            ready = [part for part, feed in self.feeds.items() if feed.is_ready]
            part = self.schedule.choose(done, ready, priority=self.settings.priority, slack=self.settings.slack)
            if part is not None:
                return part
            self.context.check_stop()
            time.sleep(POLL_S)
        return None

    def take(self, part: str) -> Turn:
        """A turn, with a look at who is at work."""
        self.clock.begin()
        return super().take(part)

    def describe(self, part: str, line: Line) -> Line:
        """Metrics that carry the objective's name, and what is measured for both alike."""
        learn_s = line["seconds/learn"] + line.get("seconds/publish", 0.0)
        described = {_name(part, name): value for name, value in line.items() if not name.startswith(LEFT_OUT)}
        described |= self.clock.turn_line(learn_s)
        described |= {f"turns/{name}": float(count) for name, count in self.progress.done.items()}
        return described | {"part": part, "weight_version": float(self.weights.version)}

    def is_due(self, *, is_last: bool) -> bool:
        """After so many turns, and after the last."""
        return self.progress.turn % self.settings.exam_every == 0 or is_last

    def save_after(self, *, examined: bool) -> bool:
        """After every examination, too: the guard may have changed something."""
        return examined or super().save_after(examined=examined)

    def examine(self) -> Line:
        """Examine both skills and let the guard judge; means, and seconds that it took."""
        progress = self.progress
        with self.clock.timed("examine"):
            exam = Exam(progress.turn, self.exams.examine(self.weights))
            self._append(
                EXAMS_FILE,
                {
                    "turn": exam.turn,
                    "version": self.weights.version,
                    "batches": progress.batches,
                    "steps": progress.pair_steps,
                    "tokens": progress.tokens,
                    "scores": exam.scores,
                },
            )
            found = {f"skill/{skill}": known_mean(scores) for skill, scores in exam.scores.items()}
            if self.guard is not None:
                self._guard(self.guard, exam)
        return found | {"seconds/examine": self.clock.spent("examine")}

    def _append(self, name: str, line: dict[str, Any]) -> None:
        append_json_line(self.context.out / name, line)

    def _guard(self, guard: Guard, exam: Exam) -> None:
        """Look for harm, find out who did it, and do what is configured."""
        found = guard.examine(exam)
        for harm in found:
            if not guard.is_recovering(harm, exam) and harm.suspect not in self.schedule.stopped:
                self._answer(guard, harm, exam)
        if not found:
            self.state.save_good(self.learner.save)
        self.progress.guard = guard.state_dict()

    def _answer(self, guard: Guard, harm: Harm, exam: Exam) -> None:
        without = self.learner.publish_without(harm.suspect)
        scores = self.exams.examine(without, [harm.skill])[harm.skill]
        trained = {"grpo": self.context.config.rl.train, "rpro": self.context.config.optimise.train}[harm.suspect]
        event = guard.decide(harm, exam, scores, can_freeze=bool(set(trained) - set(SHARED)))
        self._act(event.action, event.objective)
        self._append(GUARD_FILE, asdict(event))
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
            self.progress.stopped.append(objective)
        elif action == "roll_back":
            self.learner.roll_back(self.state.good_state, objective, factor)
            self.weights = self.learner.publish()
            self.prepare()


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
