"""Where a run is, kept so that a killed run goes on from its last checkpoint as if nothing had happened.

A joint run keeps saved states, and the files that grow with it; and whose turn it is: the order in which two objectives
step on one learner, as a pure function of the turns done. A turn is one batch of GRPO, or one block of steps of RPRO.
Letters: d_p turns done of part p, w_p its weight (its number of turns, or the configured ratio). Part p is a_p = d_p -
(w_p / w_q) d_q turns ahead of its share.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl_lab.curriculum.store import POOL_FILE, PoolStore, remove_pool
from rl_lab.files import append_json_line, read_json_lines, write_json_lines, write_whole
from rl_lab.learner.state import LEARNER_FILE, SavedStates
from rl_lab.model.checkpoint import Snapshot, publish, pull
from rl_lab.records.rollouts import RolloutStore

HELD_OUT_FILE = "held_out.jsonl"
"""Short examinations of the run: step, tokens so far, rewards of the held-out items."""

PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """Counts since the start of the run."""

    step: int = 0
    """Selections of the curriculum that are done."""
    batches: int = 0
    """Of these, batches that were for learning."""
    tokens: int = 0
    """Tokens that the engines wrote for them, refills included."""


class RunState:
    """Saved states of one run in `scratch`: learner, pool, older weights, examinations, counts.

    Copies of the pool stay in `out`.
    """

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        """At the last state that is whole and that the stored rollouts lead to; `warn` is told of what is not."""
        self.out, self.states, self._warn = out, SavedStates(scratch), warn
        self.states.drop_damaged(warn)
        self._drop_damaged_rollouts(warn)
        self.states.drop_damaged(warn)
        self._newest = self.states.newest
        self.progress = Progress()
        if self._newest is not None:
            self.progress = Progress(**json.loads((self._newest / PROGRESS_FILE).read_text()))

    def _drop_damaged_rollouts(self, warn: Callable[[str], None]) -> None:
        """What a damaged file held is asked again, from a state before it."""
        store = RolloutStore(self.out)
        for step, damage in store.damaged():
            warn(f"{damage}; its step is done again")
            store.path(step).unlink()
            self.states.drop_from(step)

    @property
    def learner_state(self) -> Path | None:
        """The learner's state at the last checkpoint; None before the first."""
        return self.states.learner_state

    def _checkpoint(self) -> Path:
        return self.out / "checkpoints" / f"step-{self.progress.step}"

    def open_pool(self, create: Callable[[Path], PoolStore]) -> PoolStore:
        """The pool as it was at the last checkpoint, or a new one, which is kept as checkpoint 0.

        So edits that somebody gives before the first checkpoint outlive a kill like all others.
        """
        path = self.out / POOL_FILE
        if self._newest is not None:
            return PoolStore.restore(self._newest, path, self._warn)
        remove_pool(path)  # of states that are all lost
        pool = create(path)
        self._save(pool, lambda folder: None)
        return pool

    def weights(self, version: int) -> Snapshot:
        """Older weights that the last checkpoint kept, because answers to come were asked of them."""
        assert self._newest is not None, "no state holds older weights"
        return publish(_weights(self._newest, version), version)

    def forget_later(self) -> None:
        """Put back the short examinations up to the last checkpoint; later ones come again."""
        saved = self._newest if self.progress.step else None  # the state of step 0 comes before its examination
        lines = [] if saved is None else read_json_lines(saved / HELD_OUT_FILE)
        write_json_lines(self.out / HELD_OUT_FILE, lines)

    def save(self, pool: PoolStore, save_learner: Callable[[Path], None], older: Sequence[Snapshot] = ()) -> None:
        """Make this the state to continue from. A kill in between leaves the one before."""

        def learner(folder: Path) -> None:
            save_learner(folder / LEARNER_FILE)
            for snapshot in older:
                pull(snapshot, _weights(folder, snapshot.version))

        self._save(pool, learner)

    def _save(self, pool: PoolStore, learner: Callable[[Path], None]) -> None:
        def write(folder: Path) -> None:
            learner(folder)
            write_json_lines(folder / HELD_OUT_FILE, read_json_lines(self.out / HELD_OUT_FILE, missing_ok=True))
            _link(pool.checkpoint(self._checkpoint()), folder / POOL_FILE)
            write_whole(folder / PROGRESS_FILE, json.dumps(asdict(self.progress)))

        self.states.save(self.progress.step, write)
        self._newest = self.states.newest


