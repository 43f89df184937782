"""Where a run of training is, kept so that a killed run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl_lab.common.files import read_json_lines, write_json_lines, write_whole
from rl_lab.curriculum.store import POOL_FILE, PoolStore, remove_pool
from rl_lab.learner.state import LEARNER_FILE, SavedStates
from rl_lab.model.checkpoint import Snapshot, publish, pull
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.types import EXAMS_FILE, GUARD_FILE

HELD_OUT_FILE = "held_out.jsonl"
"""Short examinations of the run: step, tokens so far, rewards of the held-out items."""

PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """What is done since the start of the run, and what its feeds and its guard keep in mind."""

    turn: int = 0
    """Turns of all feeds; a state is kept under this number."""
    done: dict[str, int] = field(default_factory=dict)
    """Of these, those that were for learning, by feed."""
    step: int = 0
    """Selections of the curriculum that are done."""
    batches: int = 0
    """Of these, batches that were for learning."""
    tokens: int = 0
    """Tokens that the engines wrote for them, refills included."""
    pair_steps: int = 0
    """Steps on preference pairs."""
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Round of pairs -> `version` and `digest` of the weights that collect them."""
    stopped: list[str] = field(default_factory=list)
    """Feeds that the guard stopped."""
    guard: dict[str, Any] | None = None
    """See `rl_lab.training.guard.Guard.state_dict`."""


class RunState:
    """Saved states of one run in `scratch`: learner, pool, older weights, files that grow with the run, progress."""

    files: Sequence[str] = (HELD_OUT_FILE,)
    """Names of the files in `out` that grow with the run."""
    keeps_pools = True
    """Whether copies of the pool stay in `out`."""

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        """At the last state that is whole and that the stored rollouts lead to; `warn` is told of what is not."""
        self.out, self.states, self._warn = out, SavedStates(scratch), warn
        self._pool: PoolStore | None = None
        self.states.drop_damaged(warn)
        self._drop_useless()
        self._newest = self.states.newest
        self.progress = Progress() if self._newest is None else self._read(self._newest)

    @staticmethod
    def _read(folder: Path) -> Progress:
        return Progress(**json.loads((folder / PROGRESS_FILE).read_text()))

    def _drop_useless(self) -> None:
        """What a damaged file of rollouts held is asked again, from a state before it."""
        store = RolloutStore(self.out)
        for step, damage in store.damaged():
            self._warn(f"{damage}; its step is done again")
            store.path(step).unlink()
            while (newest := self.states.newest) is not None and self._read(newest).step >= step:
                self.states.drop_last(self._warn)

    @property
    def learner_state(self) -> Path | None:
        """The learner's state at the last checkpoint; None before the first."""
        return self.states.learner_state

    def open_pool(self, create: Callable[[Path], PoolStore]) -> PoolStore:
        """The pool as it was at the last checkpoint, or a new one, which is kept as checkpoint 0.

        So edits that somebody gives before the first checkpoint outlive a kill like all others.
        """
        path = self.out / POOL_FILE
        if self._newest is not None:
            self._pool = PoolStore.restore(self._newest, path, self._warn)
        else:
            remove_pool(path)  # of states that are all lost
            self._pool = create(path)
            self.save(lambda path: None)
        return self._pool

    def seal_pool(self) -> None:
        """The run is over, and so is its pool, if it has one."""
        if self._pool is not None:
            self._pool.seal()

    def weights(self, version: int) -> Snapshot:
        """Older weights that the last checkpoint kept, because what is to come was asked of them."""
        assert self._newest is not None, "no state holds older weights"
        return publish(_weights(self._newest, version), version)

    def forget_later(self) -> None:
        """Put back what the files said at the last checkpoint; later lines come again."""
        saved = self._newest if self.progress.turn else None  # the state of turn 0 comes before its examination
        for name in self.files:
            write_json_lines(self.out / name, [] if saved is None else read_json_lines(saved / name))

    def save(self, save_learner: Callable[[Path], None], older: Sequence[Snapshot] = ()) -> None:
        """Make this the state to continue from. A kill in between leaves the one before."""

        def write(folder: Path) -> None:
            save_learner(folder / LEARNER_FILE)
            for snapshot in older:
                pull(snapshot, _weights(folder, snapshot.version))
            for name in self.files:
                write_json_lines(folder / name, read_json_lines(self.out / name, missing_ok=True))
            if self._pool is not None:
                self._save_pool(self._pool, folder)
            write_whole(folder / PROGRESS_FILE, json.dumps(asdict(self.progress)))

        self.states.save(self.progress.turn, write)
        self._newest = self.states.newest

    def _save_pool(self, pool: PoolStore, folder: Path) -> None:
        if self.keeps_pools:
            _link(pool.checkpoint(self.out / "checkpoints" / f"step-{self.progress.turn}"), folder / POOL_FILE)
        else:
            pool.checkpoint(folder)


def _weights(folder: Path, version: int) -> Path:
    return folder / f"weights-{version}"


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class JointState(RunState):
    """A run's state, and the learner at the last examination without harm."""

    files = (EXAMS_FILE, GUARD_FILE)
    keeps_pools = False

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        self.good = SavedStates(scratch / "good")
        super().__init__(out, scratch, warn)
        self.good.drop_from(self.progress.turn + 1)  # of an examination that comes again

    def _drop_useless(self) -> None:
        """States are of use only as long as what their guard would roll back to is there, too."""
        super()._drop_useless()
        self.good.drop_damaged(self._warn)
        while (newest := self.states.newest) is not None:
            guard = self._read(newest).guard or {}
            if guard.get("good") in (None, *self.good.steps()):
                return
            lost = self.states.last
            self._warn(f"what the guard would roll back to at turn {lost} is lost; going on from before it")
            self.states.drop_last(self._warn)

    @property
    def good_state(self) -> Path:
        """The learner's state at the last examination without harm."""
        assert self.good.learner_state is not None, "the first examination is without harm"
        return self.good.learner_state

    def save_good(self, save_learner: Callable[[Path], None]) -> None:
        """Keep the learner as it is now to roll back to."""
        self.good.save(self.progress.turn, lambda folder: save_learner(folder / LEARNER_FILE))
