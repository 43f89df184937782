"""The training loop: feeds in turn on one learner, from the last checkpoint to the end.

    whose turn? -> learn -> publish -> prepare (workers are at it) -> (examine) -> log -> alarms -> (save)

A feed prepares its next batch as soon as it may be needed, and its workers are at it while the learner takes other
turns. When that is follows from the turns done, and so not from who is fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl_lab.graph.stage import StageContext
from rl_lab.model.checkpoint import Snapshot
from rl_lab.training.schedule import Schedule
from rl_lab.training.state import RunState
from rl_lab.training.watch import Alarm, Watch
from rl_lab.workers.learner import LearnerHandle, Weights

Line = dict[str, Any]
"""Metrics."""


@dataclass(frozen=True)
class Turn:
    """What a feed's turn gave."""

    line: Line | None
    """None: nothing to tell, because a probe of stage mode waits."""
    weights: Weights
    """After it."""
    learned: bool = True
    """It was for learning, and so is counted."""


class Feed(Protocol):
    """What an objective learns from; by default a turn itself asks and waits for all that it needs."""

    def prepare(self, weights: Weights) -> None:
        """Begin what the next turn needs, with these weights, unless that has begun."""
        return

    @property
    def is_ready(self) -> bool:
        """Whether the next turn's batch is there."""
        return True

    def turn(self, weights: Weights) -> Turn:
        """Learn from the next batch, with the weights of the moment."""

    def check(self, line: Line) -> None:
        """RuntimeError where the metrics of a turn say that training must not go on."""
        return

    def older_weights(self, newest: Weights) -> list[Snapshot]:
        """Weights, but for the newest, that work under way was given."""
        return []

    def close(self) -> None:
        """Let go of what it holds."""
        return


class TrainingLoop:
    """One run: `run()` brings it from its last checkpoint to its end."""

    alarms: Sequence[Alarm] = ()
    """Asked after every turn that is logged."""
    last_alarms: Sequence[Alarm] = ()
    """Asked after the last."""

    def __init__(
        self,
        context: StageContext,
        learner: LearnerHandle,
        state: RunState,
        feeds: Mapping[str, Feed],
        schedule: Schedule,
    ) -> None:
        """`learner` and `feeds` stand at the state's checkpoint."""
        self.context, self.learner, self.state, self.feeds = context, learner, state, feeds
        self.schedule, self.progress, self.watch = schedule, state.progress, Watch(context)
        self.schedule.stopped |= set(self.progress.stopped)
        self.progress.done = dict.fromkeys(feeds, 0) | self.progress.done
        self.weights = learner.publish()
        """The newest."""
        self._every = context.checkpoint_every(schedule.total)

    @property
    def done(self) -> int:
        """Turns that were for learning."""
        return sum(self.progress.done.values())

    def run(self) -> None:
        """Turn after turn. RuntimeError when a loss is not a number, and when trainer and engines disagree by more than
        the limit about answers by the newest weights; other errors as the feeds' turns."""
        progress = self.progress
        self.watch.add(*self.context.resume_from(progress.turn or -1))
        self.state.forget_later()
        try:
            if progress.turn == 0:
                self.context.log(0, **self.examine(), weight_version=self.weights.version)
            self.prepare()
            while (part := self.next()) is not None:
                self._turn(part)
            self.watch.look(progress.turn, *self.last_alarms)
            self.learner.finish(self.context.out)
            self.state.seal_pool()
        finally:
            self.close()

    def next(self) -> str | None:
        """Whose turn it is; None after the last."""
        return self.schedule.next(self.progress.done)

    def prepare(self) -> None:
        """Give workers what the next turns need."""
        for part in self.schedule.open_parts(self.progress.done):
            self.feeds[part].prepare(self.weights)

    def examine(self) -> Line:
        """An examination; its metrics."""
        raise NotImplementedError

    def is_due(self, *, is_last: bool) -> bool:
        """Whether there is an examination after the turn that is over."""
        raise NotImplementedError

    def take(self, part: str) -> Turn:
        """A turn of a part, and what follows from its weights."""
        turn = self.feeds[part].turn(self.weights)
        self.weights = turn.weights
        self.progress.turn += 1
        self.progress.done[part] += turn.learned
        self.prepare()
        return turn

    def describe(self, part: str, line: Line) -> Line:
        """The metrics of a part's turn as they are logged."""
        return line

    def save_after(self, *, examined: bool) -> bool:
        """Whether the turn that is over, which was for learning, is one to continue from."""
        return self.done % self._every == 0

    def close(self) -> None:
        """Let go of what the feeds hold."""
        for feed in self.feeds.values():
            feed.close()

    def _turn(self, part: str) -> None:
        """One turn, and what is due after it."""
        turn = self.take(part)
        examined = turn.line is not None and self._log(part, turn.line, learned=turn.learned)
        if turn.learned and self.save_after(examined=examined):
            self.save()
        self.context.progress(self.done, self.schedule.total, self.words())

    def _log(self, part: str, told: Line, *, learned: bool) -> bool:
        """Log a turn's metrics, with an examination if one is due, and look for alarms; whether it was examined."""
        line = self.describe(part, told)
        examined = learned and self.is_due(is_last=self.schedule.next(self.progress.done) is None)
        if examined:
            line |= self.examine()
        self.context.log(self.progress.turn, **line)
        self.watch.add(line)
        self.watch.look(self.progress.turn, *self.alarms)
        self.feeds[part].check(told)
        return examined

    def words(self) -> str:
        """How far it is, for people."""
        return f"version {self.weights.version}"

    def save(self) -> None:
        """Make this the state to continue from, with the older weights that work under way was given."""
        older = {one.version: one for feed in self.feeds.values() for one in feed.older_weights(self.weights)}
        self.state.save(self.learner.save, [*older.values()])