def _weights(folder: Path, version: int) -> Path:
    return folder / f"weights-{version}"


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


Priority = Literal["share", "grpo", "rpro"]

PARTS = ("grpo", "rpro")

Done = Mapping[str, int]
"""Turns done of every part."""


def other(part: str) -> str:
    """The other one of two parts."""
    return PARTS[1 - PARTS.index(part)]


class Schedule:
    """Turns of one arm: both parts interleaved, one after the other, or one alone (0 turns of the other)."""

    def __init__(
        self,
        turns: Mapping[str, int],
        *,
        ratio: tuple[float, float] | None = None,
        first: str | None = None,
        lead: int = 0,
    ) -> None:
        """`first`: that part does all its turns before the other begins; None: interleaved.

        `lead`: turns of GRPO before the first of RPRO, where they are interleaved.
        """
        self.turns = {part: turns.get(part, 0) for part in PARTS}
        self.first = first
        self.lead = min(lead, self.turns["grpo"]) if first is None and self.turns["rpro"] else 0
        weights = ratio or (max(1, self.turns["grpo"] - self.lead), max(1, self.turns["rpro"]))
        self.weights = dict(zip(PARTS, weights, strict=True))
        self.stopped: set[str] = set()
        """Parts that do no further turn."""

    @property
    def total(self) -> int:
        """Turns of both parts."""
        return sum(self.turns.values())

    def open_parts(self, done: Done) -> list[str]:
        """Parts that have begun, or may begin now, and are not through: what their workers should prepare."""
        left = [part for part in PARTS if done[part] < self.turns[part] and part not in self.stopped]
        return [self.first] if self.first in left else left

    def next(self, done: Done) -> str | None:
        """The part whose turn it is in the fixed order; None after the last."""
        open_parts = self._after_lead(done)
        return min(open_parts, key=lambda part: self._progress(part, done), default=None)

    def choose(self, done: Done, ready: Collection[str], *, priority: Priority, slack: int) -> str | None:
        """The part to learn from next among those with a batch that is ready; None: wait.

        One that is `slack` turns ahead of its share waits for the other, ready or not. Both cannot be ahead at once, so
        nobody waits forever.
        """
        open_parts = self._after_lead(done)
        allowed = [part for part in open_parts if len(open_parts) == 1 or self.ahead(part, done) < slack]
        candidates = [part for part in allowed if part in ready]
        if priority in candidates:
            return priority
        return min(candidates, key=lambda part: self._progress(part, done), default=None)

    def ahead(self, part: str, done: Done) -> float:
        """Turns that a part is ahead of its share, a_p; negative: behind."""
        counted = dict(done) | {"grpo": done["grpo"] - self.lead}
        return counted[part] - self.weights[part] / self.weights[other(part)] * counted[other(part)]

    def _after_lead(self, done: Done) -> list[str]:
        open_parts = self.open_parts(done)
        waits = done["grpo"] < self.lead and "grpo" in open_parts
        return [part for part in open_parts if not (waits and part == "rpro")]

    def _progress(self, part: str, done: Done) -> tuple[float, int]:
        """Middle of the part's next turn on a scale on which both should be equally far; GRPO first where they are."""
        count = done[part] - (self.lead if part == "grpo" else 0)
        return (count + 0.5) / self.weights[part], PARTS.index(part)


STATE_FILE = "state.json"

EXAMS_FILE = "exams.jsonl"
"""Both skills over time: turn, version, batches of GRPO, steps of RPRO, scores of every question and episode."""

GUARD_FILE = "guard.jsonl"
"""What the guard found and did, a `rl_lab.training.guard.Event` a line."""


