"""Where a joint run is: saved states from which a killed one goes on, and the files that grow with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl_lab.files import write_whole
from rl_lab.joint.schedule import PARTS
from rl_lab.json_lines import append_json_line, read_json_lines, write_json_lines
from rl_lab.language.grpo_state import Progress
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.learning.saved_states import LEARNER_FILE, SavedStates
from rl_lab.pool.store import POOL_FILE, PoolStore, remove_pool
from rl_lab.workers.weights import Snapshot, publish, pull

STATE_FILE = "state.json"
EXAMS_FILE = "exams.jsonl"
"""Both skills over time: turn, version, batches of GRPO, steps of RPRO, scores of every question and episode."""
GUARD_FILE = "guard.jsonl"
"""What the guard found and did, a `rl_lab.joint.guard.Event` a line."""


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


def _weights(folder: Path, version: int) -> Path:
    return folder / f"weights-{version}"