@dataclass
class Counts:
    """What is done."""

    turn: int = 0
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    """Turns by part."""
    steps: int = 0
    """Steps of RPRO."""
    stopped: list[str] = field(default_factory=list)
    """Parts that the guard stopped."""
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Round of pairs -> `version` and `digest` of the weights that collect them."""


class JointState:
    """Saved states of one run in `scratch`: learner, pool, older weights, counts, guard."""

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        """At the last state that is whole and that the stored rollouts lead to; `warn` is told of what is not."""
        self.out, self.states, self.good = out, SavedStates(scratch / "states"), SavedStates(scratch / "good")
        self._warn = warn
        self.states.drop_damaged(warn)
        self._drop_damaged_rollouts(warn)
        self._drop_without_good()
        self.progress, self.counts = Progress(), Counts()
        self.guard: dict[str, Any] | None = None
        self._newest = self.states.newest
        if self._newest is not None:
            saved = json.loads((self._newest / STATE_FILE).read_text())
            self.progress, self.counts = Progress(**saved["language"]), Counts(**saved["counts"])
            self.guard = saved["guard"]
        self.good.drop_from(self.counts.turn + 1)  # of an examination that comes again

    def _drop_damaged_rollouts(self, warn: Callable[[str], None]) -> None:
        """What a damaged file held is asked again, from a state before it."""
        store = RolloutStore(self.out)
        for step, damage in store.damaged():
            warn(f"{damage}; its step is done again")
            store.path(step).unlink()
            for turn in self.states.steps():
                saved = json.loads((self.states.path(turn) / STATE_FILE).read_text())
                if saved["language"]["step"] >= step:
                    self.states.drop_from(turn)
                    break

    def _drop_without_good(self) -> None:
        """States are of use only as long as what their guard would roll back to is there."""
        self.good.drop_damaged(self._warn)
        for turn in reversed(self.states.steps()):
            guard = json.loads((self.states.path(turn) / STATE_FILE).read_text())["guard"] or {}
            if guard.get("good") in (None, *self.good.steps()):
                return
            self._warn(f"what the guard would roll back to at turn {turn} is lost; going on from before it")
            self.states.drop_from(turn)

    @property
    def learner_state(self) -> Path | None:
        """The learner's state at the last checkpoint; None before the first."""
        return self.states.learner_state

    @property
    def good_state(self) -> Path:
        """The learner's state at the last examination without harm."""
        assert self.good.newest is not None, "the first examination is without harm"
        return self.good.newest / LEARNER_FILE

    def open_pool(self, create: Callable[[Path], PoolStore]) -> PoolStore:
        """The pool as it was at the last checkpoint, or a new one, which is kept as checkpoint 0."""
        path = self.out / POOL_FILE
        if self._newest is not None:
            return PoolStore.restore(self._newest, path, self._warn)
        remove_pool(path)  # of states that are all lost
        pool = create(path)
        self.save(pool, lambda folder: None, [])
        return pool

    def weights(self, version: int) -> Snapshot:
        """Older weights that the last checkpoint kept, because answers or pairs to come were asked of them."""
        assert self._newest is not None, "no state holds older weights"
        return publish(_weights(self._newest, version), version)

    def forget_later(self) -> None:
        """Put back what the files said at the last checkpoint; later turns come again."""
        saved = self._newest if self.counts.turn else None  # the state of turn 0 comes before its examination
        for name in (EXAMS_FILE, GUARD_FILE):
            write_json_lines(self.out / name, [] if saved is None else read_json_lines(saved / name))

    def append(self, name: str, line: dict[str, Any]) -> None:
        """A line of one of the files."""
        append_json_line(self.out / name, line)

    def save_good(self, save_learner: Callable[[Path], None]) -> None:
        """Keep the learner as it is now to roll back to."""
        self.good.save(self.counts.turn, lambda folder: save_learner(folder / LEARNER_FILE))

    def save(self, pool: PoolStore, save_learner: Callable[[Path], None], older: Sequence[Snapshot]) -> None:
        """Make this the state to continue from. A kill in between leaves the one before."""

        def write(folder: Path) -> None:
            save_learner(folder / LEARNER_FILE)
            for snapshot in older:
                pull(snapshot, _weights(folder, snapshot.version))
            pool.checkpoint(folder)
            for name in (EXAMS_FILE, GUARD_FILE):
                write_json_lines(folder / name, read_json_lines(self.out / name, missing_ok=True))
            content = {"language": asdict(self.progress), "counts": asdict(self.counts), "guard": self.guard}
            write_whole(folder / STATE_FILE, json.dumps(content))

        self.states.save(self.counts.turn, write)
        self._newest = self.states.newest
